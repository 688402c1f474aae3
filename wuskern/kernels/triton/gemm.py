"""The parts that the launchers of the matrix products share."""

import torch
import triton.language as tl
from torch import Tensor

from wuskern.kernels.cuda.gpus import architecture_of
from wuskern.kernels.problem import Problem
from wuskern.kernels.triton import configs
from wuskern.kernels.triton.bias_grad import accumulator
from wuskern.kernels.triton.gather_rows import gather_rows, usable
from wuskern.kernels.triton.tiles import GemmTile


def options(tile: GemmTile, dtype: torch.dtype, operands: tuple[Tensor, ...], setting: str) -> dict:
    """The keyword arguments of a launch: types, tile, and how float32 is multiplied (``setting`` is torch's)."""
    return {
        "ACC": accumulator(dtype),
        "INDEX": tl.int64 if any(_span(t) > configs.INT32_ELEMENTS for t in operands) else tl.int32,
        "PRECISION": "tf32" if setting == "tf32" and dtype == torch.float32 and torch.version.hip is None else "ieee",
        "BLOCK_M": tile.block_m,
        "BLOCK_N": tile.block_n,
        "BLOCK_K": tile.block_k,
        "num_warps": tile.num_warps,
        "num_stages": tile.num_stages,
        "enable_fp_fusion": True,
    }


def tiles(kernel: str, dy: Tensor, scattered: bool = False) -> tuple[GemmTile, ...]:
    return configs.products(architecture_of(dy.device), kernel, dy.itemsize, scattered)


def key(problem: Problem, operands: tuple[Tensor, ...], scattered: bool) -> str:
    """The words that autotuning keeps a configuration by, all that its time depends on: the problem, and how operands lie."""
    strides = ("".join("1" if step == 1 else "x" for step in t.stride()) for t in operands)
    words = (f"{name}={value}".replace(" ", "") for name, value in problem._asdict().items())
    return " ".join([*words, f"strides={','.join(strides)}", f"scattered={scattered}"])


def scattered(images: Tensor, groups: int) -> bool:
    """Whether a convolution finds the channels of ``images`` (of a group) apart, unaligned or too many for 32-bit offsets."""
    strides = images.stride()
    aligned = images.shape[1] % (16 * groups) == 0 and images.data_ptr() % 16 == 0
    return strides[1] != 1 or not aligned or any(s % 16 for s in strides if s != 1) or _span(images) > configs.INT32_ELEMENTS


def _span(t: Tensor) -> int:
    """How many elements ``t`` has, or lie from its first to its last, whichever is more."""
    return max(t.numel(), 1 + sum((n - 1) * s for n, s in zip(t.shape, t.stride(), strict=True)))


def chosen(dy: Tensor, rows: Tensor, dim: int, reads: int) -> tuple[Tensor, Tensor]:
    """``dy``, or its rows next to each other where a product that reads them so many times is the cheaper for it; ``rows``
    as a kernel reads them."""
    if dy.shape[dim] == rows.shape[0]:
        return dy, rows.contiguous()
    rows = usable(rows, dy.shape[dim])
    return gather_rows(dy, rows, dim) if configs.gathers_first(dy.stride(dim), reads) else dy, rows
