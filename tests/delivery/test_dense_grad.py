"""The dense form of a row-sparse gradient: whatever anybody does with it, the next one is right, and so does it stay."""

import copy
import gc
import pickle
import threading
import weakref

import pytest
import torch
import torch.nn as nn
from torch import Tensor
from torch.nn import Parameter

import wuskern as wk
from tests.cases import MEMORY_FORMATS
from wuskern.delivery import dense_grad as dense
from wuskern.delivery.dense_grad import dense_grad
from wuskern.kernels import backends
from wuskern.sparse_grad import RowGrad

OUT, IN = 512, 64


@pytest.fixture
def layer(monkeypatch):
    monkeypatch.setattr(dense, "LEAST", OUT * IN * 4)
    return wk.convert(nn.Linear(IN, OUT))


def backward(layer: nn.Module, rows: list[int], scale: float = 1.0) -> Tensor:
    """One forward and backward with the given rows; returns what the weight's gradient has to be, from plain tensors."""
    layer.rows = wk.Rows(rows)
    x, dy = torch.randn(8, IN), torch.randn(8, OUT)
    layer(x).backward(scale * dy)
    expected = torch.zeros(OUT, IN)
    expected[rows] = (scale * dy).t()[rows] @ x
    return expected


def assert_grad(layer: nn.Module, expected: Tensor) -> None:
    torch.testing.assert_close(layer.weight.grad, expected)
    assert torch.equal(layer.weight.grad == 0, expected == 0)


def is_lent(layer: nn.Module) -> bool:
    """Whether the gradient shares the memory that is kept; asked in a way that does not make it a copy."""
    return torch._C._data_address(layer.weight.grad) == torch._C._data_address(layer._home.recycled._tensor)


def steps(layer: nn.Module) -> None:
    """A few steps that must be right whatever came before, and are lent."""
    for rows in ([0, 511], [7], [7], [3, 100, 200]):
        layer.zero_grad()
        expected = backward(layer, rows)
        assert_grad(layer, expected)
        assert is_lent(layer)


def test_storage_is_used_again_from_step_to_step(layer):
    backward(layer, [1])
    before = torch._C._data_address(layer.weight.grad)
    for rows in ([0, 511], [7], [3, 100, 200]):
        layer.zero_grad()
        assert_grad(layer, backward(layer, rows))
        assert torch._C._data_address(layer.weight.grad) == before


def test_a_kept_gradient_stays_as_it_was(layer):
    first = backward(layer, [1, 2])
    kept, layer.weight.grad = layer.weight.grad, None
    second = backward(layer, [2, 9])
    torch.testing.assert_close(kept, first)
    assert_grad(layer, second)
    assert not is_lent(layer)
    del kept
    gc.collect()
    steps(layer)


def test_a_view_of_a_gradient_keeps_it(layer):
    first = backward(layer, [1, 2])
    view = layer.weight.grad[1:3]
    layer.zero_grad()
    backward(layer, [2, 9])
    torch.testing.assert_close(view, first[1:3])
    del view
    steps(layer)


def test_gradients_accumulate(layer):
    expected = sum(backward(layer, rows) for rows in ([1, 2], [2, 9], [0], [1, 2]))
    assert_grad(layer, expected)
    steps(layer)


def test_zeros_instead_of_none(layer):
    for rows in ([1, 2], [2, 9], [0]):
        expected = backward(layer, rows)
        assert_grad(layer, expected)
        layer.zero_grad(set_to_none=False)
        assert not layer.weight.grad.any()
    layer.zero_grad()
    steps(layer)


EDITS = {
    "in place": lambda weight: weight.grad.add_(1),
    "through .data": lambda weight: weight.grad.data.add_(1),
    "a row through .data": lambda weight: weight.grad.data[5].fill_(3),
    "through detach": lambda weight: weight.grad.detach().mul_(2).add_(1),
    "through numpy": lambda weight: weight.grad.numpy().fill(4),
    "through DLPack": lambda weight: torch.from_dlpack(weight.grad).fill_(4),
    "through its storage": lambda weight: torch.tensor([], dtype=weight.dtype).set_(weight.grad.untyped_storage()).fill_(5),
    "as an out argument": lambda weight: torch.ones(OUT, IN, out=weight.grad),
    "by clipping": lambda weight: nn.utils.clip_grad_norm_([weight], 1e-3),
    "by a foreach": lambda weight: torch._foreach_add_([weight.grad], 1.0),
    "by a fused optimizer": lambda weight: torch.optim.SGD([weight], 0.1, momentum=0.9, fused=True).step(),
}


