"""Checks of arguments that several rooms share. Each raises with the argument's name, what was expected and what came."""

import math
from collections.abc import Collection
from typing import Any


def one_of(name: str, value: Any, allowed: Collection[str]) -> None:
    if value not in allowed:
        raise ValueError(f"{name}: expected one of {', '.join(allowed)}, got {value!r}")


def whole(name: str, value: Any, least: int = 1) -> None:
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"{name}: expected a whole number, got {value!r}")
    if value < least:
        raise ValueError(f"{name}: expected at least {least}, got {value}")


def number(name: str, value: Any) -> None:
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise TypeError(f"{name}: expected a number, got {value!r}")


def positive(name: str, value: Any, infinite: bool = False) -> None:
    """Refuses what is no number over 0. ``infinite``: infinity is taken, too."""
    number(name, value)
    if not value > 0 or (value == math.inf and not infinite):
        raise ValueError(f"{name}: expected a positive number, got {value!r}")


def flag(name: str, value: Any) -> None:
    if not isinstance(value, bool):
        raise TypeError(f"{name}: expected True or False, got {value!r}")


def share(name: str, value: Any) -> None:
    """Refuses what is no number over 0 and up to 1."""
    number(name, value)
    if not 0 < value <= 1:
        raise ValueError(f"{name}: expected a number over 0 and up to 1, got {value!r}")


def amount(ratio: Any, k: Any) -> None:
    """Refuses all but one of the two: a share ``ratio``, or a whole number ``k`` from 1."""
    if (ratio is None) == (k is None):
        raise ValueError(f"ratio, k: expected one of the two, got ratio={ratio!r}, k={k!r}")
    if k is not None:
        whole("k", k)
    else:
        share("ratio", ratio)


def finite(name: str, value: Any) -> float:
    """The value as a float; refuses what is no number, NaN and infinity."""
    if isinstance(value, str) or not hasattr(value, "__float__"):
        raise TypeError(f"{name}: expected a number, got {value!r}")
    as_float = float(value)
    if not math.isfinite(as_float):
        raise ValueError(f"{name}: expected a finite number, got {as_float}")
    return as_float
