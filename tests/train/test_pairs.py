"""Every two methods: together for a few steps, or refused by name."""

import itertools

import pytest
import torch
import torch.nn.functional as F

from wuskern.policies import MeSimp
from wuskern.policies.base import KEEPS
from wuskern.policies.sparse import SparseTraining
from wuskern.train import pairs
from wuskern.train.methods import PARTS
from wuskern.train.pairs import NAMES, SIMPLIFYING, Pair

pytestmark = pytest.mark.usefixtures("one_thread")


def expected(first: str, second: str) -> set[str]:
    """Reasons to refuse the two, of what each says that it decides; the first one that is found is given."""
    both = [set(PARTS[name.split(":")[0]].decides) - ({"shape"} if name == "mesimp" else set()) for name in (first, second)]
    reasons = (both[0] & both[1]) - {KEEPS}
    if ("shape" in both[0] and KEEPS in both[1]) or ("shape" in both[1] and KEEPS in both[0]):
        reasons.add("shape")
    if "frozen" in (first, second):
        reasons.add("alone")
    if {first, second} == {"mesimp", SIMPLIFYING}:
        reasons.add("twice")
    return reasons


def test_conflicts_known_by_hand(found):
    """Of each kind one that has to be refused, and one that must not be."""
    refused = {
        ("meprop", "ssprop"): "rows", ("freeze", "autofreeze"): "frozen", ("mesimp", "mest"): "zeros",
        ("sieve", "spfde"): "data", ("freeze", SIMPLIFYING): "shape", ("meprop", "rigl"): "rows", ("wus", "frozen"): "alone",
        ("frozen", "meprop"): "alone",
    }  # fmt: skip
    for names, reason in refused.items():
        pair = found.get(names) or found[names[::-1]]
        assert pair.reason == reason, names
    for names in (
        ("wus", "meprop"),
        ("meprop", "crs"),
        ("wus", "freeze"),
        ("meprop", "mest"),
        ("sieve", "wus"),
        ("freeze", "mesimp"),
    ):
        pair = found.get(names) or found[names[::-1]]
        assert pair.refusal is None, names


@pytest.fixture(scope="module")
def found():
    return {(pair.first, pair.second): pair for pair in pairs.pairs()}


@pytest.mark.parametrize(("first", "second"), list(itertools.combinations(NAMES, 2)))
def test_a_pair_is_refused_for_its_reason_or_trains(first, second, found):
    pair = found[first, second]
    reasons = expected(first, second)
    if reasons:
        assert pair.reason in reasons
        assert pair.refusal.startswith(("policies: expected one to decide of layer 0", "--policy: expected"))
    else:
        assert pair.refusal is None
        trains(pair)


def trains(pair: Pair) -> None:
    """Three epochs of two steps, in each of which what is not to move does not, and zeros stay."""
    torch.manual_seed(0)
    model = pairs.network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9, weight_decay=0.01)
    built = pairs.built(pair, model, optimizer)
    images, labels = torch.randn(pairs.SAMPLES, *pairs.IMAGES), torch.randint(pairs.CLASSES, (pairs.SAMPLES,))
    if built.policy is not None:
        built.policy.attach(optimizer)
    for _ in range(pairs.EPOCHS):
        model.train()
        order = torch.tensor(list(built.sampler)) if built.sampler else torch.randperm(len(images))
        for index in order.split(len(order) // 2)[:2]:
            step(model, optimizer, built, images[index], labels[index], index)
        if built.policy is not None:
            built.policy.after_epoch()
            built.policy.step(0.5)
        if built.separate_sampler is not None:
            built.separate_sampler.step()
    model.eval()
    assert model(images).isfinite().all()


def step(model, optimizer, built, x, y, index) -> None:
    policy = built.policy
    before = {name: layer.weight.detach().clone() for name, layer in (policy.layers if policy else {}).items()}
    if policy is not None:
        policy.before_step()
    still = [name for name in before if (wanted := policy.wants(name)).get("frozen") or wanted.get("skip")]
    logits = model(x)
    F.cross_entropy(logits, y).backward()
    optimizer.step()
    optimizer.zero_grad()
    if built.sampler is not None:
        built.sampler.record(index, logits.detach().argmax(1) == y)
    if policy is not None:
        policy.after_step()
    for name in still:
        assert torch.equal(policy.layers[name].weight, before[name])
    for part in built.parts:
        if isinstance(part, SparseTraining):
            assert not any(part.weights[name][~mask].any() for name, mask in part.masks.items())
        if isinstance(part, MeSimp):
            assert not any(part.layers[name].weight[~alive].any() for name, alive in part.alive.items())


def test_the_table_has_a_row_for_every_method():
    text = pairs.table()
    assert all(f"`{name}`" in text for name in NAMES)
    lines = text.splitlines()
    assert len({line.count("|") for line in lines}) == 1
    cells = [line.split("|")[2:-1] for line in lines[2:]]
    assert [list(row) for row in cells] == [list(column) for column in zip(*cells, strict=True)]  # either way
