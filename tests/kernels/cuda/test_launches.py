"""What one top-k backward of a Linear has a GPU do, from a recorded trace: its launches, and what its ops write to new memory.
Of the sizes at which it is to be fast, on an H200: no kernel runs, for none decides what the host does."""

from unittest import mock

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import wuskern as wk
from tests import emulation
from wuskern import ops
from wuskern.columns import Saved, save
from wuskern.delivery import dense_grad
from wuskern.gradients import gradients
from wuskern.kinds import LINEAR

NOTHING = (
    "view",
    "empty",
    "new_empty",
    "new_empty_strided",
    "empty_strided",
    "as_strided",
    "detach",
    "slice",
    "narrow",
    "t",
    "alias",
)
SHAPES = {"2048^3": (2048, 2048, 2048), "8192x4096x4096": (8192, 4096, 4096)}


class Launches(TorchDispatchMode):
    """PyTorch's own launches: calls of aten that are no views and no new memory."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function._schema.name.split("::")
        if name[0] == "aten" and name[1] not in NOTHING:
            self.names.append(name[1])
        return function(*args, **(kwargs or {}))


def backward(tokens: int, n: int, features: int, sparse: bool) -> tuple[emulation.Trace, list[str]]:
    """Scores, bias gradient, dX and dW of 5 % of the rows, as autograd has them and with the weight's gradient in its form."""
    emulation.configure(processors=132, capability=90)
    dy, x = torch.empty(tokens, n, dtype=torch.bfloat16), torch.empty(tokens, features, dtype=torch.bfloat16)
    weight = torch.empty(n, features, dtype=torch.bfloat16)
    plan = wk.Plan(rows=wk.TopK(ratio=0.05, scope="both"))
    saved = Saved(x, weight, False, None, None)
    with emulation.emulated(), mock.patch.object(dense_grad, "_native_spreads", return_value=True):
        emulation.configure(processors=132, capability=90)
        with emulation.traced(runs=False):  # the stream's counters
            ops.bias_grad(dy, -1)
        with emulation.traced(runs=False) as trace, Launches() as aten:
            grad = gradients(LINEAR, plan, dy, saved, (True, True, True)).weight
            if not sparse:
                dense_grad.dense_grad(weight, grad)
    return trace, aten.names


@pytest.fixture(autouse=True)
def _emulation():
    if obstacle := emulation.obstacle():
        pytest.skip(obstacle)
    yield
    emulation.configure()


@pytest.mark.parametrize("shape", SHAPES)
def test_a_top_k_backward_is_at_most_five_launches(shape, capsys):
    tokens, n, features = SHAPES[shape]
    k = int(0.05 * n)
    trace, aten = backward(tokens, n, features, sparse=False)
    whole = 2 * (tokens * features + n * features)  # dX and the dense gradient
    # 11 before: sums twice, choice, gather, packing twice, product, its parts, product, zeros, scatter
    packed = 2 * 2 * tokens * (-(-k // 8) * 8)
    with capsys.disabled():
        count = len(trace.launches) + len(aten)
        print(f"\n{shape}: {count} launches, 11 with one for each step: {', '.join(trace.kernels + aten)}")
        print(
            f"    {sum(trace.news) / 1e6:.1f} MB of new memory, {packed / 1e6:.1f} MB more where dy's rows are packed", end=""
        )
    assert aten == []
    assert trace.kernels == ["sum_rows", "gather", "dgrad", "wgrad", "spread"]
    assert sum(trace.news) < 1.5 * whole


def test_with_the_compact_gradient_it_is_four():
    trace, aten = backward(2048, 2048, 2048, sparse=True)
    assert trace.kernels + aten == ["sum_rows", "gather", "dgrad", "wgrad"]


def test_columns_by_their_input_are_chosen_and_kept_in_two_launches():
    """Three with one for each step. 5 % of 4096 columns are 204, and lie 416 bytes apart: products read whole chunks of 16."""
    x, weight = torch.empty(2048, 4096, dtype=torch.bfloat16), torch.empty(1024, 4096, dtype=torch.bfloat16)
    plan = wk.Plan(columns=wk.TopColumns(ratio=0.05))
    with emulation.emulated():
        emulation.configure(processors=132, capability=90)
        with emulation.traced(runs=False):
            ops.bias_grad(x, -1)  # the stream's counters
        with emulation.traced(runs=False) as trace, Launches() as aten:
            saved = save(LINEAR, plan, x, weight, False)
    assert (trace.kernels, aten.names) == (["sum_rows", "gather"], [])
    assert (saved.x.shape, saved.x.stride()) == ((2048, 204), (208, 1))
