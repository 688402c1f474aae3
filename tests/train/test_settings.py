"""What --accumulate, --amp, --host, --cache and the row optimizers do to a run, with every kind of method."""

import copy
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

import wuskern as wk
from tests.train.test_loop import WUS, Run, settings, weights
from wuskern.policies import METHODS
from wuskern.train import data, pairs
from wuskern.train.methods import DENSE, parse

EVERY = (
    DENSE, WUS, "wus+lr", "meprop:ratio=.3", "ssprop:linear=true:schedule=constant:ratio=.3:bias=dense", "memory:ratio=.3",
    "tinyprop", "sieve:keep=.5:interval=1", "freeze:start=0:end=2", "freeze-once:at=1", "freeze-periodic:start=0",
    "freeze-delayed:start=0", "composer:start=0", "pipetransformer", "autofreeze:interval=2",
    "mesimp:k=8:prune=.3:cycle=1", "mesimp:k=8:prune=.3:cycle=1:simplify=true", "mest:sparsity=.5:interval=1",
    "rigl:sparsity=.5:interval=2", "crs:ratio=.5", "spfde:sparsity=.5:interval=1:start=1:end=3:sieve_interval=1",
    f"{WUS}+memory:ratio=.3+freeze:start=1:end=3+sieve:keep=.5:interval=1",
)  # fmt: skip
EVERY += tuple(
    pairs.trial(name) for name in METHODS if name not in {part.name for m in parse(",".join(EVERY)) for part in m.parts}
)


@pytest.fixture(scope="module")
def few():
    digits = data.load("digits")
    return replace(digits, x_train=digits.x_train[:192], y_train=digits.y_train[:192])


def trained(method, few, epochs=3, **changes):
    run = Run(method, settings(model="mlp", width=0.06, **changes), few, seed=0)
    for _ in range(epochs):
        run.epoch()
    run.close()
    return run


@pytest.mark.parametrize("method", EVERY)
def test_micro_batches_add_up_to_the_step(few, method):
    """Without batch norm the sum over micro-batches is the batch's gradient. All choose by the whole step's scores, but
    ``TopK`` and ``Tokens``, which choose in each backward, and what chooses by which of two nearly equal scores is larger."""
    whole, parts = trained(method, few, batch=48), trained(method, few, batch=48, accumulate=3)
    assert [e.steps for e in parts.epochs] == [e.steps for e in whole.epochs]
    if not any(chosen_in_backward in method for chosen_in_backward in ("meprop", "ssprop", "crs")):
        for name, value in weights(whole).items():
            torch.testing.assert_close(weights(parts)[name], value, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(("method", "amp"), [*((method, "fp16") for method in EVERY), (DENSE, "bf16"), (EVERY[-1], "bf16")])
def test_mixed_precision_trains_with_every_method(few, method, amp):
    run = trained(method, few, amp=amp, accumulate=2)
    assert run.epochs[-1].loss < run.epochs[0].loss
    assert all(p.dtype == torch.float32 for p in run.model.parameters())
    assert run.scaler.is_enabled() == (amp == "fp16")


def test_a_scaler_s_step_with_bias_gradients_alone_moves_them(few):
    run = trained(WUS, few, epochs=2, amp="fp16")
    assert run.mode == "skip"
    before, scale = weights(run), run.scaler.get_scale()
    run.epoch()
    moved = {n for n, p in weights(run).items() if not torch.equal(p, before[n])}
    assert moved == {n for n in before if n.endswith("bias")}
    assert run.scaler.get_scale() == scale


@pytest.mark.parametrize("method", [DENSE, EVERY[-1]])
def test_data_in_host_memory_are_the_same_data(few, method):
    there, host = trained(method, few), trained(method, few, host=True, cache=0)
    assert [e.loss for e in host.epochs] == [e.loss for e in there.epochs]
    assert all(torch.equal(p, weights(host)[name]) for name, p in weights(there).items())


def test_a_cache_changes_what_is_computed_and_not_what_comes_out(few):
    method = "freeze:start=1:end=2:share=.7"
    cached, plain = trained(method, few, cache=1), trained(method, few, cache=0)
    assert [e.saved["depth"] for e in cached.epochs] == [0, 0, 2]
    assert cached.epochs[2].saved["fprop"] > plain.epochs[2].saved["fprop"] == 0
    for name, value in weights(plain).items():
        torch.testing.assert_close(weights(cached)[name], value, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(("ours", "stock"), [("row-sgd", "sgd"), ("row-adamw", "adamw")])
@pytest.mark.parametrize("method", EVERY)
def test_row_optimizers_train_with_every_method(few, method, ours, stock):
    """Where every row has a gradient they do as torch's; where some have none, those stay where they are."""
    lr = 0.05 if "sgd" in ours else 0.01
    run = trained(method, few, optimizer=ours, lr=lr)
    assert run.epochs[-1].loss < run.epochs[0].loss
    if method in (DENSE, WUS):
        expected = weights(trained(method, few, optimizer=stock, lr=lr))
        for name, value in weights(run).items():
            torch.testing.assert_close(value, expected[name], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("method", [method for method in EVERY if method not in (DENSE, "sieve:keep=.5:interval=1")])
def test_a_policy_that_is_turned_off_leaves_a_stock_model(few, method):
    """The same gradients, bit for bit, and no hook and no flag."""
    run = trained(method, few)
    run.policy.release()
    stock = copy.deepcopy(run.model)
    for model in (run.model.train(), wk.revert(stock).train()):
        model.zero_grad()
        F.cross_entropy(model(few.x_train), few.y_train).backward()
    for ours, own in zip(run.model.parameters(), stock.parameters(), strict=True):
        assert torch.equal(ours.grad, own.grad)
    hooks = [h for m in run.model.modules() for h in (*m._forward_hooks, *m._forward_pre_hooks)]
    assert not hooks
    assert not any(vars(m).get("skip") or vars(m).get("rows") or vars(m).get("tokens") for m in run.model.modules())


def test_text_trains_with_every_lever(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("the quick brown fox jumps over the lazy dog. " * 200)
    text = data.load(str(path), context=16)
    run = Run("wus+meprop:ratio=.3+freeze:start=1:end=4+sieve:keep=.5", settings(model="gpt", width=0.2), text, seed=0)
    losses = [run.epoch().loss for _ in range(3)]
    assert losses[-1] < losses[0]
    assert 0 < run.epochs[-1].test_accuracy < 1
    assert run.sampler.learned.dtype == torch.bool
    assert {e.steps for e in run.epochs} == {-(-(len(text.x_train) // 2) // 64)}
