"""What the tests of the sparse gradient share: layers with chosen rows, and the dense form of their gradient."""

import pytest
import torch
import torch.nn as nn
from torch import Tensor

import wuskern as wk

LAYERS = {
    "linear": (lambda: nn.Linear(6, 12), (3, 6)),
    "conv2d": (lambda: nn.Conv2d(4, 12, 3), (2, 4, 5, 5)),
    "conv2d-last": (lambda: nn.Conv2d(4, 12, 3).to(memory_format=torch.channels_last), (2, 4, 5, 5)),
}
each_layer = pytest.mark.parametrize("kind", LAYERS)
CHOICES = {"TopK": lambda sparse: wk.TopK(k=2, sparse=sparse), "Rows": lambda sparse: wk.Rows([1, 4, 7], sparse=sparse)}
each_choice = pytest.mark.parametrize("choice", CHOICES)


def layer_of(kind: str, choice: str = "TopK", sparse: bool | None = True, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    layer = wk.convert(LAYERS[kind][0]())
    layer.rows = CHOICES[choice](sparse)
    return layer


def input_of(kind: str, seed: int = 5) -> Tensor:
    return torch.randn(LAYERS[kind][1], generator=torch.Generator().manual_seed(seed))


def loss_of(layer: nn.Module, x: Tensor) -> Tensor:
    return layer(x).square().sum()


def dense_form(kind: str, choice: str = "TopK", seed: int = 5) -> Tensor:
    """What ``weight.grad`` would be with ``sparse=False``."""
    layer = layer_of(kind, choice, False)
    loss_of(layer, input_of(kind, seed)).backward()
    assert not layer.weight.grad.is_sparse
    return layer.weight.grad
