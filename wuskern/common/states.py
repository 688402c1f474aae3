"""Checks of what a ``load_state_dict`` is given, ahead of everything that it changes. Each raises ``ValueError`` with what was
expected and what came. ``what``: the value, in words."""

import math
import reprlib
from collections.abc import Collection, Mapping
from typing import Any, NoReturn

import torch
from torch import Tensor

MOST = 2**53  # the largest count: floats hold all whole numbers up to it


def refuse(expected: str, got: str) -> NoReturn:
    raise ValueError(f"state: expected {expected}, got {got}")


def said(value: object) -> str:
    """The value in words, or as much of it as fits a line; a tensor by its dtype, shape, layout and device."""
    if isinstance(value, Tensor):
        return f"{value.dtype} {list(value.shape)} ({value.layout}, {value.device.type})"
    return reprlib.repr(value)


def keys(state: Any, expected: Collection[str]) -> None:
    if not isinstance(state, Mapping):
        refuse(f"the keys {sorted(expected)}", said(state))
    if set(state) != set(expected):
        refuse(f"the keys {sorted(expected)}", str(sorted(map(str, state))))


def of_policy(policy: Any, state: Any) -> None:
    """Refuses a state with other keys than the policy's, or of another policy, which may have the same keys."""
    if not isinstance(state, Mapping) or "policy" not in state:
        keys(state, policy.state_dict())
    if state["policy"] != type(policy).__name__:
        refuse(f"that of {type(policy).__name__}", f"that of {said(state['policy'])}")
    keys(state, policy.state_dict())


def names(what: str, value: Any, expected: Collection[str], subset: bool = False) -> None:
    """Refuses what is no mapping from just the expected names, or, with ``subset``, from some of them."""
    if not isinstance(value, Mapping):
        refuse(f"{what} of {sorted(expected)}", said(value))
    if not set(value) <= set(expected) or (len(value) < len(expected) and not subset):
        refuse(f"{what} of {sorted(expected)}", str(sorted(map(str, value))))


def items(what: str, value: Any, length: int | None = None) -> None:
    """Refuses what is no list or tuple of this length; None: of any length."""
    if not isinstance(value, list | tuple) or length not in (None, len(value)):
        refuse(f"{what}, a list" + ("" if length is None else f" of {length}"), said(value))


def flag(what: str, value: Any) -> None:
    if not isinstance(value, bool):
        refuse(f"{what}, True or False", said(value))


def count(what: str, value: Any, most: int = MOST) -> None:
    """Refuses what is no whole number from 0 to ``most``."""
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= most:
        refuse(f"{what}, a whole number from 0 to {most}", said(value))


def number(what: str, value: Any) -> None:
    """Refuses what is neither a float, NaN and infinity among them, nor an int that a float can hold."""
    if not isinstance(value, int | float) or isinstance(value, bool):
        refuse(f"{what}, a number", said(value))
    if isinstance(value, int) and abs(value) > MOST:
        refuse(f"{what}, a number that a float holds", said(value))


def finite(what: str, value: Any) -> None:
    number(what, value)
    if not math.isfinite(value):
        refuse(f"{what}, a finite number", said(value))


def positive(what: str, value: Any, infinite: bool = False) -> None:
    """Refuses what is no number from 0. ``infinite``: infinity and NaN are taken, too."""
    (number if infinite else finite)(what, value)
    if value < 0:
        refuse(f"{what}, a number from 0", said(value))


def tensor(what: str, value: Any, shape: Collection[int], dtype: torch.dtype) -> None:
    """Refuses what is no tensor of this shape and dtype with values in memory, on whichever device."""
    fits = isinstance(value, Tensor) and value.layout is torch.strided and not value.is_meta
    if not fits or tuple(value.shape) != tuple(shape) or value.dtype is not dtype:
        refuse(f"{what}, {dtype} {list(shape)}", said(value))


def counts(what: str, value: Any, shape: Collection[int], most: int | None = None) -> None:
    """Refuses what is no int64 tensor of this shape with whole numbers from 0 to ``most``; None: to any."""
    tensor(what, value, shape, torch.int64)
    if value.numel() and not (value.min() >= 0 and (most is None or value.max() <= most)):
        refuse(f"{what}, whole numbers from 0" + ("" if most is None else f" to {most}"), f"{value.min()} to {value.max()}")


def sums(what: str, value: Any, shape: Collection[int], dtype: torch.dtype) -> None:
    """Refuses what is no tensor of numbers from 0; infinity and NaN, from gradients that had them, are taken."""
    tensor(what, value, shape, dtype)
    if (value < 0).any():
        refuse(f"{what}, numbers from 0", str(value.min().item()))


def generator(value: Any) -> None:
    """Refuses what is not the state of a generator on the CPU."""
    trial = torch.Generator()
    tensor("generator", value, trial.get_state().shape, torch.uint8)
    try:
        trial.set_state(value.cpu())
    except RuntimeError as error:
        raise ValueError(f"state: expected that of a generator, got another ({error})") from error


def chosen(what: str, index: Any, wanted: Collection[int], units: int, block: int, groups: int) -> None:
    """Refuses what is no ascending index of ``wanted`` of so many units, in aligned blocks, and as many of each group."""
    k = len(index) if isinstance(index, Tensor) and index.ndim == 1 else 0
    counts(what, index, [k], units - 1)
    if k not in wanted or (index.diff() <= 0).any():
        refuse(f"{what}, {' or '.join(map(str, sorted(wanted)))} of them, ascending", said(index.tolist()))
    is_chosen = torch.zeros(units, dtype=torch.bool).index_fill_(0, index.cpu(), True)
    blocks, of_group = is_chosen.view(-1, block), is_chosen.view(groups, -1).sum(1)
    if (blocks != blocks[:, :1]).any() or (of_group != of_group[0]).any():
        refuse(f"{what} in blocks of {block}, as many of each group", said(index.tolist()))
