"""What the tests of the optimizers share: a network with a row-sparse layer, and gradients put where a backward puts them."""

import contextlib
import gc
from collections.abc import Iterator

import torch
import torch.nn as nn
from torch import Tensor
from torch.nn import Parameter

import wuskern as wk

ROWS = [0, 3, 4]
OPTIMIZERS = {
    "SGD": lambda parameters: wk.optim.SGD(parameters, lr=0.1, momentum=0.9),
    "Adam": lambda parameters: wk.optim.Adam(parameters, lr=0.1),
    "AdamW": lambda parameters: wk.optim.AdamW(parameters, lr=0.1),
}


def network() -> nn.Sequential:
    """A convolution and two Linears, converted; the second layer trains ROWS."""
    torch.manual_seed(1)
    layers = nn.Conv2d(2, 4, 3), nn.Flatten(), nn.Linear(4 * 3 * 3, 8), nn.Tanh(), nn.Linear(8, 3)
    model = wk.convert(nn.Sequential(*layers))
    model[2].rows = wk.Rows(ROWS)
    return model


def backward(model: nn.Module, seed: int = 0, scale: float = 1.0) -> Tensor:
    x = torch.randn(5, 2, 5, 5, generator=torch.Generator().manual_seed(seed))
    loss = model(x).square().mean() * scale
    loss.backward()
    return loss


def row_grad(weight: Tensor, rows: list[int], seed: int = 0) -> Tensor:
    """A sparse gradient of those rows, which ascend; also what the weight holds from now on."""
    values = torch.randn(len(rows), *weight.shape[1:], generator=torch.Generator().manual_seed(seed)).to(weight.dtype)
    weight.grad = sparse_tensor(torch.tensor(rows), values, weight.shape)
    return weight.grad


def sparse_tensor(rows: Tensor, values: Tensor, shape: torch.Size) -> Tensor:
    """As a backward leaves it: rows that ascend, each once."""
    return torch.sparse_coo_tensor(rows[None], values, shape, is_coalesced=True, check_invariants=False)


def layouts(model: nn.Module) -> list[str]:
    """Of the weights' gradients: "sparse", "dense" or "none"."""
    grads = [module.weight.grad for module in model.modules() if isinstance(getattr(module, "weight", None), Tensor)]
    return ["none" if grad is None else "sparse" if grad.is_sparse else "dense" for grad in grads]


def weight(*shape: int, dtype: torch.dtype = torch.float32) -> Parameter:
    return Parameter(torch.randn(shape, generator=torch.Generator().manual_seed(7), dtype=torch.float64).to(dtype))


@contextlib.contextmanager
def without_gc() -> Iterator[None]:
    """Nothing goes but by the count of its references."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def form(model: nn.Module) -> str:
    """Of the gradient that a backward leaves in the third part's weight."""
    model.zero_grad()
    backward(model)
    return layouts(model)[1]
