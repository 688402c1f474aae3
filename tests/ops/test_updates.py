"""The ops rowsparse_sgd_ and rowsparse_adam_, on every backend that runs here, against torch's optimizers in float64."""

from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from tests.accuracy import FEW, assert_as_right_as_stock
from tests.conftest import obstacle_to, on_backend
from wuskern import ops

OPS = ("rowsparse_sgd_", "rowsparse_adam_")
INTERPRETED = (torch.float64, torch.float32, torch.float16)  # Triton's interpreter is wrong in bfloat16
CLOSE = {
    torch.float32: dict(rtol=1e-5, atol=1e-6),
    torch.float16: dict(rtol=1e-3, atol=1e-6),
    torch.bfloat16: dict(rtol=8e-3, atol=1e-6),
}
SHAPES = [(12, 70), (5, 1100), (9,), (6, 5, 3, 3), (40, 33, 1, 1), (1, 1), (4, 130, 3, 2), (7, 0)]
SGD = dict(lr=0.1, momentum=0.9, dampening=0.2, weight_decay=0.03, nesterov=False, maximize=False)
ADAM = dict(lr=0.01, beta1=0.8, beta2=0.95, eps=1e-3, weight_decay=0.1, decoupled=False, maximize=False)
SGDS = [SGD, SGD | dict(momentum=0.0, dampening=0.0), SGD | dict(dampening=0.0, nesterov=True), SGD | dict(weight_decay=0.0),
        SGD | dict(maximize=True)]  # fmt: skip
ADAMS = [ADAM, ADAM | dict(decoupled=True), ADAM | dict(weight_decay=0.0), ADAM | dict(maximize=True, beta1=0.0)]


@dataclass
class Case:
    """A parameter, its state, and a gradient of some rows; ``layout`` of the first two."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    rows: list[int]
    layout: str = "contiguous"
    device: str = "cpu"
    step_device: str = "cpu"

    def tensors(self) -> dict[str, Tensor]:
        t = {name: torch.randn(self.shape).to(self.dtype) for name in ("param", "first", "second", "most")}
        t = {name: self.laid_out(x.square() if name in ("second", "most") else x) for name, x in t.items()}
        return t | {"values": torch.randn(len(self.rows), *self.shape[1:]).to(self.device, self.dtype)}

    def laid_out(self, t: Tensor) -> Tensor:
        t = t.to(self.device)
        if self.layout == "channels_last" and t.ndim == 4:
            return t.contiguous(memory_format=torch.channels_last).clone()
        if self.layout == "sliced":
            return torch.stack((t, t), -1)[..., 0]
        return t.clone()


def run_ours(
    name: str, t: dict[str, Tensor], rows: Tensor, numbers: dict, amsgrad: bool = False, step_device: str = "cpu"
) -> None:
    if name == "rowsparse_sgd_":
        ops.rowsparse_sgd_(t["param"], t["first"] if numbers["momentum"] else None, rows, t["values"], **numbers)
    else:
        most = t["most"] if amsgrad else None
        step = torch.tensor(6.0, device=step_device)
        ops.rowsparse_adam_(t["param"], t["first"], t["second"], most, step, rows, t["values"], **numbers)


def run_torch(name: str, t: dict[str, Tensor], rows: Tensor, numbers: dict, dtype: torch.dtype, amsgrad: bool = False) -> dict:
    """What torch's optimizer makes of the chosen rows, in a dtype."""
    param = torch.nn.Parameter(t["param"].to(dtype)[rows].clone())
    param.grad = t["values"].to(dtype)
    first, second, most = (t[n].to(dtype)[rows].clone() for n in ("first", "second", "most"))
    if name == "rowsparse_sgd_":
        optimizer = torch.optim.SGD([param], **numbers, foreach=False)
        optimizer.state[param] = {"momentum_buffer": first} if numbers["momentum"] else {}
    else:
        n = {k: v for k, v in numbers.items() if k not in ("beta1", "beta2", "decoupled")}
        betas = numbers["beta1"], numbers["beta2"]
        kind = torch.optim.AdamW if numbers["decoupled"] else torch.optim.Adam
        optimizer = kind([param], betas=betas, amsgrad=amsgrad, **n, foreach=False)
        state = {"step": torch.tensor(6.0), "exp_avg": first, "exp_avg_sq": second}
        optimizer.state[param] = state | ({"max_exp_avg_sq": most} if amsgrad else {})
    optimizer.step()
    return {"param": param.detach(), "first": first, "second": second, "most": most}


