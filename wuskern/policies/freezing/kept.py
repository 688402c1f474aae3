"""The kept outputs of frozen modules, for all samples: in memory, or in a file that is mapped into it."""

import tempfile
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import TreeSpec, tree_unflatten

from wuskern.policies.freezing.outputs import PLAIN, Found, Output, Site
from wuskern.policies.freezing.unkept import Unkept


@dataclass(frozen=True)
class Part:
    """A part of an output, a tensor or a plain value.

    Attributes:
        value: that of some samples. rows: how many of them, in dimension 0, are one sample's; 0: it is the same for all
            samples. read: whether somebody reads it; a plain value counts as read.
    """

    value: Any
    rows: int
    read: bool


@dataclass(frozen=True)
class Kind:
    """How the output of a site is made of its parts."""

    spec: TreeSpec
    parts: tuple[Part, ...]

    @property
    def read(self) -> set[int]:
        """The numbers of the tensors that are read."""
        return {number for number, part in enumerate(self.parts) if part.read and isinstance(part.value, Tensor)}


class CannotKeep(Exception):
    """Why the output of a site cannot be kept."""


def kind_of(where: str, found: Found, shorter: Found, samples: int, read: Collection[int]) -> Kind:
    """The kind of an output that was ``found`` for some ``samples``, and for all of them but the last. ``read``: the numbers of
    its parts that are read.

    Raises:
        CannotKeep: a part that is neither a tensor nor a plain value, one with samples elsewhere than in dimension 0, or one
            that depends on which samples are computed together.
    """
    _check_structure(where, found.spec, shorter.spec)
    parts: list[Part] = []
    for number, (value, less) in enumerate(zip(found.leaves, shorter.leaves, strict=True)):
        if not isinstance(value, Tensor):
            if not same(value, less):
                raise CannotKeep(f"the output of {where} has a {type(value).__name__} in it")
            parts.append(Part(value, rows=0, read=True))
            continue
        rows = 0 if value.shape == less.shape else _rows(value.shape, less.shape, samples)
        if rows is None or (number in read and rows > 1):
            raise CannotKeep(f"the output of {where} has no samples in dimension 0: {tuple(value.shape)} for {samples} of them")
        if rows and number in read and not _near(value[:-1], less):
            raise CannotKeep(f"the output of {where} depends on which samples are computed together")
        parts.append(Part(value, rows, number in read))
    return Kind(found.spec, tuple(parts))


def _rows(shape: torch.Size, less: torch.Size, samples: int) -> int | None:
    """How many rows each sample has, by the shapes with all samples and with one less; None: these do not tell."""
    rows = shape[0] // samples if shape else 0
    return rows if rows and (*shape,) == (rows * samples, *shape[1:]) and less == (rows * (samples - 1), *shape[1:]) else None


def _check_structure(where: str, spec: TreeSpec, other: TreeSpec) -> None:
    if spec != other:
        raise CannotKeep(f"the output of {where} has another structure for other samples")


