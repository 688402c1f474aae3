"""The samples of an activation cache: batches by index, and numbers by which their inputs are known again."""

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from wuskern.common.example import Samples

ODD = 0x1E3779B97F4A7C15  # far from the powers of two, so that the places of equal values count


class Batches:
    """Batches of samples by their indices.

    Args:
        samples: a tensor ``[N, ...]``, a mapping of such, or what gives a batch for a LongTensor of indices and has a length;
            with ``collate``: what gives one sample for an index. collate: makes a batch of a list of samples.

    Attributes:
        left_out: a key of the batches that is no input of the model.
    """

    left_out: str | None = None

    def __init__(self, samples: Any, collate: Callable[[list[Any]], Any] | None) -> None:
        self._samples = Samples(samples) if isinstance(samples, Mapping) and collate is None else samples
        self._collate = collate
        if not callable(getattr(samples, "__getitem__", None)) or not callable(getattr(samples, "__len__", None)):
            raise TypeError(
                f"samples: expected a tensor, or what has a length and can be indexed, got {type(samples).__name__}"
            )

    def __len__(self) -> int:
        return len(self._samples)

    def batch(self, index: Tensor) -> Any:
        """The samples ``index``, as the model's input."""
        chosen = self._samples[index] if self._collate is None else self._collate([self._samples[i] for i in index.tolist()])
        if isinstance(chosen, Mapping):
            return {name: value for name, value in chosen.items() if name != self.left_out}
        return chosen


class Indexed:
    """A dataset whose samples say which they are: the index is added to a mapping under ``key``, and to a tuple as its last
    part.

    Args:
        dataset: gives a mapping or a tuple for an index, and has a length.
    """

    def __init__(self, dataset: Any, key: str = "sample_index") -> None:
        self.dataset, self.key = dataset, key

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Any:
        sample = self.dataset[index]
        if isinstance(sample, Mapping):
            return {**sample, self.key: index}
        if isinstance(sample, Sequence) and not isinstance(sample, str):
            return (*sample, index)
        raise TypeError(f"dataset: expected samples that are mappings or tuples, got {type(sample).__name__}")


def fingerprints(inputs: Mapping[str, Tensor], names: Collection[str], samples: int) -> Tensor:
    """Numbers that differ where the inputs ``names`` of a sample differ in a bit (but for one chance in 2**64), ``[samples]``,
    int64. An input without a dimension of samples counts for all.

    Raises:
        ValueError: an input is missing.
    """
    total = torch.zeros(samples, dtype=torch.int64)
    for name in names:
        if name not in inputs:
            raise ValueError(f"inputs: expected {name}, which the kept values depend on, got {', '.join(inputs) or 'none'}")
        values = inputs[name].detach()
        rows = samples if values.ndim > 0 and len(values) == samples else 1
        bits = _bits(values.reshape(rows, -1))
        places = torch.arange(bits.shape[1], device=bits.device) * ODD | 1
        total = total * 31 + bits.shape[1] + (bits * places).sum(1).cpu()
    return total


def _bits(values: Tensor) -> Tensor:
    """The bits of values as whole numbers."""
    as_numbers = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    if values.is_complex():
        values = torch.view_as_real(values).flatten(1)
    return values.contiguous().view(as_numbers[values.element_size()]).long()
