"""What only a GPU shows: each op on each backend in streams, on devices, in graphs, and beyond 32 bits.

Numbers are small integers: every sum is exact in float32 in any order, and is rounded once. The problems run on the CPU,
too, so that a mistake in them shows where there is no GPU.
"""

import contextlib
import itertools
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn as nn
from torch import Tensor

import wuskern as wk
from tests.accuracy import assert_all_as_right
from tests.fuzz import right_calls
from tests.rowsparse import DTYPES, assert_near, integers, kernel_of, some_rows
from wuskern import ops
from wuskern.kernels import backends, reference
from wuskern.kernels.problem import OPS as PRODUCTS

GPU = pytest.mark.gpu
DEVICES = ["cpu", pytest.param("cuda", marks=GPU)]
LAYOUT = {"NCHW": torch.contiguous_format, "NHWC": torch.channels_last}


@dataclass(frozen=True)
class Problem:
    """An op, and a function of a dtype that makes its arguments on the CPU."""

    op: str
    name: str
    make: Callable[[torch.dtype], tuple[Any, ...]]

    def __str__(self) -> str:
        return f"{self.op} {self.name}"

    def arguments(self, dtype: torch.dtype, device: Any) -> tuple[Any, ...]:
        torch.manual_seed(3)
        return tuple(a.to(device) if isinstance(a, Tensor) else a for a in self.make(dtype))


def run(op: str, arguments: tuple[Any, ...]) -> list[Tensor]:
    """What it returns, and, of an op that writes to its arguments, these."""
    found = getattr(ops, op)(*arguments)
    returned = found if isinstance(found, tuple) else () if found is None else (found,)
    return [*returned, *(a for a in arguments if op.endswith("_") and isinstance(a, Tensor))]


def expected(op: str, arguments: tuple[Any, ...]) -> list[Tensor]:
    """The reference's answer in float64, on the CPU."""
    wide = [a.cpu().double() if isinstance(a, Tensor) and a.is_floating_point() else a for a in arguments]
    wide = [a.cpu() if isinstance(a, Tensor) else a for a in wide]
    with backends.backend("reference"):
        return run(op, tuple(wide))


def grad(*shape: int, layout: str = "NCHW") -> Callable[[torch.dtype], Tensor]:
    def make(dtype: torch.dtype) -> Tensor:
        t = integers(*shape, dtype=dtype)
        return t.contiguous(memory_format=LAYOUT[layout]) if t.ndim == 4 else t

    return make


def linear(tokens: int, n: int, features: int, k: int, other: str) -> Callable[[torch.dtype], tuple[Any, ...]]:
    size = (tokens, features) if other == "x" else (n, features)
    return lambda dtype: (integers(tokens, n, dtype=dtype), integers(*size, dtype=dtype), some_rows(n, k))


