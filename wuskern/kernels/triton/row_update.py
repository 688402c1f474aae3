"""The part that rowsparse_sgd_ and rowsparse_adam_ share in Triton: which elements of which rows a program updates."""

from collections.abc import Sequence
from types import TracebackType

import torch
import triton
import triton.language as tl
from torch import Tensor

from wuskern.common.shapes import is_channels_last
from wuskern.kernels.triton import configs
from wuskern.kernels.triton.bias_grad import accumulator
from wuskern.kernels.triton.gather_rows import usable

__all__ = ["Update", "accumulator", "places"]


@triton.jit
def places(
    rows,
    elements,
    row_channels,
    taps,
    CHANNELS_LAST: tl.constexpr,
    COMPACT: tl.constexpr,
    GATHERED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """The elements of one stretch of one chosen row: where they lie in the parameter, where in its state, where in values, and
    which there are. In channels_last a row holds [taps, channels] where values hold [channels, taps]; a compact state holds the
    chosen rows alone, and so do gathered values."""
    i = tl.program_id(0).to(tl.int64)
    e = tl.program_id(1).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    source = e
    if CHANNELS_LAST:  # a convolution's row is far below 2^31
        short = e.to(tl.int32)
        source = (short % row_channels * taps + short // row_channels).to(tl.int64)
    start = tl.load(rows + i) * elements
    kept = i * elements if COMPACT else start
    gathered = i * elements if GATHERED else start
    return start + e, kept + e, gathered + source, e < elements


class Update:
    """The tensors as rows that are runs of memory, and the launch. Those that are not such rows are copied, and copied back
    at the end of the ``with``."""

    def __init__(self, param: Tensor, state: Sequence[Tensor | None], rows: Tensor, values: Tensor) -> None:
        self.given = (param, *state)
        held = [t for t in self.given if t is not None]
        last = not param.is_contiguous() and all(is_channels_last(t) for t in held)
        self.tensors = [t if t is None or last else t.detach().contiguous() for t in self.given]
        self.rows, self.values = usable(rows, param.shape[0]), values.contiguous()
        k, elements = len(rows), param[:1].numel()
        taps = param.shape[2:].numel() if last else 1
        is_compact = any(t is not None and len(t) != len(param) for t in state)
        self.layout = {"CHANNELS_LAST": taps > 1, "COMPACT": is_compact, "GATHERED": len(values) == k}
        self.empty = k * elements == 0
        self.sizes = elements, elements // max(1, taps), taps
        self.tile = configs.update_rows(elements)
        self.grid = (k, triton.cdiv(elements, self.tile.block))

    def __enter__(self) -> "Update":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if kind is not None:
            return
        with torch.no_grad():
            for given, used in zip(self.given, self.tensors, strict=True):
                if given is not None and used.data_ptr() != given.data_ptr():
                    given.copy_(used)

    def numbers(self, *numbers: float) -> Tensor:
        """The numbers in memory, in float64: one that Triton takes as an argument becomes float32."""
        return torch.tensor(numbers, dtype=torch.float64).to(self.values.device, non_blocking=True)
