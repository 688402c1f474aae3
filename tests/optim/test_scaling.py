"""torch's GradScaler with sparse gradients and with none at all, on the CPU, and wk.unscale_ for the latter."""

import pytest
import torch
from torch.amp import GradScaler
from torch.nn.utils import clip_grad_norm_

import wuskern as wk
from tests.optim.models import backward, network, row_grad, weight

SCALE = 8.0  # powers of two leave a gradient's bits alone
LOOPS = [dict(), dict(foreach=False), dict(fused=True)]
UNSCALE = {
    "scaler.step unscales": lambda scaler, optimizer: None,
    "scaler.unscale_": lambda scaler, optimizer: scaler.unscale_(optimizer),
    "wk.unscale_": wk.unscale_,
}
each_way = pytest.mark.parametrize("unscale", UNSCALE.values(), ids=UNSCALE)
KINDS = [("SGD", dict(momentum=0.9)), ("Adam", dict()), ("AdamW", dict(amsgrad=True))]


def scaler_of(**options) -> GradScaler:
    return GradScaler("cpu", init_scale=SCALE, growth_interval=100, **options)


def scaled_backward(model, scaler: GradScaler, seed: int = 0) -> None:
    scaler.scale(torch.ones(()))  # makes the scale
    backward(model, seed, SCALE if scaler.is_enabled() else 1.0)


def params(model) -> list[torch.Tensor]:
    return [p.detach().clone() for p in model.parameters()]


def assert_same(a, b) -> None:
    assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


@each_way
@pytest.mark.parametrize("loop", LOOPS, ids=str)
@pytest.mark.parametrize(("name", "options"), KINDS, ids=lambda x: x if isinstance(x, str) else "")
def test_scaled_steps_are_steps(name, options, loop, unscale):
    scaled, plain, scaler = network(), network(), scaler_of()
    optimizer, other = (getattr(wk.optim, name)(m.parameters(), lr=0.01, **options, **loop) for m in (scaled, plain))
    for seed in range(3):
        optimizer.zero_grad()
        scaled_backward(scaled, scaler, seed)
        assert scaled[2].weight.grad.is_sparse
        unscale(scaler, optimizer)
        scaler.step(optimizer)
        scaler.update()
        other.zero_grad()
        backward(plain, seed)
        other.step()
    assert_same(params(scaled), params(plain))
    assert scaler.get_scale() == SCALE
    assert not hasattr(optimizer, "found_inf")


@each_way
@pytest.mark.parametrize("loop", LOOPS, ids=str)
@pytest.mark.parametrize("bad", [float("inf"), float("nan")])
def test_an_inf_in_the_rows_alone_skips_the_step_and_lowers_the_scale(bad, loop, unscale):
    model, scaler = network(), scaler_of()
    optimizer = wk.optim.AdamW(model.parameters(), lr=0.1, **loop)
    scaled_backward(model, scaler)
    model[2].weight.grad._values()[1, 2] = bad
    before = params(model)
    unscale(scaler, optimizer)
    scaler.step(optimizer)
    scaler.update()
    assert_same(params(model), before)
    assert scaler.get_scale() == SCALE / 2
    assert all(float(state["step"]) == 0 for state in optimizer.state.values())


@each_way
@pytest.mark.parametrize("loop", LOOPS, ids=str)
def test_an_inf_where_all_gradients_are_sparse(loop, unscale):
    """torch's step, which would be told of it, is then not called."""
    parameter, scaler = weight(4, 3), scaler_of()
    optimizer = wk.optim.SGD([parameter], lr=0.1, **loop)
    for bad in (True, False):
        scaler.scale(torch.ones(()))
        grad = row_grad(parameter, [1, 2])
        if bad:
            grad._values()[0, 1] = float("inf")
        unscale(scaler, optimizer)
        scaler.step(optimizer)
        scaler.update()
        assert torch.equal(parameter, weight(4, 3)) == bad
    assert scaler.get_scale() == SCALE / 2


@each_way
@pytest.mark.parametrize("loop", LOOPS, ids=str)
def test_an_inf_in_a_dense_gradient_keeps_the_rows_where_they_are(loop, unscale):
    model, scaler = network(), scaler_of()
    optimizer = wk.optim.SGD(model.parameters(), lr=0.1, **loop)
    scaled_backward(model, scaler)
    model[0].bias.grad[0] = float("inf")
    before = params(model)
    unscale(scaler, optimizer)
    scaler.step(optimizer)
    scaler.update()
    assert_same(params(model), before)


def test_torchs_sgd_steps_in_sparse_gradients_that_a_scaler_has_unscaled():
    scaled, plain, scaler = network(), network(), scaler_of()
    for model in (scaled, plain):
        model[2].rows = wk.Rows([0, 3], sparse=True)
    optimizer, other = (torch.optim.SGD(m.parameters(), lr=0.1) for m in (scaled, plain))
    for seed, bad in enumerate([False, True, False]):
        for model in (scaled, plain):
            model.zero_grad()
        scaled_backward(scaled, scaler, seed)
        if bad:
            scaled[2].weight.grad._values()[0, 1] = float("inf")
        scaler.step(optimizer)
        scaler.update(SCALE)
        if not bad:
            backward(plain, seed)
            other.step()
    assert_same(params(scaled), params(plain))


