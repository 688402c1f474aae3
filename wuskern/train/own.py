"""The user's own model and data, functions of a Python file: ``--model FILE.py:function`` and ``--data FILE.py:function``."""

import contextlib
import hashlib
import inspect
import random
import weakref
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn as nn

from wuskern.common.example import Samples
from wuskern.common.from_file import function_from, said_in_one_line
from wuskern.train.files import opened
from wuskern.train.inputs import Inputs

ARRAYS = ("x_train", "y_train", "x_test", "y_test")
ARGUMENTS = ("model", "data")  # those that may name a function

_made: weakref.WeakSet[nn.Module] = weakref.WeakSet()  # what functions have given so far


def is_own(text: str) -> bool:
    """Whether the text names a function of a file, or a file."""
    return text.endswith(".py") or ".py:" in text


def file_of(text: str) -> Path:
    return Path(text.rpartition(":")[0] if ".py:" in text else text).expanduser()


def model(text: str, x: Inputs, classes: int) -> nn.Module:
    """A new model of the function, which is given ``classes`` and ``shape``, that of a sample, if it names them.

    Draws of torch, Python's random and NumPy in it follow torch's seed; nobody else's change.

    Raises:
        ValueError: there is no such function, it raises, or it gives no new module with something to train.
    """
    function = function_from(text, "--model")
    shape = {n: tuple(v.shape[1:]) for n, v in x.inputs.items()} if isinstance(x, Samples) else tuple(x.shape[1:])
    with said_in_one_line("--model", file_of(text)), _seeded(torch.initial_seed()):
        names = inspect.signature(function).parameters
        given = {name: value for name, value in (("classes", classes), ("shape", shape)) if name in names}
        made = function(**given)
    if not isinstance(made, nn.Module):
        raise ValueError(f"--model: expected {text} to give a torch.nn.Module, got {type(made).__name__}")
    if not any(parameter.requires_grad for parameter in made.parameters()):
        raise ValueError(f"--model: expected {text} to give a model with parameters that train, got none")
    if any(module in _made for module in made.modules()):
        raise ValueError(f"--model: expected {text} to give a new model in each call, got parts of an earlier one")
    _made.update(made.modules())
    return made


def arrays(text: str) -> dict[str, Any]:
    """What the function of the data gives, by the names of ``ARRAYS``: it gives the four in that order, or a mapping of them.

    Raises ``ValueError`` where there is no such function, it raises, or it gives something else.
    """
    function = function_from(text, "--data")
    with said_in_one_line("--data", file_of(text)):
        made = function()
    if isinstance(made, Mapping) and all(name in made for name in ARRAYS):
        return {name: made[name] for name in ARRAYS}
    if isinstance(made, tuple | list) and len(made) == len(ARRAYS):
        return dict(zip(ARRAYS, made, strict=True))
    got = f"{len(made)} things" if isinstance(made, tuple | list) else type(made).__name__
    got = f"a mapping of {', '.join(map(str, made)) or 'nothing'}" if isinstance(made, Mapping) else got
    raise ValueError(f"--data: expected {', '.join(ARRAYS)} from {text}, as four values or a mapping, got {got}")


def checksums(arguments: Mapping[str, Any]) -> dict[str, str]:
    """A checksum of each file whose function an argument names, by the argument.

    Raises ``ValueError`` where a file cannot be read.
    """
    return {name: _checksum(name, arguments[name]) for name in ARGUMENTS if is_own(arguments[name])}


def _checksum(name: str, text: str) -> str:
    try:
        with opened(file_of(text)) as handle:
            return hashlib.sha256(handle.read()).hexdigest()
    except OSError as error:
        raise ValueError(f"--{name}: expected a file that can be read, got {file_of(text)} ({error})") from error


def check_unchanged(recorded: Mapping[str, Any], arguments: Mapping[str, Any], checkpoint: Path) -> None:
    """Raises ``ValueError`` where a file is another one than when the checkpoint's experiment began."""
    for name, checksum in checksums(arguments).items():
        if checksum != recorded.get(name):
            file = file_of(arguments[name])
            raise ValueError(f"--{name}: expected {file} as it was when {checkpoint} was begun, got it changed since")


@contextlib.contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """A block in which Python's random and NumPy's old functions draw from that seed; both go on as before."""
    python, numpy = random.getstate(), np.random.get_state()  # noqa: NPY002  (others draw from it)
    try:
        random.seed(seed)
        np.random.seed(seed % 2**32)  # noqa: NPY002
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)  # noqa: NPY002
