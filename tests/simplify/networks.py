"""Networks with dead rows, and the measure of what is equal."""

import torch
import torch.nn as nn
from hypothesis import strategies as st
from torch import Tensor

ACTIVATIONS = [nn.ReLU, nn.Sigmoid, nn.Tanh, nn.GELU, nn.SiLU, nn.LeakyReLU, nn.Softplus, nn.Hardswish, nn.ELU, nn.PReLU]


def kill(layer: nn.Module, rows) -> None:
    """Makes rows all zero, as a mask does."""
    with torch.no_grad():
        layer.weight[rows] = 0
        if layer.bias is not None:
            layer.bias[rows] = 0


def layers(model: nn.Module) -> dict[str, nn.Module]:
    return {name: m for name, m in model.named_modules() if isinstance(m, nn.Linear | nn.Conv2d)}


def shuffle_norms(model: nn.Module) -> None:
    """Parameters and statistics that no fresh norm has."""
    for m in model.modules():
        if isinstance(m, nn.BatchNorm1d | nn.BatchNorm2d):
            nn.init.normal_(m.running_mean)
            nn.init.uniform_(m.running_var, 0.5, 2.0)
        if isinstance(m, nn.BatchNorm1d | nn.BatchNorm2d | nn.GroupNorm | nn.LayerNorm) and m.weight is not None:
            nn.init.normal_(m.weight)
            nn.init.normal_(m.bias)


def shapes(model: nn.Module) -> list[tuple[int, ...]]:
    return [tuple(p.shape) for p in model.parameters()]


def equal(a: Tensor, b: Tensor) -> bool:
    return torch.allclose(a, b, rtol=1e-9, atol=1e-9)


@st.composite
def chains(draw) -> tuple[nn.Module, Tensor]:
    """A float64 network in evaluation, convolutions and then linear layers, and an input; rows are dead at random."""
    torch.manual_seed(draw(st.integers(0, 2**31)))
    parts, channels, size = [], 2, 8
    for _ in range(draw(st.integers(0, 3))):
        out, kernel = draw(st.integers(1, 6)), draw(st.sampled_from([1, 3]))
        padding, bias = draw(st.sampled_from([0, kernel // 2])), draw(st.booleans())
        depthwise = draw(st.booleans())
        out, groups = (channels, channels) if depthwise else (out, 1)
        parts.append(nn.Conv2d(channels, out, kernel, padding=padding, bias=bias, groups=groups))
        channels = out
        norms = [nn.Identity(), nn.BatchNorm2d(channels), nn.GroupNorm(channels, channels), nn.GroupNorm(1, channels)]
        pools = [nn.Identity(), nn.MaxPool2d(2), nn.AvgPool2d(2), nn.AvgPool2d(2, padding=1), nn.AdaptiveAvgPool2d(2)]
        parts += [draw(st.sampled_from(norms)), draw(st.sampled_from(ACTIVATIONS))(), draw(st.sampled_from(pools))]
        size = nn.Sequential(*parts).eval()(torch.zeros(1, 2, 8, 8)).shape[-1]
        if size < 4:
            break
    parts += [nn.Dropout(), nn.Flatten()]
    features = channels * size * size
    for _ in range(draw(st.integers(0, 2))):
        out = draw(st.integers(1, 6))
        norms = [nn.Identity(), nn.BatchNorm1d(out), nn.LayerNorm(out)]
        parts += [nn.Linear(features, out, bias=draw(st.booleans())), draw(st.sampled_from(norms))]
        parts.append(draw(st.sampled_from(ACTIVATIONS))())
        features = out
    model = nn.Sequential(*parts, nn.Linear(features, 3)).double().eval()
    shuffle_norms(model)
    for layer in layers(model).values():
        kill(layer, torch.rand(len(layer.weight)) < draw(st.sampled_from([0.0, 0.5, 0.9])))
    return model, torch.randn(2, 2, 8, 8, dtype=torch.float64)