def compact(t: dict[str, Tensor], rows: Tensor) -> dict[str, Tensor]:
    """The same with a state of the chosen rows alone, in the memory format of the parameter."""
    last = not t["param"].is_contiguous() and t["param"].is_contiguous(memory_format=torch.channels_last)
    form = torch.channels_last if last else torch.contiguous_format
    return t | {n: t[n][rows].contiguous(memory_format=form) for n in ("first", "second", "most")}


def check(name: str, case: Case, numbers: dict, amsgrad: bool = False) -> None:
    """The chosen rows as right as torch's in that dtype, the others untouched, the strides kept; the same with a state of those
    rows alone, and with a gradient of all."""
    rows, start = torch.tensor(case.rows, device=case.device).long(), case.tensors()
    ours = {n: case.laid_out(x) if n != "values" else x for n, x in start.items()}
    strides = {n: x.stride() for n, x in ours.items()}
    others = [i for i in range(case.shape[0]) if i not in case.rows]
    parts = compact({n: case.laid_out(x) if n != "values" else x for n, x in start.items()}, rows)
    run_ours(name, ours, rows, numbers, amsgrad, case.step_device)
    if case.layout == "contiguous":  # and the gradient of all rows
        parts["values"] = torch.zeros_like(parts["param"]).index_copy_(0, rows, parts["values"])
    run_ours(name, parts, rows, numbers, amsgrad, case.step_device)
    torch.testing.assert_close(parts["param"], ours["param"], **CLOSE.get(case.dtype, {}))
    for n in ("first", "second", "most"):
        torch.testing.assert_close(parts[n], ours[n][rows], **CLOSE.get(case.dtype, {}))
    assert torch.equal(parts["param"][others], start["param"][others])
    stock, exact = (run_torch(name, start, rows, numbers, dtype, amsgrad) for dtype in (case.dtype, torch.float64))
    for n in ("param", "first", "second", "most"):
        torch.testing.assert_close(ours[n][rows].double(), exact[n], **CLOSE.get(case.dtype, {}))
        if exact[n].numel() >= FEW and case.dtype != torch.float64:
            assert_as_right_as_stock(ours[n][rows], stock[n], exact[n])
        assert torch.equal(ours[n][others], start[n][others])
        assert ours[n].stride() == strides[n]


def some_rows(out: int) -> list[int]:
    return list(range(0, out, 2)) or [0]


@pytest.mark.pairs
@pytest.mark.op("rowsparse_sgd_")
@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "sliced"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_every_shape_and_layout(shape, layout, backend):
    for dtype in INTERPRETED if backend == "triton" else ops.DTYPES:
        for name, numbers in zip(OPS, (SGD, ADAM), strict=True):
            check(name, Case(shape, dtype, some_rows(shape[0]), layout), numbers, amsgrad=True)


