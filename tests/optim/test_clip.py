"""torch's own clipping and norms of sparse gradients, against the same of their dense form."""

import math

import pytest
import torch
import torch.nn as nn
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import Parameter
from torch.nn.utils import clip_grad_norm_, clip_grad_value_, get_total_norm
from torch.profiler import ProfilerActivity, profile

import wuskern as wk
from tests.optim.models import backward, network, row_grad, weight

# From 2.14 on torch has a norm of sparse tensors itself: its orders below 0 pass over the zeros, and it takes no dtype.
TORCH_HAS_ONE = tuple(int(part) for part in torch.__version__.split(".")[:2]) >= (2, 14)
NORMS = [2.0, 1, 0.5, 3, 0, math.inf, "inf", *([] if TORCH_HAS_ONE else [-math.inf, -1.0])]
DTYPES = [torch.float64, torch.float32, torch.bfloat16]
FOREACH = [None, True, False]


@pytest.fixture(autouse=True, scope="module")
def _a_sparse_gradient_was_made():
    """What torch lacks for the norm comes with the first."""
    backward_of_rows(wk.SkippableLinear(2, 4))


def backward_of_rows(layer: nn.Module) -> None:
    layer.rows = wk.TopK(k=1, sparse=True)
    layer(torch.randn(3, layer.in_features)).sum().backward()


def pair(seed: int = 0, dtype: torch.dtype = torch.float32) -> tuple[list[Parameter], list[Parameter]]:
    """Parameters with a sparse gradient of some rows, of all rows, of one row twice (not coalesced), a dense one and none; and
    the same in the dense form."""
    shapes = [(6, 4), (3, 2, 3, 3), (6, 4), (5,), (2, 2)]
    ours = [weight(*shape, dtype=dtype) for shape in shapes]
    row_grad(ours[0], [1, 4], seed)
    row_grad(ours[1], [0, 1, 2], seed + 1)
    twice = row_grad(ours[2], [0, 2, 4], seed + 2)._values().abs()  # a sum of rounded parts is as exact as its largest
    ours[2].grad = torch.sparse_coo_tensor([[5, 0, 5]], twice, (6, 4), check_invariants=False)
    ours[3].grad = torch.randn(5, generator=torch.Generator().manual_seed(seed + 9)).to(dtype)
    dense = [Parameter(p.detach().clone()) for p in ours]
    for mine, theirs in zip(ours, dense, strict=True):
        theirs.grad = None if mine.grad is None else mine.grad.to_dense().clone()
    return ours, dense


def assert_same(ours: list[Parameter], dense: list[Parameter]) -> None:
    assert [p.grad is not None and p.grad.is_sparse for p in ours] == [True, True, True, False, False]
    for mine, theirs in zip(ours, dense, strict=True):
        assert (mine.grad is None) == (theirs.grad is None)
        if theirs.grad is not None:
            torch.testing.assert_close(mine.grad.to_dense(), theirs.grad, equal_nan=True)


def test_one_of_them_is_not_coalesced():
    assert [p.grad.is_coalesced() for p in pair()[0][:3]] == [True, True, False]


@pytest.mark.parametrize("foreach", FOREACH)
@pytest.mark.parametrize("norm_type", NORMS, ids=str)
def test_every_norm_is_that_of_the_dense_form(norm_type, foreach):
    for max_norm in (0.1, 1e3):
        ours, dense = pair()
        found = clip_grad_norm_(ours, max_norm, norm_type, foreach=foreach)
        expected = clip_grad_norm_(dense, max_norm, norm_type, foreach=foreach)
        torch.testing.assert_close(found, expected)
        assert found.shape == ()
        assert_same(ours, dense)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 99), st.floats(0, 20), st.sampled_from(NORMS), st.sampled_from(DTYPES), st.sampled_from(FOREACH))
def test_any_bound(seed, max_norm, norm_type, dtype, foreach):
    ours, dense = pair(seed, dtype)
    norms = (clip_grad_norm_(parameters, max_norm, norm_type, foreach=foreach) for parameters in (ours, dense))
    torch.testing.assert_close(*norms)
    assert_same(ours, dense)


