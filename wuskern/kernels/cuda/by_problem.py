"""Runs a product of the chosen rows the way that ``choice`` takes for it, on a GPU."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from wuskern.kernels.cuda import choice
from wuskern.kernels.cuda.gpus import capability_of
from wuskern.kernels.cuda.product import Product


def runner(op: str, runs: dict[str, Callable[..., Tensor]]) -> Callable[..., Tensor]:
    """The op by the fastest of ``runs``, by way."""
    ways = tuple(runs)

    def run(dy: Tensor, other: Tensor, rows: Tensor, *rest: Any) -> Tensor:
        if dy.numel() == 0 or other.numel() == 0 or rows.numel() == 0:
            return runs[ways[0]](dy, other, rows, *rest)
        product = product_of(op, dy, other, rows, *rest)
        return runs[choice.choose(product, capability_of(dy.device), ways).way](dy, other, rows, *rest)

    return run


def product_of(op: str, dy: Tensor, other: Tensor, rows: Tensor, *rest: Any) -> Product:
    """The problem of an op's arguments."""
    describe = _conv2d if op.endswith("conv2d") else _linear
    return describe(op, str(dy.dtype)[6:], dy, other, rows.shape[0], *rest)


def _linear(op: str, dtype: str, dy: Tensor, other: Tensor, k: int) -> Product:
    tokens, features = math.prod(dy.shape[:-1]), other.shape[-1]
    planes = dy.ndim > 1 and dy.stride(-1) != 1
    tf32 = torch.backends.cuda.matmul.fp32_precision == "tf32"
    return Product(op, dtype, tokens, features, dy.shape[-1], k, tokens * features, planes=planes, tf32=tf32)


def _conv2d(op: str, dtype: str, dy: Tensor, other: Tensor, k: int, sizes: Any, *geometry: Any) -> Product:
    groups, wgrad = geometry[-1], "wgrad" in op
    channels, taps = (other.shape[1] // groups, math.prod(sizes)) if wgrad else (other.shape[1], other.shape[2:].numel())
    inputs = other.numel() if wgrad else dy.shape[0] * channels * groups * math.prod(sizes)
    return Product(
        op,
        dtype,
        tokens=dy.shape[0] * dy.shape[2] * dy.shape[3],
        features=channels * taps,
        out=dy.shape[1],
        k=k,
        inputs=inputs,
        taps=taps,
        groups=groups,
        planes=dy.stride(1) != 1,
        tf32=torch.backends.cudnn.conv.fp32_precision == "tf32",  # type: ignore[attr-defined]
    )
