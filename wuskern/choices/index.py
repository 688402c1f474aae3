"""What fixed choices share: an index of units, as a tensor that kernels read and as numbers that are compared."""

import functools
from typing import Any

import torch
from torch import Tensor


class FixedIndex:
    """An index of units of a layer, each once, ascending. Two choices are equal where their numbers and settings are."""

    index: Tensor

    def take(self, unit: str) -> None:
        """Checks ``index`` and keeps it as a sorted tensor of its own; ``unit``: what one of its numbers is called."""
        index = torch.as_tensor(self.index)
        if index.dtype.is_floating_point or index.dtype.is_complex or index.dtype is torch.bool or index.ndim != 1:
            raise TypeError(f"index: expected a list of integers, got {index.ndim}-d {index.dtype}")
        object.__setattr__(self, "index", index.detach().long().sort()[0].clone())
        if not self.numbers:
            raise ValueError(f"index: expected at least one {unit}, got none")
        if self.numbers[0] < 0:
            raise ValueError(f"index: expected numbers from 0, got {self.numbers[0]}")
        if len(set(self.numbers)) < len(self.numbers):
            raise ValueError(f"index: expected each {unit} once, got one twice")

    @functools.cached_property  # no field: torch.compile would watch each number
    def numbers(self) -> tuple[int, ...]:
        """The index as Python numbers."""
        return tuple(self.index.tolist())

    @functools.cached_property
    def _fits(self) -> set[tuple[int, int]]:
        """Pairs (units, groups) for which the index has been checked: layers ask in every forward."""
        return set()

    def _value(self) -> tuple[Any, ...]:
        """All that two equal choices have in common."""
        raise NotImplementedError

    def __eq__(self, other: object) -> bool:
        return isinstance(other, type(self)) and self._value() == other._value()

    def __hash__(self) -> int:
        return hash(self._value())

    def fitting(self, units: int, groups: int, called: str) -> int:
        """How many numbers there are. Raises ``ValueError`` where one is not under ``units``, or a group has more of them than
        another."""
        if not torch.compiler.is_compiling() and (units, groups) not in self._fits:
            self._check(units, groups, called)
            self._fits.add((units, groups))
        return self.index.shape[0]

    def _check(self, units: int, groups: int, called: str) -> None:
        if self.numbers[-1] >= units:
            raise ValueError(f"index: expected {called} under {units}, got {self.numbers[-1]}")
        if groups > 1:
            of_group = [0] * groups
            for number in self.numbers:
                of_group[number * groups // units] += 1
            if len(set(of_group)) > 1:
                raise ValueError(f"index: expected as many {called} in each of {groups} groups, got {of_group}")
