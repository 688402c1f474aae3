"""wk.clip_grad_norm_ against torch's on the dense form of the gradients."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import Parameter
from torch.nn.utils import clip_grad_norm_

import wuskern as wk
from tests.optim.models import row_grad, weight

NORMS = [2.0, 1, 0.5, 3, 0, math.inf, "inf", -math.inf, -1.0]


def pair(seed: int = 0, dtype: torch.dtype = torch.float32) -> tuple[list[Parameter], list[Parameter]]:
    """Parameters with a row_grad, one of all rows, a grad, both and neither; and the same in the dense form."""
    ours = [weight(6, 4, dtype=dtype), weight(3, 2, 3, 3, dtype=dtype), weight(5, dtype=dtype), weight(6, 4, dtype=dtype),
            weight(2, 2, dtype=dtype)]  # fmt: skip
    dense = [Parameter(p.detach().clone()) for p in ours]
    for i, rows in ((0, [1, 4]), (1, [0, 1, 2]), (3, [0, 5])):
        dense[i].grad = row_grad(ours[i], rows, seed + i).dense(len(ours[i]))
    for i in (2, 3):
        grad = torch.randn(ours[i].shape, generator=torch.Generator().manual_seed(seed + 9)).to(dtype)
        ours[i].grad, dense[i].grad = grad.clone(), grad + (dense[i].grad if dense[i].grad is not None else 0)
    return ours, dense


def assert_same(ours: list[Parameter], dense: list[Parameter]) -> None:
    for mine, theirs in zip(ours, dense, strict=True):
        rows, found = getattr(mine, "row_grad", None), mine.grad
        assert rows is None or found is None
        found = rows.dense(len(mine)) if rows is not None else found
        assert (found is None) == (theirs.grad is None)
        if found is not None:
            torch.testing.assert_close(found, theirs.grad, equal_nan=True)


@pytest.mark.parametrize("foreach", [None, True, False])
@pytest.mark.parametrize("norm_type", NORMS, ids=str)
def test_every_norm_is_that_of_the_dense_form(norm_type, foreach):
    for max_norm in (0.1, 1e3):
        ours, dense = pair()
        found = wk.clip_grad_norm_(ours, max_norm, norm_type, foreach=foreach)
        expected = clip_grad_norm_(dense, max_norm, norm_type, foreach=foreach)
        torch.testing.assert_close(found, expected)
        assert found.shape == ()
        assert_same(ours, dense)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 99), st.floats(0, 20), st.sampled_from(NORMS), st.sampled_from([torch.float64, torch.bfloat16]))
def test_any_bound(seed, max_norm, norm_type, dtype):
    ours, dense = pair(seed, dtype)
    torch.testing.assert_close(wk.clip_grad_norm_(ours, max_norm, norm_type), clip_grad_norm_(dense, max_norm, norm_type))
    assert_same(ours, dense)


@pytest.mark.parametrize("bad", [math.inf, math.nan])
@pytest.mark.parametrize("norm_type", [2.0, math.inf, -math.inf, -1.0])
def test_a_norm_that_is_not_finite(norm_type, bad):
    ours, dense = pair()
    for parameter in (ours[0].row_grad.values[0], dense[0].grad[1]):
        parameter[0] = bad
    before = ours[0].row_grad.values.clone()
    finite = clip_grad_norm_(dense, 1.0, norm_type)
    if not finite.isfinite():
        with pytest.raises(RuntimeError, match="is non-finite, so it cannot be clipped"):
            wk.clip_grad_norm_(ours, 1.0, norm_type, error_if_nonfinite=True)
        torch.testing.assert_close(ours[0].row_grad.values, before, equal_nan=True, rtol=0, atol=0)
    torch.testing.assert_close(wk.clip_grad_norm_(ours, 1.0, norm_type), finite, equal_nan=True)
    if finite.isnan():  # torch's zeros become NaN with the rest
        assert ours[0].row_grad.rows.tolist() == [1, 4]
        assert ours[0].row_grad.values.isnan().all()
    else:
        assert_same(ours, dense)


def test_dense_gradients_are_torchs_matter():
    ours, dense = pair()
    for parameters in (ours, dense):
        for parameter in parameters:
            parameter.grad, parameter.row_grad = torch.ones_like(parameter), None
    assert torch.equal(wk.clip_grad_norm_(iter(ours), 1.0), clip_grad_norm_(dense, 1.0))
    assert all(torch.equal(a.grad, b.grad) for a, b in zip(ours, dense, strict=True))
    assert wk.clip_grad_norm_([], 1.0) == 0
    with pytest.warns(UserWarning, match="is an empty generator"):
        wk.clip_grad_norm_((p for p in []), 1.0)


def test_one_parameter_and_a_generator():
    (parameter, *_), (dense, *_) = pair()
    torch.testing.assert_close(wk.clip_grad_norm_(parameter, 0.1), clip_grad_norm_(dense, 0.1))
    assert_same([parameter], [dense])
    torch.testing.assert_close(wk.clip_grad_norm_((p for p in [parameter]), 0.01), torch.tensor(0.1), rtol=1e-4, atol=0)


def test_no_tensor_of_the_weights_size_is_formed():
    parameter = weight(1000, 50)
    row_grad(parameter, [3, 7])
    sizes = []

    class Sizes(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            result = func(*args, **(kwargs or {}))
            sizes.extend(t.numel() for t in torch.utils._pytree.tree_leaves(result) if isinstance(t, torch.Tensor))
            return result

    with Sizes():
        wk.clip_grad_norm_([parameter], 0.1, -1.0)
    assert sizes
    assert max(sizes) <= 101
