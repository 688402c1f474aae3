"""A product of the chosen rows by the way chosen for it: the library's way, and the run."""

import pytest
import torch

from tests.cases import Conv
from tests.rowsparse import (
    LINEARS,
    NUMERIC,
    assert_near,
    conv_tensors,
    integers,
    library_rounds,
    some_rows,
    stock_dgrad,
    stock_wgrad,
)
from wuskern import ops
from wuskern.common.shapes import memory_format
from wuskern.kernels import backends, reference
from wuskern.kernels.cuda import library, rule


@pytest.mark.parametrize("packed", [False, True], ids=["whole", "packed"])
@pytest.mark.parametrize("shape", LINEARS, ids=str)
def test_the_library_multiplies_a_linears_rows(shape, packed):
    tokens, out, inputs = shape
    rows = some_rows(out, max(1, out // 3))
    dy, x, weight = integers(tokens, out), integers(tokens, inputs), integers(out, inputs)
    given_dy = dy[:, rows] if packed else dy
    for op, other in (("rowsparse_wgrad", x), ("rowsparse_dgrad", weight)):
        ours = library.runner(op, reference.gather_rows)(given_dy, other, rows)
        assert torch.equal(ours, getattr(reference, op)(dy, other, rows))


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
@pytest.mark.parametrize("case", NUMERIC, ids=str)
def test_the_library_convolves_the_chosen_rows(case, layout):
    t = conv_tensors(case, torch.float32, layout)
    wgrad = t.dy, t.x, t.rows, t.weight.shape[2:], *t.geometry
    dgrad = t.dy, t.weight, t.rows, t.x.shape[2:], *t.geometry
    dw = library.runner("rowsparse_wgrad_conv2d", reference.gather_rows)(*wgrad)
    dx = library.runner("rowsparse_dgrad_conv2d", reference.gather_rows)(*dgrad)
    assert torch.equal(dw, stock_wgrad(t))
    assert torch.equal(dx, stock_dgrad(t))
    assert dw.is_contiguous()
    assert dx.is_contiguous(memory_format=memory_format(t.dy))


def test_the_chosen_way_runs_and_gets_the_arguments(monkeypatch):
    seen = []
    runs = {way: lambda *a, way=way: seen.append((way, a)) for way in rule.WAYS}
    monkeypatch.setattr(backends, "ways", lambda op, device: (runs, []))
    arguments = torch.ones(4, 6), torch.ones(4, 3), torch.tensor([1, 2])
    for way in rule.WAYS:
        monkeypatch.setattr(rule, "choose", lambda *a, way=way: rule.Decision(way, "", {}))
        backends._by_problem("rowsparse_wgrad").run(*arguments)
    assert [way for way, _ in seen] == list(rule.WAYS)
    assert all(a == arguments for _, a in seen)


@pytest.mark.parametrize("shapes", [((0, 6), (0, 3), 2), ((4, 6), (4, 0), 2), ((4, 6), (4, 3), 0)], ids=str)
def test_nothing_to_multiply_is_a_way_too(monkeypatch, shapes):
    monkeypatch.setattr(backends, "ways", lambda op, device: ({way: lambda *_, way=way: way for way in rule.WAYS[1:]}, []))
    dy, x, k = shapes
    assert backends._by_problem("rowsparse_wgrad").run(torch.ones(dy), torch.ones(x), torch.arange(k)) == "triton"


@pytest.mark.parametrize("there", [("native", "triton"), ("triton",), ("native",), ()])
def test_a_gpu_takes_the_ways_that_there_are(monkeypatch, there):
    found = {n: (lambda op, device, n=n: print if n in there else f"no {n} here") for n in ("native", "triton")}
    for name, run in found.items():
        monkeypatch.setitem(backends._BACKENDS, name, run)
    taken = backends._choose.__wrapped__("rowsparse_wgrad", "cuda", None)
    assert taken.backend == (there[0] if there else "reference")
    for name in ("native", "triton"):
        assert (f"not {name}: no {name} here" in taken.reason) == (name not in there)
    if there:
        assert taken.reason.startswith(f"{' or '.join((*there, 'library'))}, by the problem")


# ---- every way ------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("exact_libraries")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
@pytest.mark.parametrize("way", [*rule.WAYS, "chosen"])
def test_every_way_is_right(way, layout, dtype, device):
    """Of small integers, whose sums our kernels have exactly, up to the rounding of the result."""
    t = conv_tensors(Conv("3x3", 4, 16, 48, 12, 3, padding=1), dtype, layout, k=8)
    dy, x, weight, rows = (tensor.to(device) for tensor in (t.dy, t.x, t.weight, t.rows))
    calls = {
        "rowsparse_wgrad": (dy[:, :, 0, 0], x[:, :, 0, 0], rows),
        "rowsparse_dgrad": (dy[:, :, 0, 0], weight[:, :, 0, 0], rows),
        "rowsparse_wgrad_conv2d": (dy, x, rows, (3, 3), *t.geometry),
        "rowsparse_dgrad_conv2d": (dy, weight, rows, x.shape[2:], *t.geometry),
    }
    for op, arguments in calls.items():
        runs = {"chosen": getattr(ops, op)} | backends.ways(op, device)[0]
        if way not in runs or (way == "triton" and device == "cpu" and dtype is torch.bfloat16):  # wrong in the interpreter
            continue
        found, (a, b, *rest) = runs[way](*arguments), arguments
        exact = getattr(reference, op)(a.double(), b.double(), *rest)
        rounds = device == "cpu" and op.endswith("conv2d") and library_rounds(dtype)
        if not rounds and (device == "cpu" or way in ("native", "triton")):
            assert torch.equal(found, exact.to(dtype)), op
        else:
            assert_near(found, exact, getattr(reference, op)(a.double().abs(), b.double().abs(), *rest))