def conv(layout: str, other: str, k: int = 8, stride: int = 1, groups: int = 1, channels: int = 16):
    """64 output channels, 3 x 3, padding 1, 20 x 24 pixels."""
    geometry = (stride, stride), (1, 1), (1, 1), groups
    out = (20 - 1) // stride + 1, (24 - 1) // stride + 1

    def make(dtype: torch.dtype) -> tuple[Any, ...]:
        dy, rows = grad(3, 64, *out, layout=layout)(dtype), some_rows(64, k, groups)
        if other == "x":
            return dy, grad(3, channels, 20, 24, layout=layout)(dtype), rows, (3, 3), *geometry
        return dy, integers(64, channels // groups, 3, 3, dtype=dtype), rows, (20, 24), *geometry

    return make


def adam(dtype: torch.dtype) -> tuple[Any, ...]:
    like = [integers(40, 72, dtype=dtype), *(torch.zeros(40, 72, dtype=dtype) for _ in range(2))]
    rest = torch.zeros(()), some_rows(40, 5), integers(5, 72, dtype=dtype)
    return *like, None, *rest, 1e-3, 0.9, 0.999, 1e-8, 0.01, True, False


def relu6(dtype: torch.dtype) -> tuple[Any, ...]:
    x = grad(5, 24, 17, 19, layout="NHWC")(dtype)
    return torch.empty_like(x), x, 0.0, 6.0, True, None


def some_bits(elements: int) -> Tensor:
    return torch.randint(0, 256, (elements // 8,), dtype=torch.uint8)


def wide_of(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


def small(op: str) -> Callable[[torch.dtype], tuple[Any, ...]]:
    """A call that the fuzzer draws, and that is not empty: for an op without a problem of its own."""

    def make(dtype: torch.dtype) -> tuple[Any, ...]:
        drawn = (right_calls.OF[op](random.Random(seed)) for seed in itertools.count())
        arguments = next(arguments for arguments in drawn if arguments[0].numel())
        return tuple(a.to(dtype) if isinstance(a, Tensor) and a.is_floating_point() else a for a in arguments)

    return make


OWN = [
    Problem("bias_grad", "tokens", lambda d: (grad(3000, 130)(d), -1)),
    Problem("bias_grad", "NCHW", lambda d: (grad(5, 24, 17, 19)(d), 1)),
    Problem("row_stats", "tokens", lambda d: (grad(3000, 136)(d), -1, "l1")),
    Problem("row_stats", "NHWC", lambda d: (grad(5, 24, 17, 19, layout="NHWC")(d), 1, "l1")),
    Problem("select_rows", "few", lambda d: (integers(1000, dtype=d), 50, 1, 1)),
    Problem("select_rows", "many, blocks, groups", lambda d: (integers(2**15, dtype=d), 1024, 8, 4)),
    Problem("top_rows", "tokens", lambda d: (grad(3000, 136)(d), -1, "l1", 7, 1, 1)),
    Problem("top_rows", "NCHW, blocks, groups", lambda d: (grad(5, 24, 16, 18)(d), 1, "l2", 8, 2, 2)),
    Problem("gather_rows", "tokens", lambda d: (grad(1000, 130)(d), some_rows(130, 9), -1)),
    Problem("gather_rows", "NCHW", lambda d: (grad(5, 24, 17, 19)(d), some_rows(24, 5), 1)),
    Problem("rowsparse_wgrad", "aligned", linear(1024, 256, 512, 16, "x")),
    Problem("rowsparse_wgrad", "odd", linear(1000, 123, 77, 13, "x")),
    Problem("rowsparse_dgrad", "aligned", linear(1024, 256, 512, 16, "weight")),
    Problem("rowsparse_dgrad", "odd", linear(1000, 123, 77, 13, "weight")),
    *(
        Problem(f"rowsparse_{what}_conv2d", f"{layout}{name}", conv(layout, other, **options))
        for what, other in (("wgrad", "x"), ("dgrad", "weight"))
        for layout in LAYOUT
        for name, options in (("", {}), (" strided", {"stride": 2}), (" groups", {"groups": 4}), (" stem", {"channels": 3}))
    ),
    Problem("rowsparse_adam_", "AdamW", adam),
    Problem("pack_bits", "NHWC", lambda d: (grad(5, 24, 17, 19, layout="NHWC")(d), 0.0, 2.0, True)),
    Problem("piecewise_", "NHWC", relu6),
    Problem("scale_by_bits", "NHWC", lambda d: (grad(5, 24, 16, 19, layout="NHWC")(d), some_bits(5 * 24 * 16 * 19), 2.0, -0.5)),
    Problem("scale_channels", "NCHW", lambda d: (grad(5, 24, 17, 19)(d), integers(24, dtype=wide_of(d)), 1)),
]
PROBLEMS = [*OWN, *(Problem(op, "small", small(op)) for op in ops.NAMES if op not in {problem.op for problem in OWN})]
problems = pytest.mark.parametrize("problem", PROBLEMS, ids=str)


@pytest.fixture(autouse=True)
def _libraries(exact_libraries):
    """For what a library does."""


@pytest.fixture
def kernel(problem, backend, device, request):
    if (backend, device) == ("triton", "cpu"):
        pytest.skip("tests/kernels/triton runs the interpreter")
    with kernel_of(problem.op, backend, request, device):
        yield


@pytest.fixture(params=["cuda"])
def device(request):
    return request.param


def by_a_gpus_library(op: str, tensors: list[Tensor]) -> bool:
    """Whether cuBLAS or cuDNN multiplies, which need not be exact of integers: Winograd's transforms have fractions."""
    return op in PRODUCTS and tensors[0].is_cuda and backends.choose(op, "cuda").backend == "reference"


def assert_right(op: str, found: list[Tensor], arguments: tuple[Any, ...]) -> None:
    magnitudes = expected(op, tuple(a.abs() if isinstance(a, Tensor) else a for a in arguments))
    for ours, exact, magnitude in zip(found, expected(op, arguments), magnitudes, strict=True):
        if op.endswith("_"):  # roots and quotients: not exact
            torch.testing.assert_close(ours.cpu(), exact.to(ours.dtype), check_dtype=False)
        elif by_a_gpus_library(op, found):
            assert_near(ours, exact, magnitude)
        else:
            assert torch.equal(ours.cpu(), exact.to(ours.dtype))


# ---- right, and the same each time ----------------------------------------------------------------------------------


@pytest.mark.pairs
@problems
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("device", DEVICES, indirect=True)
def test_every_op_is_right(problem, dtype, kernel, device):
    arguments = problem.arguments(dtype, device)
    assert_right(problem.op, run(problem.op, arguments), problem.arguments(dtype, "cpu"))


@problems
@pytest.mark.parametrize("device", DEVICES, indirect=True)
def test_the_same_bits_twice(problem, kernel, device):
    def drawn() -> tuple[Any, ...]:
        torch.manual_seed(5)
        arguments = problem.arguments(torch.float32, device)
        return tuple(torch.rand_like(a) if isinstance(a, Tensor) and a.is_floating_point() else a for a in arguments)

    once, again = run(problem.op, drawn()), run(problem.op, drawn())
    assert all(torch.equal(a, b) for a, b in zip(once, again, strict=True))


@pytest.mark.parametrize("scope", ["weight", "both"])
@pytest.mark.parametrize("layout", LAYOUT)
@pytest.mark.parametrize("dtype", DTYPES[1:], ids=str)
@pytest.mark.parametrize("device", DEVICES, indirect=True)
def test_a_layer_learns_from_its_rows(dtype, layout, scope, device):
    """Against float64 on the CPU by the reference, and stock's error on the same device."""
    x = torch.rand(4, 16, 12, 12).sub(0.5)
    model = nn.Sequential(nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, 8, 1), nn.Flatten(), nn.Linear(1152, 10))
    wk.convert(model)
    rows = [wk.Rows(some_rows(n, k), scope=scope) for n, k in ((32, 8), (8, 3), (10, 4))]

    def gradients(dtype: torch.dtype, device: str, rows: list[wk.Rows]) -> dict[str, Tensor]:
        model.to(device, dtype)
        for layer, chosen in zip(wk.modules.skippable_layers(model).values(), rows, strict=True):
            layer.rows = chosen
        model.zero_grad()
        model(x.to(device, dtype).contiguous(memory_format=LAYOUT[layout])).square().sum().backward()
        return {name: p.grad.cpu() for name, p in model.named_parameters()}

    with backends.backend("reference"):
        exact = gradients(torch.float64, "cpu", rows)
        stock = gradients(dtype, device, rows)
    assert_all_as_right(gradients(dtype, device, rows), stock, exact)


# ---- streams, devices, graphs ---------------------------------------------------------------------------------------


def late_stream(device: str) -> contextlib.AbstractContextManager[None]:
    """Another stream, whose work starts late. On the CPU nothing: the test itself is tried."""
    if device == "cpu":
        return contextlib.nullcontext()
    torch.cuda.synchronize()
    stack = contextlib.ExitStack()
    stack.enter_context(torch.cuda.stream(torch.cuda.Stream()))
    torch.cuda._sleep(20_000_000)
    stack.callback(torch.cuda.synchronize)
    return stack


def capture(op: str, arguments: tuple[Any, ...]) -> tuple[list[Tensor], Callable[[], None]]:
    """What a graph of the op writes to, and its replay. On the CPU: the op again, on what its arguments hold then."""
    if arguments[0].is_cpu:
        found = run(op, arguments)

        def replay() -> None:
            for ours, again in zip(found, run(op, arguments), strict=True):
                ours.copy_(again)

        return found, replay
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = run(op, arguments)
    return found, graph.replay


def skip_all_but_one_on_the_cpu(backend: str, device: str) -> None:
    if device == "cpu" and backend != "native":
        pytest.skip("one backend shows whether the test itself is right")


@problems
@pytest.mark.parametrize("device", DEVICES, indirect=True)
def test_a_side_stream(problem, backend, kernel, device):
    """What an op reads was written by its own stream, late; on another stream it would read what was there before."""
    skip_all_but_one_on_the_cpu(backend, device)
    right, arguments = problem.arguments(torch.float32, device), problem.arguments(torch.float32, device)
    tensors = [(a, b) for a, b in zip(arguments, right, strict=True) if isinstance(a, Tensor) and a.is_floating_point()]
    run(problem.op, problem.arguments(torch.float32, device))  # compiled, loaded
    for a, _ in tensors:
        a.zero_()
    with late_stream(device):
        for a, b in tensors:
            a.copy_(b)
        found = run(problem.op, arguments)
    assert_right(problem.op, found, problem.arguments(torch.float32, "cpu"))


@GPU
@problems
def test_another_device(problem, kernel, device):
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two GPUs")
    arguments = problem.arguments(torch.float32, "cuda:1")
    with torch.cuda.device(0):
        found = run(problem.op, arguments)
    assert {t.device.index for t in found if t.is_cuda} == {1}
    assert_right(problem.op, found, problem.arguments(torch.float32, "cpu"))


@problems
@pytest.mark.parametrize("device", DEVICES, indirect=True)
def test_a_graph_reads_its_inputs_again(problem, backend, kernel, device):
    skip_all_but_one_on_the_cpu(backend, device)
    if problem.op.endswith("_"):
        pytest.skip("row updates are refused in graphs: the step count is the host's")
    arguments = problem.arguments(torch.float32, device)
    run(problem.op, arguments)
    found, replay = capture(problem.op, arguments)
    for _ in range(2):
        for a in arguments:
            if isinstance(a, Tensor) and a.is_floating_point():
                a.copy_(integers(*a.shape).to(a))
        replay()
        assert_right(problem.op, found, arguments)


# ---- more than 2^31 elements ----------------------------------------------------------------------------------------


def pattern(*shape: int, device: str) -> Tensor:
    """bfloat16 from -3 to 3, which repeats where no size of ours does."""
    t = torch.empty(shape, dtype=torch.bfloat16, device=device)
    flat = t.view(-1)
    piece = torch.arange(7 * 2**20, device=device).remainder_(7).sub_(3).bfloat16()
    for start in range(0, flat.numel(), len(piece)):
        part = flat[start : start + len(piece)]
        part.copy_(piece[: len(part)])
    return t


def huge(op: str, tokens: int, n: int, device: str) -> tuple[tuple[Any, ...], Callable[[Tensor], list[Tensor]]]:
    """Arguments, and the answer of a part of the tokens."""
    dy, rows = pattern(tokens, n, device=device), torch.tensor([0, 1, n // 2, n - 1], device=device)
    if op == "bias_grad":
        return (dy, -1), lambda part: [dy[part].double().sum(0)]
    if op == "row_stats":
        return (dy, -1, "l1"), lambda part: [dy[part].double().sum(0), dy[part].double().abs().sum(0)]
    x = pattern(tokens, 24, device=device)
    return (dy, x, rows), lambda part: [reference.rowsparse_wgrad(dy[part].double(), x[part].double(), rows)]


@pytest.mark.parametrize("backend", ["native", "triton"])
@pytest.mark.parametrize("op", ["bias_grad", "row_stats", "rowsparse_wgrad"])
@pytest.mark.parametrize("device", DEVICES, indirect=True)
def test_more_elements_than_32_bits_count(op, backend, device, request):
    tokens, n = (2**20 + 7, 2050) if device == "cuda" else (1000, 50)
    if device == "cpu" and backend == "triton":
        pytest.skip("tests/kernels/triton runs the interpreter")
    if device == "cuda" and torch.cuda.mem_get_info()[0] < 24 * 2**30:
        pytest.skip("needs 24 GiB of free GPU memory")
    arguments, answer = huge(op, tokens, n, device)
    with kernel_of(op, backend, request, device):
        found = run(op, arguments)
    parts = [answer(slice(start, start + 2**16)) for start in range(0, tokens, 2**16)]
    for ours, *exact in zip(found, *parts, strict=True):
        right = sum(exact)
        scale = right.abs().max().clamp(min=tokens)  # float32 sums of a million: not exact any more
        assert (ours.double() - right).abs().max() <= scale * torch.finfo(ours.dtype).eps


@pytest.mark.parametrize("backend", ["native", "triton"])
@pytest.mark.parametrize("device", DEVICES, indirect=True)
def test_gathering_and_an_input_gradient_beyond_32_bits(backend, device, request):
    tokens, n = (2**20 + 7, 2050) if device == "cuda" else (1000, 50)
    if device == "cpu" and backend == "triton":
        pytest.skip("tests/kernels/triton runs the interpreter")
    if device == "cuda" and torch.cuda.mem_get_info()[0] < 24 * 2**30:
        pytest.skip("needs 24 GiB of free GPU memory")
    dy, rows = pattern(tokens, n, device=device), torch.tensor([0, 3, n // 2, n - 1], device=device)
    with kernel_of("gather_rows", backend, request, device):
        gathered = ops.gather_rows(dy, rows, -1)
    assert torch.equal(gathered, dy.index_select(1, rows))
    del dy
    weight = pattern(n, n, device=device)
    with kernel_of("rowsparse_dgrad", backend, request, device):
        dx = ops.rowsparse_dgrad(gathered, weight, rows)
    for part in (slice(0, 300), slice(tokens // 2, tokens // 2 + 300), slice(tokens - 300, tokens)):
        assert torch.equal(dx[part].double(), gathered[part].double() @ weight[rows].double())
