"""Values that ``with`` blocks set for their length, where blocks of several threads or tasks may overlap."""

import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

T = TypeVar("T")


class Overlapping(Generic[T]):
    """One value that all threads share. Among the blocks that are still running, the one entered last sets it; when all have
    ended it is what it was before the first, in whatever order they ended.

    Args:
        read: gives the value. write: sets it.
    """

    def __init__(self, read: Callable[[], T], write: Callable[[T], None]) -> None:
        self._read, self._write = read, write
        self._inside: dict[object, T] = {}
        self._lock = threading.Lock()

    @contextlib.contextmanager
    def block(self, value: T) -> Iterator[None]:
        """A ``with`` block in which the shared value is ``value``."""
        entry = object()
        with self._lock:
            if not self._inside:
                self._outside = self._read()
            self._inside[entry] = value
            self._write(value)
        try:
            yield
        finally:
            with self._lock:
                del self._inside[entry]
                self._write([self._outside, *self._inside.values()][-1])