@pytest.mark.parametrize("edit", EDITS.values(), ids=EDITS)
def test_an_edited_gradient_spoils_no_later_one(layer, edit):
    backward(layer, [1, 2])
    edit(layer.weight)
    steps(layer)


def test_an_edit_reaches_the_gradient_itself(layer):
    expected = backward(layer, [1, 2])
    layer.weight.grad.data.add_(1)
    torch.testing.assert_close(layer.weight.grad, expected + 1)


@pytest.mark.parametrize(
    "optimizer",
    [
        lambda p: torch.optim.SGD(p, 0.1, momentum=0.9, weight_decay=0.1),
        lambda p: torch.optim.SGD(p, 0.1, momentum=0.9, nesterov=True, foreach=True, dampening=0),
        lambda p: torch.optim.SGD(p, 0.1, fused=True),
        lambda p: torch.optim.Adam(p, 0.1, amsgrad=True, weight_decay=0.1),
        lambda p: torch.optim.AdamW(p, 0.1, fused=True),
        lambda p: torch.optim.AdamW(p, 0.1, foreach=True),
        lambda p: torch.optim.RMSprop(p, 0.1, momentum=0.9),
        lambda p: torch.optim.Adagrad(p, 0.1),
    ],
)
def test_optimizers_see_ordinary_gradients(layer, optimizer):
    """Also those that keep the first gradient as their momentum."""
    twin = nn.Linear(IN, OUT)
    twin.load_state_dict(layer.state_dict())
    ours, stock = optimizer([layer.weight]), optimizer([twin.weight])
    for rows in ([1, 2], [2, 9], [0], [0]):
        ours.zero_grad()
        twin.weight.grad = backward(layer, rows)
        layer.weight.grad.data.copy_(twin.weight.grad)  # the same bits, so that Adam divides the same numbers
        ours.step()
        stock.step()
        assert torch.equal(layer.weight, twin.weight)


def test_a_weight_used_twice(layer):
    layer.rows = wk.Rows([1, 400])
    for _ in range(3):
        layer.zero_grad()
        x, dy = torch.randn(2, 8, IN), torch.randn(2, 8, OUT)
        torch.autograd.backward([layer(x[0]), layer(x[1])], [dy[0], dy[1]])
        expected = torch.zeros(OUT, IN)
        expected[[1, 400]] = (dy[0].t() @ x[0] + dy[1].t() @ x[1])[[1, 400]]
        assert_grad(layer, expected)
    del x, dy
    steps(layer)


def test_two_layers_that_share_a_weight(layer):
    other = wk.SkippableLinear(IN, OUT)
    other.weight = layer.weight
    layer.rows, other.rows = wk.Rows([1]), wk.Rows([2])
    for _ in range(3):
        layer.zero_grad()
        x, dy = torch.randn(8, IN), torch.randn(8, OUT)
        torch.autograd.backward([layer(x), other(x)], [dy, dy])
        expected = torch.zeros(OUT, IN)
        expected[[1, 2]] = (dy.t() @ x)[[1, 2]]
        assert_grad(layer, expected)


def test_autograd_grad_hands_out_a_gradient_of_ones_own(layer):
    layer.rows = wk.Rows([1, 2])
    x = torch.randn(8, IN)
    (first,) = torch.autograd.grad(layer(x).sum(), layer.weight)
    before = first.clone()
    (second,) = torch.autograd.grad(layer(2 * x).sum(), layer.weight)
    assert torch.equal(first, before)
    torch.testing.assert_close(second, 2 * before)
    first.zero_()
    torch.testing.assert_close(second, 2 * before)


def test_a_retained_graph_run_twice(layer):
    layer.rows = wk.Rows([1, 2])
    loss = layer(torch.randn(8, IN)).sum()
    loss.backward(retain_graph=True)
    first = layer.weight.grad.clone()
    loss.backward()
    torch.testing.assert_close(layer.weight.grad, 2 * first)


def test_hooks_may_keep_and_change_what_they_see(layer):
    seen = []
    layer.weight.register_hook(seen.append)
    handle = layer.weight.register_hook(lambda grad: grad * 2)
    first = backward(layer, [1, 2])
    torch.testing.assert_close(layer.weight.grad, 2 * first)
    layer.zero_grad()
    second = backward(layer, [3])
    torch.testing.assert_close(seen[0], first)
    torch.testing.assert_close(seen[1], second)
    handle.remove()
    layer.weight.register_hook(lambda grad: grad.mul_(3))  # in place, though torch advises against it
    layer.zero_grad()
    assert_grad(layer, 3 * backward(layer, [4]))
    assert all(torch.equal(a == 0, b == 0) for a, b in zip(seen, (first, second), strict=False))


