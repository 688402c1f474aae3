"""What --policy says, and the policies that come of it."""

import pytest
import torch
import torch.nn as nn

import wuskern as wk
from wuskern.policies import WUS, WUSLR, ColumnRowSampling, Compose, MeProp, RigL, ScoreMemory
from wuskern.train import methods
from wuskern.train.methods import Method, Part, parse


def built(text: str, **changes) -> methods.Built:
    torch.manual_seed(0)
    model = wk.convert(nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 3)))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    given = methods.Given(model, optimizer, torch.randn(2, 4), **(dict(samples=50, seed=3) | changes))
    return methods.build(parse(text)[0], given, epochs=10)


def test_commas_pluses_and_colons():
    assert parse("dense, wus ,wus") == (Method("dense"), Method("wus", (Part("wus", {}),)))
    (method,) = parse("wus+lr:factor=.25:warmup=0+meprop:ratio=1e-1:k=none:scope=both:dense=0/2+sieve:once=true")
    assert method.parts == (
        Part("wus+lr", {"factor": 0.25, "warmup": 0}),
        Part("meprop", {"ratio": 0.1, "k": None, "scope": "both", "dense": ["0", "2"]}),
        Part("sieve", {"once": True}),
    )
    assert [part.name for part in parse("sieve+wus+memory:k=1")[0].parts] == ["sieve", "wus", "memory"]
    assert [part.name for part in parse("sieve+wus+lr")[0].parts] == ["sieve", "wus+lr"]
    assert parse("wus+lr")[0].skips
    assert not parse("meprop:k=1")[0].skips


def test_a_method_is_what_its_parts_are_together():
    found = built("wus+lr:factor=.25:window=3+memory:k=2+sieve:keep=.5")
    assert isinstance(found.policy, Compose)
    wus, memory = found.parts
    assert (type(wus), wus.factor, wus.window, found.wus) == (WUSLR, 0.25, 3, wus)
    assert (type(memory), memory.amount.k) == (ScoreMemory, 2)
    assert (found.sampler.size, found.sampler.seed, len(found.sampler)) == (50, 3, 25)


def test_sparse_training_from_text():
    """The run gives epochs and seed; slashes separate numbers, and one alone is for all phases."""
    mest = built("mest:variant=ems:sparsity=.5:lower=.5:upper=.25/.5:switches=4:pattern=block:block=2").policy
    assert (mest.epochs, mest.layout.block, mest.switches) == (10, 2, (4,))
    assert (mest.lower, mest.upper) == ((0.5, 0.5), (0.25, 0.5))
    same, other = built("mest:epochs=3:sparsity=.5").policy, built("mest:sparsity=.5", seed=4).policy
    assert same.epochs == 3
    again = built("mest:sparsity=.5").policy
    assert torch.equal(same.masks["2"], again.masks["2"])
    assert not torch.equal(other.masks["2"], again.masks["2"])
    rigl = built("rigl:pattern=1of2:growth=random+wus").parts[0]
    assert (type(rigl), rigl.growth, rigl.layout.n, rigl.layout.m, rigl.sparsity) == (RigL, "random", 1, 2, 0.5)
    assert "switches=0.5625/0.75" in next(line for line in methods.describe().splitlines() if " mest:" in line)
    assert parse("mest:dense=0/2:lower=.9/true")[0].parts[0].arguments == {"dense": ["0", "2"], "lower": ".9/true"}


def test_tokens_beside_rows():
    found = built("crs:ratio=.3:pick=top:dense=0/4+meprop:k=2")
    sampling, _ = found.parts
    assert isinstance(sampling, ColumnRowSampling)
    layer = found.policy.layers["2"]
    assert (layer.tokens, layer.rows.k) == (wk.Tokens(ratio=0.3, pick="top"), 2)
    assert found.policy.layers["0"].tokens is None


def test_one_part_is_its_policy_and_dense_is_none():
    assert isinstance(built("meprop:k=2").policy, MeProp)
    assert built("sieve").policy is None
    assert built("dense") == methods.Built()


def test_frozen_follows_its_leader():
    leader = built("wus").policy
    leader.skipping = True
    frozen = built("frozen", leader=leader).policy
    assert isinstance(frozen, WUS)
    frozen.step(0.5)
    assert frozen.skipping


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "--policy: expected one of dense, wus, wus[+]lr, meprop, .*, got ''"),
        ("dense+wus", "--policy: expected one of .*, got 'dense'"),
        ("wus+wus", "--policy: expected each part of a method once, got wus twice in 'wus[+]wus'"),
        ("frozen+sieve", "--policy: expected frozen alone"),
        ("meprop:rows=3", "--policy: expected meprop with ratio=, k=, .*, got 'rows=3'"),
        ("meprop:k", "--policy: expected meprop with .*, got 'k'"),
        ("sieve:seed=1", "--policy: expected sieve with keep=, rate=, interval=, once=, got 'seed=1'"),
        ("wus:optimizer=1", "--policy: expected wus with mode=, .*, got 'optimizer=1'"),
        ("wus:window=2:window=3", "--policy: expected window= once, got 'wus:window=2:window=3'"),
        ("wus:window=", "--policy: expected wus with mode=, .*, got 'window='"),
        ("sieve:once=1", "--policy: expected sieve:once=true or false, got 'once=1'"),
        ("ssprop:linear=none", "--policy: expected ssprop:linear=true or false, got 'linear=none'"),
    ],
)
def test_what_cannot_be_read_is_named(text, message):
    with pytest.raises(ValueError, match=message):
        parse(text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("wus:threshold=inf", "threshold: expected a positive number, got inf"),
        ("wus:threshold=1e400", "threshold: expected a positive number, got inf"),
        ("wus+lr:threshold=nan", "threshold: expected a positive number, got nan"),
        ("sieve:keep=1e-9", "keep: expected to leave at least 2 of 50 samples, got 1e-09"),
        ("sieve:keep=.03:once=true", "keep: expected to leave at least 2 of 50 samples, got 0.03"),
        ("spfde:keep=1e-9", "keep: expected to leave at least 2 of 50 samples, got 1e-09"),
        ("spfde:epochs=none", "epochs: expected a whole number, got None"),
        ("spfde:power=inf", "power: expected a positive number, got inf"),
        ("mest:switches=none", "switches: expected a list of numbers, got None"),
        ("mest:switches=inf", "switches: expected numbers over 0, got inf"),
        ("mest:switches=nan/1", "switches: expected numbers over 0, got nan"),
    ],
)
def test_nonsense_is_named(text, message):
    with pytest.raises((ValueError, TypeError), match=message):
        built(text)


def test_a_guard_may_be_without_end():
    assert built("wus:guard=inf").policy.guard == float("inf")


def test_every_part_is_described_with_its_defaults():
    lines = methods.describe().splitlines()
    assert [line.strip().split(":")[0] for line in lines] == ["dense", *methods.PARTS]
    assert "  meprop: ratio=none k=none scope=both score=l1 block=1 bias=dense per=batch dense=none" in lines
    assert "factor=0.5" in next(line for line in lines if "wus+lr" in line)
    assert "warmup=5" in next(line for line in lines if "frozen" in line)