@pytest.mark.gpu
@pytest.mark.op("rowsparse_adam_")
@pytest.mark.parametrize("device", ["cuda"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_on_a_gpu(shape, device, backend):
    """With the step count on either side, as ``fused`` has it."""
    for dtype in ops.DTYPES:
        for layout in ("contiguous", "channels_last", "sliced"):
            for step_device in ("cpu", device):
                case = Case(shape, dtype, some_rows(shape[0]), layout, device, step_device)
                check("rowsparse_sgd_", case, SGD)
                check("rowsparse_adam_", case, ADAM, amsgrad=True)


@pytest.mark.op("rowsparse_sgd_")
@pytest.mark.parametrize("numbers", SGDS, ids=lambda n: str(list(n.values())))
def test_sgd_with_every_argument(numbers, backend):
    for dtype in INTERPRETED if backend == "triton" else ops.DTYPES:
        check("rowsparse_sgd_", Case((6, 400), dtype, [0, 3, 5]), numbers)


@pytest.mark.op("rowsparse_adam_")
@pytest.mark.parametrize("amsgrad", [False, True])
@pytest.mark.parametrize("numbers", ADAMS, ids=lambda n: str(list(n.values())))
def test_adam_with_every_argument(numbers, amsgrad, backend):
    for dtype in INTERPRETED if backend == "triton" else ops.DTYPES:
        check("rowsparse_adam_", Case((6, 400), dtype, [0, 3, 5]), numbers, amsgrad)


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_any_rows_of_any_shape(data):
    shape = data.draw(st.integers(1, 12)), *data.draw(st.lists(st.integers(1, 12), max_size=3))
    rows = sorted(data.draw(st.sets(st.integers(0, shape[0] - 1))))
    layout, dtype = (
        data.draw(st.sampled_from(["contiguous", "channels_last", "sliced"])),
        data.draw(st.sampled_from(ops.DTYPES)),
    )
    torch.manual_seed(data.draw(st.integers(0, 99)))
    for name in ("native", "emulated", "reference"):
        if obstacle_to("rowsparse_sgd_", name) is None:
            with on_backend(name):
                check("rowsparse_sgd_", Case(shape, dtype, rows, layout), data.draw(st.sampled_from(SGDS)))
                check("rowsparse_adam_", Case(shape, dtype, rows, layout), data.draw(st.sampled_from(ADAMS)), True)


@pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")  # inf - inf in the interpreter's NumPy
@pytest.mark.op("rowsparse_adam_")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_inf_and_nan_reach_what_they_reach_in_torch(dtype, backend):
    if backend == "triton" and dtype == torch.bfloat16:
        pytest.skip("Triton's interpreter is wrong in bfloat16")
    case, rows = Case((3, 40), dtype, [0, 2]), torch.tensor([0, 2])
    for name, numbers in zip(OPS, (SGD, ADAM | dict(weight_decay=0.0)), strict=True):
        t = case.tensors()
        t["values"][0, :3] = torch.tensor([float("inf"), -float("inf"), float("nan")])
        t["param"][2, 5], t["most"][2, 6], t["second"][0, 7] = float("inf"), float("nan"), float("nan")
        stock = run_torch(name, t, rows, numbers, dtype, amsgrad=True)
        run_ours(name, t, rows, numbers, amsgrad=True)
        for n, wanted in stock.items():
            assert torch.equal(t[n][rows].isnan(), wanted.isnan()), (name, n)
            assert torch.equal(t[n][rows].isinf(), wanted.isinf()), (name, n)


@pytest.mark.op("rowsparse_adam_")
def test_adam_counts_its_step(backend):
    for dtype in (torch.float32, torch.float64):
        step, t = torch.tensor(4.0, dtype=dtype), Case((3, 4), torch.float32, [1]).tensors()
        ops.rowsparse_adam_(
            t["param"], t["first"], t["second"], None, step, torch.tensor([1]), t["values"], 0.1, 0.9, 0.99, 1e-8
        )
        assert step.item() == 5


@pytest.mark.parametrize("name", OPS)
def test_same_bits_whatever_the_number_of_threads(name):
    if obstacle := obstacle_to(name, "native"):
        pytest.skip(obstacle)
    numbers, start = SGD if name == OPS[0] else ADAM, Case((64, 3000), torch.float32, list(range(64))).tensors()
    threads, results = torch.get_num_threads(), []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            ours = {n: x.clone() for n, x in start.items()}
            run_ours(name, ours, torch.arange(64), numbers)
            results.append(ours)
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        assert all(torch.equal(results[0][n], other[n]) for n in other)


# ---- what PyTorch asks of an op --------------------------------------------------------------------------------------


def arguments(name: str, shape=(6, 50), layout="contiguous") -> tuple:
    t, rows = Case(shape, torch.float32, [0, 3], layout).tensors(), torch.tensor([0, 3])
    if name == "rowsparse_sgd_":
        return t["param"], t["first"], rows, t["values"], *SGD.values()
    return t["param"], t["first"], t["second"], None, torch.tensor(2.0), rows, t["values"], *ADAM.values()


@pytest.mark.pairs
@pytest.mark.op("rowsparse_sgd_")
@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "sliced"])
@pytest.mark.parametrize("name", OPS)
def test_opcheck(name, layout, backend):
    torch.library.opcheck(getattr(torch.ops.wuskern, name).default, arguments(name, (6, 4, 3, 2), layout))


