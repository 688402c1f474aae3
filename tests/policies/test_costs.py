"""The costs of layers, as torch's counter has them, and what counting leaves behind: nothing."""

import pytest
import torch
import torch.nn as nn
import torch.nn.modules.module as torch_module

import wuskern as wk
from wuskern.policies.costs import costs

# A layer, the shape of a sample, and the operations of its product for one sample, worked by hand.
LAYERS = {
    "linear": (lambda: nn.Linear(6, 4), (3, 6), 2 * 3 * 6 * 4),
    "linear without bias": (lambda: nn.Linear(6, 4, bias=False), (6,), 2 * 6 * 4),
    "conv": (lambda: nn.Conv2d(6, 4, 3, stride=2), (6, 7, 9), 2 * (3 * 4) * 4 * (6 * 9)),
    "groups": (lambda: nn.Conv2d(6, 4, 3, padding=1, groups=2), (6, 5, 5), 2 * (5 * 5) * 4 * (3 * 9)),
    "depthwise": (lambda: nn.Conv2d(6, 12, 3, groups=6), (6, 5, 5), 2 * (3 * 3) * 12 * 9),
    "reflected": (lambda: nn.Conv2d(2, 3, 3, padding=1, padding_mode="reflect"), (2, 5, 5), 2 * 25 * 3 * (2 * 9)),
}


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize(("make", "shape", "product"), LAYERS.values(), ids=LAYERS)
def test_each_product_costs_the_same(make, shape, product, autocast):
    """Torch takes the backward of a convolution in groups for more."""
    model = wk.convert(nn.Sequential(make()))
    for batch in (1, 3):
        x = torch.randn(batch, *shape, requires_grad=True)
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            (cost,) = costs(model, x).values()
        assert (cost.fprop, cost.dgrad, cost.wgrad) == (product, product, product)


def test_runs_of_a_layer_add_up_and_its_parts_do_not_count_twice():
    inner = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    found = costs(wk.convert(nn.Sequential(inner, inner, nn.Linear(4, 2))), torch.randn(5, 4))
    assert {name: cost.fprop for name, cost in found.items()} == {"0.0": 64, "0.1": 64, "2": 16}


def test_a_compiled_model_costs_what_it_did_before():
    """Its graphs are left for the count, whether they were there already or not, and serve again."""
    torch.manual_seed(0)
    model, x = wk.convert(nn.Sequential(nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 2))), torch.randn(3, 6)
    expected, compiled = costs(model, x), torch.compile(model, backend="aot_eager")
    assert costs(compiled, x) == expected
    y = compiled(x)
    assert costs(compiled, x) == expected
    assert torch.equal(compiled(x), y)


def test_nothing_is_left_behind():
    x = torch.randn(3, 6, requires_grad=True)
    model = wk.convert(nn.Sequential(nn.Linear(6, 4)))
    costs(model, x)
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        costs(model, torch.randn(3, 7))
    assert not x._backward_hooks
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    assert not torch_module._global_forward_hooks
    assert not torch_module._global_forward_pre_hooks
    assert torch._C._len_torch_dispatch_stack() == 0
