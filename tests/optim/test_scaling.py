"""wk.unscale_ with torch's GradScaler, on the CPU."""

import pytest
import torch
from torch.amp import GradScaler

import wuskern as wk
from tests.optim.models import backward, network, row_grad, weight

SCALE = 8.0  # powers of two leave a gradient's bits alone
LOOPS = [dict(), dict(foreach=False), dict(fused=True)]
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


@pytest.mark.parametrize("loop", LOOPS, ids=str)
@pytest.mark.parametrize(("name", "options"), KINDS, ids=lambda x: x if isinstance(x, str) else "")
def test_scaled_steps_are_steps(name, options, loop):
    scaled, plain, scaler = network(), network(), scaler_of()
    optimizer, other = (getattr(wk.optim, name)(m.parameters(), lr=0.01, **options, **loop) for m in (scaled, plain))
    for seed in range(3):
        optimizer.zero_grad()
        scaled_backward(scaled, scaler, seed)
        wk.unscale_(scaler, optimizer)
        scaler.step(optimizer)
        scaler.update()
        other.zero_grad()
        backward(plain, seed)
        other.step()
    assert_same(params(scaled), params(plain))
    assert scaler.get_scale() == SCALE
    assert not hasattr(optimizer, "found_inf")


@pytest.mark.parametrize("loop", LOOPS, ids=str)
@pytest.mark.parametrize("bad", [float("inf"), float("nan")])
def test_an_inf_in_the_rows_alone_skips_the_step_and_lowers_the_scale(bad, loop):
    model, scaler = network(), scaler_of()
    optimizer = wk.optim.AdamW(model.parameters(), lr=0.1, **loop)
    scaled_backward(model, scaler)
    model[2].weight.row_grad.values[1, 2] = bad
    before = params(model)
    wk.unscale_(scaler, optimizer)
    scaler.step(optimizer)
    scaler.update()
    assert_same(params(model), before)
    assert scaler.get_scale() == SCALE / 2
    assert all(float(state["step"]) == 0 for state in optimizer.state.values())


def test_an_inf_in_a_dense_gradient_keeps_the_rows_where_they_are():
    model, scaler = network(), scaler_of()
    optimizer = wk.optim.SGD(model.parameters(), lr=0.1, fused=True)
    scaled_backward(model, scaler)
    model[0].bias.grad[0] = float("inf")
    before = params(model)
    wk.unscale_(scaler, optimizer)
    scaler.step(optimizer)
    scaler.update()
    assert_same(params(model), before)


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
    values = model[2].weight.row_grad.values.clone()
    with pytest.raises(RuntimeError, match=r"unscale_\(\) has already been called on this optimizer"):
        wk.unscale_(scaler, optimizer)
    assert torch.equal(model[2].weight.row_grad.values, values)
    scaler.step(optimizer)
    with pytest.raises(RuntimeError, match=r"unscale_\(\) is being called after step\(\)"):
        wk.unscale_(scaler, optimizer)


@pytest.mark.parametrize("by_hand", [False, True], ids=["scaler.step unscales", "scaler.unscale_ called"])
@pytest.mark.parametrize("loop", LOOPS, ids=str)
def test_forgetting_it_is_an_error_before_anything_moves(loop, by_hand):
    model, scaler = network(), scaler_of()
    optimizer = wk.optim.AdamW(model.parameters(), lr=0.1, **loop)
    scaled_backward(model, scaler)
    before = params(model)
    if by_hand:
        scaler.unscale_(optimizer)
    with pytest.raises(RuntimeError, match=r"call wk\.unscale_\(scaler, optimizer\) in place of scaler\.unscale_\(optimizer\)"):
        scaler.step(optimizer)
    assert_same(params(model), before)
    if not by_hand:  # and the step can still be taken
        wk.unscale_(scaler, optimizer)
        scaler.step(optimizer)
        assert not torch.equal(model[2].weight, before[4])


def test_rows_that_came_after_it_are_an_error():
    model, scaler = network(), scaler_of()
    optimizer = wk.optim.AdamW(model.parameters(), lr=0.1)
    scaled_backward(model, scaler)
    wk.unscale_(scaler, optimizer)
    scaled_backward(model, scaler, 1)
    with pytest.raises(RuntimeError, match="row gradients that are still scaled"):
        scaler.step(optimizer)


def test_without_rows_torchs_own_calls_suffice():
    model, scaler = network(), scaler_of()
    model[2].rows = None
    optimizer = wk.optim.AdamW(model.parameters(), lr=0.1)
    scaled_backward(model, scaler)
    scaler.step(optimizer)
    scaler.update()


def test_a_dense_and_a_row_sparse_gradient_are_unscaled_as_their_sum():
    parameter, scaler = weight(4, 3), scaler_of()
    optimizer = wk.optim.SGD([parameter], lr=1.0)
    scaler.scale(torch.ones(()))
    rows, parameter.grad = row_grad(parameter, [1, 2]), torch.full((4, 3), 16.0)
    expected = (16 + rows.dense(4)) / SCALE
    wk.unscale_(scaler, optimizer)
    torch.testing.assert_close(parameter.grad, expected)
    scaler.step(optimizer)
    torch.testing.assert_close(weight(4, 3) - parameter, expected)


def test_clipping_goes_between():
    model, plain, scaler = network(), network(), scaler_of()
    optimizer, other = (wk.optim.SGD(m.parameters(), lr=0.1) for m in (model, plain))
    scaled_backward(model, scaler)
    wk.unscale_(scaler, optimizer)
    norm = wk.clip_grad_norm_(model.parameters(), 0.01)
    scaler.step(optimizer)
    backward(plain)
    assert torch.equal(norm, wk.clip_grad_norm_(plain.parameters(), 0.01))
    other.step()
    assert_same(params(model), params(plain))


def test_float16_rows_are_refused_as_torch_refuses_float16_gradients():
    parameter, scaler = weight(4, 3, dtype=torch.float16), scaler_of()
    optimizer = wk.optim.SGD([parameter], lr=0.1)
    scaler.scale(torch.ones(()))
    row_grad(parameter, [1])
    with pytest.raises(ValueError, match="expected gradients of parameters in a wider dtype, got float16"):
        wk.unscale_(scaler, optimizer)


def test_a_disabled_scaler_does_nothing():
    model, scaler = network(), scaler_of(enabled=False)
    optimizer = wk.optim.SGD(model.parameters(), lr=0.1)
    scaled_backward(model, scaler)
    values = model[2].weight.row_grad.values.clone()
    wk.unscale_(scaler, optimizer)
    assert torch.equal(model[2].weight.row_grad.values, values)
    scaler.step(optimizer)
    scaler.update()


def test_before_anything_was_scaled_it_raises_as_torchs_does():
    with pytest.raises(AssertionError, match="_scale is None"):
        wk.unscale_(scaler_of(), wk.optim.SGD([weight(2, 2)], lr=0.1))