@pytest.mark.parametrize("optim", [torch.optim, wk.optim], ids=["torch", "ours"])
@pytest.mark.parametrize("loop", LOOPS, ids=str)
def test_a_step_in_which_only_biases_have_gradients(loop, optim):
    model, scaler = network(), scaler_of()
    optimizer = optim.AdamW(model.parameters(), lr=0.1, **loop)
    wk.set_skip(model, True)
    before = params(model)
    scaled_backward(model, scaler)
    wk.unscale_(scaler, optimizer)
    scaler.step(optimizer)
    scaler.update()
    moved = [not torch.equal(a, b) for a, b in zip(before, params(model), strict=True)]
    assert moved == [False, True] * 3


@pytest.mark.parametrize("optim", [torch.optim, wk.optim], ids=["torch", "ours"])
@pytest.mark.parametrize("loop", LOOPS, ids=str)
def test_an_optimizer_that_holds_only_skipped_weights(loop, optim):
    model, scaler = network(), scaler_of()
    optimizer = optim.SGD([layer.weight for layer in (model[0], model[2], model[4])], lr=0.1, **loop)
    wk.set_skip(model, True)
    before = params(model)
    scaled_backward(model, scaler)
    wk.unscale_(scaler, optimizer)
    scaler.step(optimizer)
    scaler.update()
    assert_same(params(model), before)
    assert scaler.get_scale() == SCALE
    assert scaler._growth_tracker == 1


def test_a_second_call_raises_as_torchs_does():
    model, scaler = network(), scaler_of()
    optimizer = wk.optim.SGD(model.parameters(), lr=0.1)
    scaled_backward(model, scaler)
    wk.unscale_(scaler, optimizer)
    values = model[2].weight.grad._values().clone()
    with pytest.raises(RuntimeError, match=r"unscale_\(\) has already been called on this optimizer"):
        wk.unscale_(scaler, optimizer)
    assert torch.equal(model[2].weight.grad._values(), values)
    scaler.step(optimizer)
    with pytest.raises(RuntimeError, match=r"unscale_\(\) is being called after step\(\)"):
        wk.unscale_(scaler, optimizer)


@pytest.mark.parametrize("form", [True, False], ids=["sparse", "dense"])
def test_what_came_after_unscaling_is_torchs_matter(form):
    """It is added to what is unscaled already, in both forms."""
    model, scaler = network(), scaler_of()
    model[2].rows = wk.Rows([0, 3], sparse=form)
    optimizer = wk.optim.SGD(model.parameters(), lr=0.1)
    scaled_backward(model, scaler)
    first = model[2].weight.grad.to_dense().clone()
    scaler.unscale_(optimizer)
    scaled_backward(model, scaler)
    torch.testing.assert_close(model[2].weight.grad.to_dense(), first / SCALE + first)


def test_without_rows_torchs_own_calls_suffice():
    model, scaler = network(), scaler_of()
    model[2].rows = None
    optimizer = wk.optim.AdamW(model.parameters(), lr=0.1)
    scaled_backward(model, scaler)
    scaler.step(optimizer)
    scaler.update()


@each_way
@pytest.mark.parametrize("loop", LOOPS, ids=str)
def test_a_row_that_is_there_twice_is_unscaled_as_the_sum(loop, unscale):
    """As torch leaves it for a weight with hooks, or one that two layers use."""
    parameter, scaler = weight(4, 3), scaler_of()
    optimizer = wk.optim.SGD([parameter], lr=1.0, **loop)
    scaler.scale(torch.ones(()))
    parameter.grad = torch.sparse_coo_tensor([[2, 1, 2]], torch.ones(3, 3), (4, 3), check_invariants=False)
    unscale(scaler, optimizer)
    scaler.step(optimizer)
    expected = torch.tensor([0, 1, 2, 0])[:, None].expand(4, 3) / SCALE
    torch.testing.assert_close(weight(4, 3) - parameter, expected)


def test_clipping_goes_between():
    model, plain, scaler = network(), network(), scaler_of()
    optimizer, other = (wk.optim.SGD(m.parameters(), lr=0.1) for m in (model, plain))
    scaled_backward(model, scaler)
    scaler.unscale_(optimizer)
    norm = clip_grad_norm_(model.parameters(), 0.01)
    scaler.step(optimizer)
    backward(plain)
    assert torch.equal(norm, clip_grad_norm_(plain.parameters(), 0.01))
    other.step()
    assert_same(params(model), params(plain))


@each_way
def test_float16_rows_are_refused_as_torch_refuses_float16_gradients(unscale):
    parameter, scaler = weight(4, 3, dtype=torch.float16), scaler_of()
    optimizer = wk.optim.SGD([parameter], lr=0.1)
    scaler.scale(torch.ones(()))
    row_grad(parameter, [1])

    def step() -> None:
        unscale(scaler, optimizer)
        scaler.step(optimizer)

    with pytest.raises(ValueError, match=r"Attempting to unscale FP16 gradients\."):
        step()
    assert torch.equal(parameter, weight(4, 3, dtype=torch.float16))


def test_a_disabled_scaler_does_nothing():
    model, scaler = network(), scaler_of(enabled=False)
    optimizer = wk.optim.SGD(model.parameters(), lr=0.1)
    scaled_backward(model, scaler)
    values = model[2].weight.grad._values().clone()
    wk.unscale_(scaler, optimizer)
    assert torch.equal(model[2].weight.grad._values(), values)
    scaler.step(optimizer)
    scaler.update()


def test_before_anything_was_scaled_it_raises_as_torchs_does():
    with pytest.raises(AssertionError, match="_scale is None"):
        wk.unscale_(scaler_of(), wk.optim.SGD([weight(2, 2)], lr=0.1))
