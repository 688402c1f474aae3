"""Files that are whole or absent, whenever the process dies."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A file to write that takes the place of ``path`` in one step at the end: a reader, or a crash, sees the old or the new.

    An error or Ctrl-C inside leaves ``path`` alone. A process that is killed can leave a ``.tmp`` file beside it, which the
    next write replaces.
    """
    temporary = path.with_name(path.name + ".tmp")
    try:
        with temporary.open("wb") as handle:
            yield handle
            handle.flush()
            os.fsync(handle.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