@pytest.mark.parametrize("foreach", FOREACH)
@pytest.mark.parametrize("bad", [math.inf, math.nan])
@pytest.mark.parametrize("norm_type", [n for n in NORMS if n in (2.0, 1, math.inf, -math.inf, -1.0)])
def test_a_norm_that_is_not_finite(norm_type, bad, foreach):
    ours, dense = pair()
    ours[0].grad._values()[0, 0] = dense[0].grad[1, 0] = bad
    before = ours[0].grad.clone()
    finite = get_total_norm([p.grad for p in dense if p.grad is not None], norm_type)
    if not finite.isfinite():
        with pytest.raises(RuntimeError, match="is non-finite, so it cannot be clipped"):
            clip_grad_norm_(ours, 1.0, norm_type, error_if_nonfinite=True, foreach=foreach)
        torch.testing.assert_close(ours[0].grad, before, equal_nan=True, rtol=0, atol=0)
    torch.testing.assert_close(clip_grad_norm_(ours, 1.0, norm_type, foreach=foreach), finite, equal_nan=True)
    clip_grad_norm_(dense, 1.0, norm_type, foreach=foreach)
    if finite.isnan():  # torch's zeros become NaN with the rest
        assert ours[0].grad._indices().tolist() == [[1, 4]]
        assert ours[0].grad._values().isnan().all()
    else:
        assert_same(ours, dense)


def test_one_parameter_a_generator_and_no_gradient_at_all():
    (parameter, *_), (dense, *_) = pair()
    torch.testing.assert_close(clip_grad_norm_(parameter, 0.1), clip_grad_norm_(dense, 0.1))
    torch.testing.assert_close(clip_grad_norm_((p for p in [parameter]), 0.01), torch.tensor(0.1), rtol=1e-4, atol=0)
    torch.testing.assert_close(torch.linalg.vector_norm(parameter.grad), torch.tensor(0.01), rtol=1e-3, atol=0)


@pytest.mark.parametrize("norm_type", NORMS, ids=str)
def test_a_gradient_of_no_row_has_the_norm_of_zeros(norm_type):
    """As ``zero_grad(set_to_none=False)`` leaves it."""
    parameter = weight(6, 4)
    row_grad(parameter, [1, 4]).zero_()
    if TORCH_HAS_ONE and norm_type in (math.inf, "inf"):
        with pytest.raises(RuntimeError, match="inf norm on an empty tensor"):
            clip_grad_norm_(parameter, 1.0, norm_type)
        return
    assert clip_grad_norm_(parameter, 1.0, norm_type) == torch.linalg.vector_norm(torch.zeros(6, 4), float(norm_type)) == 0
    assert parameter.grad._nnz() == 0


@pytest.mark.skipif(TORCH_HAS_ONE, reason="torch's own is asked, which refuses both in its words")
def test_the_norm_in_another_dtype_and_of_some_dimensions():
    (parameter, *_), (dense, *_) = pair(dtype=torch.bfloat16)
    found = torch.linalg.vector_norm(parameter.grad, dtype=torch.float32)
    torch.testing.assert_close(found, torch.linalg.vector_norm(dense.grad, dtype=torch.float32))
    for wrong in (dict(dim=0), dict(dim=(0, 1)), dict(keepdim=True)):
        with pytest.raises(NotImplementedError, match="dim: expected None for the norm of a sparse tensor"):
            torch.linalg.vector_norm(parameter.grad, **wrong)


def test_a_step_of_a_clipped_model_has_the_length_that_was_asked_for():
    model = network()
    optimizer = wk.optim.SGD(model.parameters(), lr=1.0)
    model[2].rows = wk.TopK(k=3)
    backward(model, scale=1000)
    before = [p.detach().clone() for p in model.parameters()]
    clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    assert model[2].weight.grad.is_sparse
    moved = torch.cat([(p.detach() - b).flatten() for p, b in zip(model.parameters(), before, strict=True)])
    torch.testing.assert_close(moved.norm(), torch.tensor(1.0))


@pytest.mark.parametrize("foreach", FOREACH)
def test_clipping_by_value_raises(foreach):
    """Zeros stay zero under it, but torch has no kernel, and says so."""
    ours, _ = pair()
    before = [p.grad.clone() for p in ours[:3]]
    with pytest.raises(NotImplementedError, match=r"aten::clamp"):
        clip_grad_value_(ours, 0.1, foreach=foreach)
    for parameter, grad in zip(ours, before, strict=False):
        assert torch.equal(parameter.grad.to_dense(), grad.to_dense())


@pytest.mark.filterwarnings("ignore:Warning. Profiler clears events")  # torch 2.10's own
@pytest.mark.parametrize("norm_type", [n for n in NORMS if n in (2.0, -1.0)])
def test_no_tensor_of_the_weights_size_is_formed(norm_type):
    parameter = weight(1000, 50)
    row_grad(parameter, [3, 7])
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as events:
        clip_grad_norm_([parameter], 0.1, norm_type)
    assert 0 < max(e.self_cpu_memory_usage for e in events.events()) <= 8 * 101  # a copy of the values, a zero with them
