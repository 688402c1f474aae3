"""A function of a Python file that a user names as ``FILE.py:function``, such as ``own.py:make_model``."""

import importlib.util
import sys
import traceback
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

_loaded: dict[Path, ModuleType] = {}  # by the file, each executed once


def function_from(text: str, argument: str) -> Callable[..., Any]:
    """The function that ``text`` names. Its file is executed once, however many of its functions are asked for.

    While the file is executed its folder comes first where imports look, as in ``python FILE.py``, and last from then on, so
    that functions which import a neighbour find it. A file that fails is forgotten.

    Args:
        text: ``FILE.py:function``. argument: what the user calls it, such as ``--model``; errors begin with it.

    Raises:
        ValueError: the text is no such thing, there is no such file or no such function in it, it cannot be called, or the file
            raises, with the line where it does.
    """
    file, _, name = text.rpartition(":")
    if not file.endswith(".py") or not name.isidentifier():
        raise ValueError(f"{argument}: expected FILE.py:function, got {text!r}")
    path = Path(file).expanduser().resolve()
    if not path.is_file():
        raise ValueError(f"{argument}: expected a file, got {file}, which does not exist")
    module = _module(path, argument)
    if name not in vars(module):
        raise ValueError(f"{argument}: expected a function of {file}, {_functions(module)}, got {name!r}")
    function = vars(module)[name]
    if not callable(function):
        raise ValueError(f"{argument}: expected a function, got {name} of {file}, which is of type {type(function).__name__}")
    return function  # type: ignore[no-any-return]


@contextmanager
def said_in_one_line(argument: str, path: str | Path) -> Iterator[None]:
    """A block of the user's own code: what it raises becomes a ``ValueError`` of one line that says where in the file."""
    try:
        yield
    except (Exception, SystemExit) as error:
        raise ValueError(f"{argument}: {path}{_line(error, Path(path).resolve())}: {_described(error)}") from error


def _module(path: Path, argument: str) -> ModuleType:
    """The module that the file makes. Raises ``ValueError`` where it raises, and has then left nothing of it."""
    if path in _loaded:
        return _loaded[path]
    if (imported := sys.modules.get(path.stem)) is not None and _is_of(imported, path):  # by a neighbour
        return imported
    name = _free_name(path)
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None  # the name ends in .py
    module = importlib.util.module_from_spec(spec)
    folder = str(path.parent)
    sys.modules[name] = module  # ahead of its execution, as pickle, dataclasses and a neighbour that imports it want it
    sys.path.insert(0, folder)
    try:
        with said_in_one_line(argument, path):
            spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    finally:
        sys.path.remove(folder)
    if folder not in sys.path:
        sys.path.append(folder)
    _loaded[path] = module
    return module


def _is_of(module: ModuleType, path: Path) -> bool:
    file = getattr(module, "__file__", None)
    return file is not None and Path(file).resolve() == path


def _free_name(path: Path) -> str:
    """The file's own name, by which its neighbours would import it; where that is another module's, one that nobody has."""
    name = path.stem
    taken = name in sys.modules or name in sys.stdlib_module_names or not name.isidentifier()
    return f"_{zlib.crc32(str(path).encode()):08x}_{name}" if taken else name


def _functions(module: ModuleType) -> str:
    own = [name for name, value in vars(module).items() if getattr(value, "__module__", None) == module.__name__]
    return f"which has {', '.join(own)}" if own else "which has none"


def _line(error: BaseException, path: Path) -> str:
    """Where in the file the error arose: the innermost of its lines on the way there; nothing where it has none."""
    if isinstance(error, SyntaxError) and error.filename is not None and Path(error.filename).resolve() == path:
        return f", line {error.lineno}"
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if Path(frame.filename).resolve() == path]
    return f", line {lines[-1]}" if lines else ""


def _described(error: BaseException) -> str:
    text = (error.msg if isinstance(error, SyntaxError) else str(error)).strip().splitlines()
    return f"{type(error).__name__}: {text[0]}" if text else type(error).__name__
