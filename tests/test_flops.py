"""The operations that ``FlopCounterMode`` sees of columns, and of rows of columns, by hand; ``Savings`` counts the same."""

import pytest
import torch
import torch.nn as nn
from torch.utils.flop_counter import FlopCounterMode

import wuskern as wk
from wuskern.policies import Policy, Savings

# A layer, its input, the operations of its forward, of its dX or of its dW, and how many numbers a bias gradient adds up. A
# multiplication and an addition are two operations.
LAYERS = {
    "linear": (lambda: nn.Linear(512, 32), (2, 8, 512), 2 * 16 * 512 * 32, 16),
    "conv": (lambda: nn.Conv2d(64, 32, (3, 5), padding=(1, 2)), (2, 64, 7, 9), 2 * (2 * 32 * 7 * 9) * (64 * 3 * 5), 2 * 7 * 9),
    "groups": (lambda: nn.Conv2d(64, 32, 3, groups=2, stride=2), (2, 64, 9, 9), 2 * (2 * 32 * 4 * 4) * (32 * 9), 2 * 4 * 4),
    "pointwise": (lambda: nn.Conv2d(256, 32, 1), (2, 256, 4, 4), 2 * (2 * 32 * 4 * 4) * 256, 2 * 4 * 4),
}
QUARTER = [*range(4), *range(16, 20)]  # of 32 rows, as many of each half
FEW, FORWARD_AND_DX = 0.25, 2


def quarter_of(inputs: int) -> wk.Columns:
    half = inputs // 2
    return wk.Columns([*range(inputs // 8), *range(half, half + inputs // 8)])


def counted(layer: nn.Module, shape: tuple[int, ...]) -> int:
    x = torch.randn(shape, requires_grad=True)
    with FlopCounterMode(display=False) as counter:
        layer(x).sum().backward()
    return counter.get_total_flops()


@pytest.mark.parametrize(("make", "shape", "product", "n"), LAYERS.values(), ids=LAYERS)
def test_a_quarter_of_the_columns_costs_a_quarter_of_dw(make, shape, product, n):
    layer = wk.convert(make())
    out, inputs = layer.units.out, layer.units.inputs
    layer.columns = quarter_of(inputs)
    assert counted(layer, shape) == (FORWARD_AND_DX + FEW) * product + out * (n - 1)
    layer.rows = wk.Rows(QUARTER)
    assert counted(layer, shape) == (FORWARD_AND_DX + FEW * FEW) * product + out * (n - 1)
    layer.rows = wk.Rows(QUARTER, "both")
    assert counted(layer, shape) == (1 + FEW + FEW * FEW) * product + out * (n - 1)


def test_columns_by_the_input_cost_a_product_and_two_sums_of_each_element_and_a_comparison():
    layer = wk.convert(nn.Linear(512, 32))
    layer.columns = wk.Columns(range(128))
    fixed = counted(layer, (16, 512))
    layer.columns = wk.TopColumns(k=128)
    assert counted(layer, (16, 512)) - fixed == 16 * 512 + 2 * 512 * 15 + 512


class Fixed(Policy):
    """The plan that each layer has."""

    def wants(self, name):
        plan = self.layers[name].plan
        return {"rows": plan.rows, "columns": plan.columns}

    def state_dict(self):
        return {}

    def load_state_dict(self, state):
        pass


@pytest.mark.parametrize("rows", [None, wk.Rows(QUARTER), wk.Rows(range(16, 18), "both"), wk.Rows([0, 31])], ids=str)
@pytest.mark.parametrize("k", [16, 128, 256])
def test_savings_count_the_same(rows, k):
    """Few columns do not pay for a gather of the rows of dY: all rows of them are computed then."""
    net, shape = wk.convert(nn.Sequential(nn.Linear(512, 32, bias=False))), (16, 512)
    dense = counted(net, shape)
    wk.set_plan(net, rows=rows, columns=wk.Columns(range(k)))
    savings = Savings(Fixed(net), torch.randn(shape, requires_grad=True))
    savings.count(16)
    assert savings.left_out["wgrad"] + savings.left_out["dgrad"] == dense - counted(net, shape)


def test_savings_of_few_channels_are_none():
    """Their columns are not gathered, and the gradient of all is computed."""
    net, shape = wk.convert(nn.Sequential(nn.Conv2d(8, 32, 3, bias=False))), (2, 8, 6, 6)
    dense = counted(net, shape)
    wk.set_plan(net, columns=wk.Columns([1, 2]))
    savings = Savings(Fixed(net), torch.randn(shape, requires_grad=True))
    savings.count(2)
    assert savings.left_out["wgrad"] == dense - counted(net, shape) == 0