@pytest.mark.parametrize("name", OPS)
def test_opcheck_of_the_compiled_op(name):
    if obstacle := obstacle_to(name, "native"):
        pytest.skip(obstacle)
    for layout in ("contiguous", "channels_last"):
        torch.library.opcheck(getattr(torch.ops.wuskern_native, name).default, arguments(name, (6, 4, 3, 2), layout))


@pytest.mark.op("rowsparse_sgd_")
@pytest.mark.parametrize("name", OPS)
def test_what_is_written_counts_as_changed_in_place(name, backend):
    given = arguments(name)
    getattr(ops, name)(*given)
    written = given[:2] if name == "rowsparse_sgd_" else (*given[:3], given[4])
    assert all(t._version > 0 for t in written)
    weight = torch.randn(6, 50, requires_grad=True)
    y = weight.exp().sum() + (weight * weight).sum()
    getattr(ops, name)(weight.detach(), *arguments(name)[1:])
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.backward()


def test_flops():
    for name, expected in zip(OPS, (2 * 50 * 7, 2 * 50 * 15), strict=True):  # two rows of 50
        with FlopCounterMode(display=False) as counter:
            getattr(ops, name)(*arguments(name))
        assert counter.get_total_flops() == expected


# ---- bad input -------------------------------------------------------------------------------------------------------


def replaced(name: str, **wrong) -> tuple:
    names = [a.name for a in getattr(torch.ops.wuskern, name).default._schema.arguments]
    return tuple(wrong.get(n, value) for n, value in zip(names, arguments(name), strict=True))


@pytest.mark.parametrize("name", OPS)
def test_wrong_arguments(name):
    call, state = getattr(ops, name), "momentum_buffer" if name == "rowsparse_sgd_" else "exp_avg_sq"
    for wrong, error, message in [
        (dict(param=torch.zeros(6, 50).int()), TypeError, "param: expected float64, float32"),
        (dict(param=torch.tensor(1.0)), ValueError, "param: expected at least one dimension, got none"),
        (dict(rows=torch.tensor([0, 3]).int()), TypeError, "rows: expected int64, got torch.int32"),
        (dict(rows=torch.arange(7)), ValueError, "rows: expected at most 6, as many as param has, got 7"),
        (dict(values=torch.zeros(2, 50).half()), TypeError, "values: expected torch.float32 as param has, got torch.float16"),
        (dict(values=torch.zeros(3, 50)), ValueError, r"values: expected \[2, 50\], got \[3, 50\]"),
        ({state: torch.zeros(5, 50)}, ValueError, rf"{state}: expected \[6, 50\], got \[5, 50\]"),
        ({state: torch.zeros(6, 50).double()}, TypeError, f"{state}: expected torch.float32 as param has"),
        ({state: torch.zeros(6, 50, device="meta")}, ValueError, f"{state}: expected it on cpu as param is, got meta"),
        (dict(lr=-0.1), ValueError, r"lr: expected at least 0, got -0\.1"),
        (dict(lr="0.1"), TypeError, "lr: expected a number, got '0.1'"),
        (dict(weight_decay=float("nan")), ValueError, "weight_decay: expected at least 0, got nan"),
        (dict(maximize=1), TypeError, "maximize: expected True or False, got 1"),
    ]:
        with pytest.raises(error, match=message):
            call(*replaced(name, **wrong))


@pytest.mark.op("rowsparse_sgd_")
@pytest.mark.parametrize("name", OPS)
def test_one_memory_for_two_is_refused(name, backend):
    param = torch.zeros(6, 50)
    state = "momentum_buffer" if name == "rowsparse_sgd_" else "exp_avg"
    with pytest.raises(ValueError, match="param: expected it, its state, rows and values in memory of their own"):
        getattr(ops, name)(*replaced(name, param=param, **{state: param}))


