"""How objects say what they are, in one line."""

import reprlib
from collections import Counter
from collections.abc import Iterable
from dataclasses import fields
from typing import Any


def call(value: Any) -> str:
    """A dataclass as the call that makes it: its name, and the arguments that are not the defaults; long ones are cut."""
    given = [(f.name, getattr(value, f.name), f.default) for f in fields(value) if f.repr and hasattr(value, f.name)]
    said = (f"{name}={reprlib.repr(now)}" for name, now, default in given if repr(now) != repr(default))
    return f"{type(value).__name__}({', '.join(said)})"


def counted(words: Iterable[str]) -> str:
    """How often there is each word, in the order of the first ones: "skip in 3, dense in 1"."""
    return ", ".join(f"{word} in {count}" for word, count in Counter(words).items())