class Kept:
    """The values of the parts that are read, ``[samples, ...]`` each, filled chunk by chunk.

    Args:
        kinds: of the outputs, by site. names: of the modules. samples: how many there are.
        dtype: of what is kept of floating-point values; None: their own. folder: where a file is to hold them; None: memory.
    """

    def __init__(
        self, kinds: Mapping[Site, Kind], names: Mapping[Any, str], samples: int, dtype: torch.dtype | None, folder: Path | None
    ) -> None:
        self.kinds, self.names, self.samples, self.dtype, self.folder = kinds, names, samples, dtype, folder
        self._values: dict[tuple[Site, int], Tensor] = {}

    @property
    def nbytes(self) -> int:
        """How many bytes the values of all samples take, once there are any."""
        sizes = [self._dtype(like).itemsize * like[0].numel() for _, like in self._read()]
        return self.samples * sum(sizes)

    def allocate(self) -> None:
        for place, like in self._read():
            self._values[place] = self._empty(like)

    def put(self, begin: int, found: Mapping[Site, Found]) -> None:
        """Takes the outputs for samples from ``begin`` on. Raises ``CannotKeep`` where one is of another kind than its
        site's."""
        for site, kind in self.kinds.items():
            where = self.names[site[0]]
            _check_structure(where, kind.spec, found[site].spec)
            for number, (part, value) in enumerate(zip(kind.parts, found[site].leaves, strict=True)):
                if part.rows:
                    if _one(value) != _one(part.value):
                        raise CannotKeep(
                            f"the output of {where} is {_one(value)} for some samples and {_one(part.value)} for others: give "
                            "all the same length"
                        )
                    if part.read:
                        self._values[site, number][begin : begin + len(value)] = value
                elif part.read and not same(part.value, value):
                    raise CannotKeep(f"the output of {where} has no dimension of samples, and is not the same for all of them")

    def output(self, site: Site, index: Tensor) -> Output | None:
        """The output of a site for the samples ``index``; None for a site of which nothing is known."""
        kind = self.kinds.get(site)
        return None if kind is None else output_of(kind, self.names[site[0]], len(index), self._taken(site, index))

    def _taken(self, site: Site, index: Tensor) -> Any:
        def taken(number: int, like: Tensor) -> Tensor:
            values = self._values[site, number]
            return values[index.to(values.device)].to(like.device, like.dtype)

        return taken

    def _read(self) -> list[tuple[tuple[Site, int], Tensor]]:
        return [
            ((site, number), part.value)
            for site, kind in self.kinds.items()
            for number, part in enumerate(kind.parts)
            if part.rows and part.read
        ]

    def _dtype(self, like: Tensor) -> torch.dtype:
        return self.dtype if self.dtype is not None and like.is_floating_point() else like.dtype

    def _empty(self, like: Tensor) -> Tensor:
        shape, dtype = (self.samples, *like.shape[1:]), self._dtype(like)
        last = like.ndim == 4 and like.is_contiguous(memory_format=torch.channels_last) and not like.is_contiguous()
        if self.folder is None:
            layout = torch.channels_last if last else torch.contiguous_format
            return torch.empty(shape, dtype=dtype, device=like.device, memory_format=layout)
        with tempfile.NamedTemporaryFile(dir=self.folder, prefix="activations-") as file:  # the mapping outlives its name
            flat = torch.from_file(file.name, shared=True, size=self.samples * like[0].numel(), dtype=dtype)
        if not last:
            return flat.view(shape)
        n, c, h, w = shape
        return flat.view(n, h, w, c).permute(0, 3, 1, 2)


def output_of(kind: Kind, where: str, samples: int, values: Callable[[int, Tensor], Tensor]) -> Output:
    """An output for so many samples. ``values(number, like)`` gives the parts that are read and have a value for each of
    them."""
    leaves: list[Any] = []
    for number, part in enumerate(kind.parts):
        value = part.value
        if not isinstance(value, Tensor):
            leaves.append(value)
        elif not part.read:
            shape = (part.rows * samples, *value.shape[1:]) if part.rows else tuple(value.shape)
            leaves.append(Unkept(shape, value.dtype, value.device, where))
        else:
            leaves.append(values(number, value) if part.rows else value.clone())
    return Output(tree_unflatten(leaves, kind.spec))


def _one(values: Tensor) -> tuple[torch.dtype, tuple[int, ...]]:
    """The dtype and the shape of one sample's value."""
    return values.dtype, tuple(values.shape[1:])


def same(a: Any, b: Any) -> bool:
    """Whether two parts of outputs are the same, to the bit; NaN is NaN."""
    if not isinstance(a, Tensor) or not isinstance(b, Tensor):
        return type(a) is type(b) and isinstance(a, PLAIN) and bool(a == b)
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    return bool(((a == b) | ((a != a) & (b != b))).all())


def _near(a: Tensor, b: Tensor) -> bool:
    """Whether values differ by rounding alone: products of other sizes are summed in another order."""
    if not a.is_floating_point():
        return torch.equal(a, b)
    eps = torch.finfo(a.dtype).eps
    a, b = a.double().nan_to_num(), b.double().nan_to_num()
    scale = max(float(a.abs().max()), float(b.abs().max())) if a.numel() else 0.0
    return bool(((a - b).abs() <= eps**0.5 * scale).all()) if scale else True