def test_an_optimizer_inside_backward(layer):
    twin = layer.weight.detach().clone()

    def step(weight: Parameter) -> None:
        with torch.no_grad():
            weight.sub_(weight.grad, alpha=0.1)
        weight.grad = None

    layer.weight.register_post_accumulate_grad_hook(step)
    for rows in ([1, 2], [2, 3], [9]):
        twin -= 0.1 * backward(layer, rows)
    torch.testing.assert_close(layer.weight.detach(), twin)


def test_threads_with_one_weight(layer):
    """Each backward of several threads adds its own part: none of them writes over what another was handed."""
    layer.rows = wk.Rows([1, 2])
    inputs = torch.randn(16, 8, IN)

    def add(x: Tensor) -> None:
        grads.extend(torch.autograd.grad(layer(x).sum(), layer.weight)[0].clone() for _ in range(5))

    grads: list[Tensor] = []
    threads = [threading.Thread(target=add, args=(x,)) for x in inputs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    expected = torch.zeros(OUT, IN)
    expected[[1, 2]] = 5 * inputs.sum((0, 1))
    torch.testing.assert_close(sum(grads), expected, rtol=1e-4, atol=1e-3)


def test_a_weight_that_became_another(layer):
    backward(layer, [1])
    layer.double().zero_grad()
    layer.rows = wk.Rows([3])
    layer(torch.randn(4, IN, dtype=torch.float64)).sum().backward()
    assert layer.weight.grad.dtype == torch.float64
    assert layer.weight.grad.any(1).nonzero().flatten().tolist() == [3]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("layout", MEMORY_FORMATS.values(), ids=MEMORY_FORMATS)
@pytest.mark.parametrize("size", [(3, 3), (1, 1), (2, 5)], ids=str)
def test_strides_are_those_of_the_weight(layout, dtype, size, monkeypatch):
    monkeypatch.setattr(dense, "LEAST", 0)
    recycled = dense.Recycled()
    weight = Parameter(torch.randn(8, 37, *size, dtype=dtype).to(memory_format=layout))
    for rows in ([5], [7, 0], [1, 2, 3]):
        values = torch.randn(len(rows), 37, *size, dtype=dtype)
        got = dense_grad(weight, RowGrad(torch.tensor(rows), values), recycled)
        assert got.stride() == weight.stride()
        assert torch.equal(got[rows], values)
        assert got.flatten(1).any(1).sum() == len(rows)
        del got


def test_a_weight_with_other_strides(monkeypatch):
    monkeypatch.setattr(dense, "LEAST", 0)
    weight, recycled = Parameter(torch.randn(20, 30).t()), dense.Recycled()
    for rows in ([5], [29, 0]):
        values = torch.randn(len(rows), 20)
        got = dense_grad(weight, RowGrad(torch.tensor(rows), values), recycled)
        assert got.stride() == weight.stride()
        assert torch.equal(got[rows], values)
        assert got.any(1).sum() == len(rows)
        del got


def test_the_compiled_writer_guards_its_memory():
    if obstacle := backends.library_obstacle("cpu"):
        pytest.skip(obstacle)
    write, target = torch.ops.wuskern_native.write_rows, torch.zeros(4, 3)
    for stale, rows, values, message in (
        (None, [4], torch.ones(1, 3), "rows: expected indices from 0 to 3, got 4"),
        ([-1], [1], torch.ones(1, 3), "stale: expected indices from 0 to 3, got -1"),
        (None, [1], torch.ones(1, 4), "values: expected 3 along dimension 1, got 4"),
        (None, [1], torch.ones(1, 3).double(), "values: expected the dtype of target"),
    ):
        with pytest.raises(RuntimeError, match=message):
            write(target, None if stale is None else torch.tensor(stale), torch.tensor(rows), values)
    assert not target.any()
    with pytest.raises(RuntimeError, match="target: expected float64, float32, float16 or bfloat16"):
        write(torch.zeros(4, 3, dtype=torch.uint8), None, torch.tensor([1]), torch.ones(1, 3, dtype=torch.uint8))


def test_the_compiled_writer_refuses_an_index_in_what_it_writes():
    """It would change after it was looked at."""
    if obstacle := backends.library_obstacle("cpu"):
        pytest.skip(obstacle)
    target = torch.zeros(4, 3, dtype=torch.float64)
    target.view(torch.int64)[0] = torch.tensor([0, 2, 3])
    rows, values = target.view(torch.int64)[0], target[1:]
    for stale, index, gradient in (
        (None, rows, torch.ones(3, 3).double()),
        (rows, torch.tensor([1]), torch.ones(1, 3).double()),
    ):
        with pytest.raises(RuntimeError, match=r"(rows|stale): expected other memory than that of target"):
            torch.ops.wuskern_native.write_rows(target, stale, index, gradient)
    with pytest.raises(RuntimeError, match="values: expected other memory than that of target"):
        torch.ops.wuskern_native.write_rows(target, None, torch.tensor([0, 1, 2]), values)


def kept(layer: nn.Module) -> Tensor | None:
    return layer._home.recycled._tensor


def test_memory_goes_with_the_rows(layer):
    backward(layer, [1])
    layer.zero_grad()
    gone = weakref.ref(kept(layer))
    layer.skip = True
    assert gone() is not None
    layer.rows = None
    assert gone() is None


def test_a_copy_keeps_zeros_of_its_own(layer):
    backward(layer, [1])
    for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert kept(other) is None
        other.zero_grad()
        assert_grad(other, backward(other, [2]))
    layer.zero_grad()
    steps(layer)


def test_an_interrupted_backward_leaves_no_row_behind(layer, monkeypatch):
    """Whatever was written when an exception came (a Ctrl-C, a time-out) is not in any later gradient."""
    write = dense._write

    def interrupted(target: Tensor, stale: Tensor | None, grad: RowGrad) -> Tensor:
        write(target, stale, grad)
        raise KeyboardInterrupt

    for early in (lambda *_: 1 / 0, interrupted):
        layer.zero_grad()
        backward(layer, [1, 2])
        layer.zero_grad()
        monkeypatch.setattr(dense, "_write", early)
        with pytest.raises((KeyboardInterrupt, ZeroDivisionError)):
            backward(layer, [300])
        monkeypatch.setattr(dense, "_write", write)
        assert_grad(layer, backward(layer, [5]))
    steps(layer)


def test_an_index_that_is_changed_in_place(layer):
    rows = wk.Rows([1, 2])
    for i in ([1, 2], [2, 9], [0, 511]):
        layer.zero_grad()
        rows.index.copy_(torch.tensor(i))
        layer.rows = rows
        layer(torch.ones(2, IN)).sum().backward()
        assert layer.weight.grad.any(1).nonzero().flatten().tolist() == i


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # Dynamo does it
def test_nothing_is_kept_while_compiling_or_for_small_weights():
    small = wk.convert(nn.Linear(16, 16))
    small.rows = wk.Rows([1])
    small(torch.randn(2, 16)).sum().backward()
    assert kept(small) is None
    torch._dynamo.reset()
    layer = wk.convert(nn.Linear(IN, OUT))
    layer.rows = wk.Rows([1])
    torch.compile(layer, backend="aot_eager", fullgraph=True)(torch.randn(2, IN)).sum().backward()
    assert layer.weight.grad.any(1).nonzero().flatten().tolist() == [1]
    assert kept(layer) is None


def test_nothing_is_kept_in_a_process_group(layer):
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    try:
        assert_grad(layer, backward(layer, [1, 2]))
        assert kept(layer) is None
    finally:
        torch.distributed.destroy_process_group()


def test_without_lazy_copies_every_gradient_is_fresh(layer, monkeypatch):
    monkeypatch.delattr(torch, "_lazy_clone")
    for rows in ([1, 2], [3]):
        layer.zero_grad()
        assert_grad(layer, backward(layer, rows))
    assert kept(layer) is None


def test_the_dtype_is_that_of_the_weight(monkeypatch):
    weight, recycled = Parameter(torch.randn(OUT, IN)), dense.Recycled()
    grad = RowGrad(torch.tensor([2, 5]), torch.randn(2, IN).bfloat16())
    monkeypatch.setattr(dense, "LEAST", 0)
    for _ in range(2):
        got = dense_grad(weight, grad, recycled)
        assert got.dtype == torch.float32
        assert torch.equal(got[[2, 5]], grad.values.float())
        assert got.any(1).sum() == 2
        del got