@pytest.mark.parametrize("name", ["beta1", "beta2"])
@pytest.mark.parametrize("value", [-0.1, 1, float("nan")])
def test_betas_below_one(name, value):
    with pytest.raises(ValueError, match=f"{name}: expected at least 0 and less than 1, got {value}"):
        ops.rowsparse_adam_(*replaced("rowsparse_adam_", **{name: value}))


def test_momentum_without_a_buffer():
    with pytest.raises(ValueError, match=r"momentum: expected 0 without a momentum_buffer, got 0\.9"):
        ops.rowsparse_sgd_(*replaced("rowsparse_sgd_", momentum_buffer=None))


def test_wrong_steps():
    with pytest.raises(TypeError, match=r"step: expected float32 or float64, got torch.int64"):
        ops.rowsparse_adam_(*replaced("rowsparse_adam_", step=torch.tensor(2)))
    with pytest.raises(ValueError, match=r"step: expected one number, got \[2\]"):
        ops.rowsparse_adam_(*replaced("rowsparse_adam_", step=torch.zeros(2)))


@pytest.mark.op("rowsparse_sgd_")
@pytest.mark.parametrize("row", [-1, 6, 2**40])
@pytest.mark.parametrize("name", OPS)
def test_rows_out_of_range_are_refused_before_anything_is_written(name, row, backend):
    if backend == "emulated":
        pytest.skip("undefined on a GPU")
    given = replaced(name, rows=torch.tensor([0, row]))
    before = [t.clone() if isinstance(t, Tensor) else t for t in given]
    with pytest.raises((RuntimeError, IndexError)):
        getattr(ops, name)(*given)
    assert all(torch.equal(t, b) for t, b in zip(given, before, strict=True) if isinstance(t, Tensor))


def test_the_compiled_ops_guard_their_memory():
    if obstacle := obstacle_to("rowsparse_sgd_", "native"):
        pytest.skip(obstacle)
    for name in OPS:
        state = "momentum_buffer" if name == "rowsparse_sgd_" else "exp_avg"
        for wrong in [
            dict(param=torch.zeros(6, 50).int()), dict(param=torch.zeros(50, 6).t()), {state: torch.zeros(5, 50)},
            {state: torch.zeros(6, 100)[:, ::2]}, {state: torch.zeros(6, 50).half()}, dict(values=torch.zeros(3, 50)),
            dict(values=torch.zeros(2, 50).double()), dict(rows=torch.tensor([0, 3]).int()), dict(step=torch.tensor(3)),
            dict(rows=torch.tensor([3, 0])), dict(rows=torch.tensor([3, 3])), {state: torch.zeros(6, 25, 2)},
        ]:  # fmt: skip
            if "step" in wrong and name == "rowsparse_sgd_":
                continue
            with pytest.raises(RuntimeError, match=r"(param|state|values|rows|step|dy): expected"):
                getattr(torch.ops.wuskern_native, name)(*replaced(name, **wrong))


@pytest.mark.parametrize("name", OPS)
def test_the_compiled_ops_refuse_an_index_in_what_they_write(name):
    """Or a gradient there: it would change after it was looked at."""
    if obstacle := obstacle_to("rowsparse_sgd_", "native"):
        pytest.skip(obstacle)
    param = torch.zeros(6, 50, dtype=torch.float64)
    param.view(torch.int64)[0, :2] = torch.tensor([0, 3])
    state = "momentum_buffer" if name == "rowsparse_sgd_" else "exp_avg"
    wide = {n: torch.zeros(6, 50).double() for n in ("momentum_buffer", "exp_avg", "exp_avg_sq")}
    wide |= dict(values=torch.zeros(2, 50).double())
    for owner in ("param", state):
        given = wide | dict(param=torch.zeros(6, 50).double()) | {owner: param}
        for wrong in (dict(rows=param.view(torch.int64)[0, :2]), dict(values=param[2:4])):
            with pytest.raises(RuntimeError, match=f"{next(iter(wrong))}: expected other memory than that of"):
                getattr(torch.ops.wuskern_native, name)(*replaced(name, **given | wrong))
