"""Where an experiment's files go: checked before the first epoch, and this process's alone until the last one."""

import contextlib
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from wuskern.train import files, results
from wuskern.train.log import TENSORBOARD

RESULTS, PICTURE, FRONT = "results.json", "accuracy.png", "front.png"
# Upper bounds: of an epoch of a run in results.json, in a log, in a checkpoint, and of both pictures.
RESULT_BYTES, LOG_BYTES, RECORD_BYTES, PICTURE_BYTES = 2**10, 2**10, 2**9, 2**21


@dataclass(frozen=True)
class Output:
    """The files that an experiment writes.

    Attributes:
        out: the folder of results and pictures. checkpoint: a file, or None.
        overwrite: whether what is there may be replaced.
        continued: the checkpoint that the experiment goes on from, if any. written: its time when it was read.
        experiment: the identity of the experiment, whose own results may be replaced.
        read: files that the experiment reads, and must not write over.
        logs: what else it writes in ``out``: log.csv, or the folder tensorboard.
    """

    out: Path
    checkpoint: Path | None = None
    overwrite: bool = False
    continued: Path | None = None
    written: int = 0
    experiment: str | None = None
    read: tuple[Path, ...] = ()
    logs: tuple[str, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        """What it writes in ``out``."""
        return RESULTS, PICTURE, FRONT, *self.logs

    def check(self) -> None:
        """Raises ``ValueError``, with the argument's name, where something is in the way or would be lost."""
        with _named("--out"):
            self._check_out()
        if self.checkpoint is not None:
            with _named("--checkpoint"):
                self._check_checkpoint(self.checkpoint)

    def _check_out(self) -> None:
        if os.path.lexists(self.out) and not self.out.is_dir():
            raise ValueError(f"expected a directory, got {self.out}, which is something else")
        is_ours = self.experiment is not None and results.experiment_of(self.out / RESULTS) == self.experiment
        for name in self.names:
            if name != TENSORBOARD:
                check_file(self.out / name)
            elif os.path.lexists(self.out / name) and not (self.out / name).is_dir():
                raise ValueError(f"expected a directory for events, got {self.out / name}, which is something else")
            for taken in (*self.read, *filter(None, [self.continued])):
                if same(self.out / name, taken):
                    raise ValueError(f"expected a directory whose {name} is nothing that is read, got {self.out}")
            if os.path.lexists(self.out / name) and not self.overwrite and not is_ours:
                whose = " of another experiment" if self.continued else ""
                raise ValueError(f"expected a directory without {name}{whose} (or --overwrite), got {self.out}")

    def _check_checkpoint(self, path: Path) -> None:
        written = [self.out / name for name in self.names]
        for taken in (self.out, *written, files.lock_of(self.out / RESULTS), *self.read):
            if same(path, taken):
                raise ValueError(f"expected a file of its own, got {path}, which is {taken} too")
        continues = self.continued is not None and same(path, self.continued)
        if continues and path.stat().st_mtime_ns != self.written:
            raise ValueError(f"expected {path} as it was read, got one that another process has written since")
        if os.path.lexists(path) and not (self.overwrite or continues):
            raise ValueError(f"expected a new file (or --overwrite, or --resume to continue), got {path}")
        check_file(path)

    @contextlib.contextmanager
    def claimed(self, epochs: int, state_bytes: int) -> Iterator[None]:
        """A block in which no other process can claim these files, and there is room for them. An ``out`` that is made for it
        and stays empty is removed again.

        Args:
            epochs: of all runs together. state_bytes: what all runs' states take in a checkpoint.

        Raises:
            ValueError: as ``check``; another process writes one of these files; the disk cannot take them.
        """
        with contextlib.ExitStack() as stack:
            with _named("--out"):
                stack.enter_context(_made(self.out))
                stack.enter_context(files.claimed(self.out / RESULTS))
            if self.checkpoint is not None:
                with _named("--checkpoint"):
                    stack.enter_context(files.claimed(self.checkpoint))
            self.check()  # a process that has ended since may have left something
            self._check_room(epochs * (RESULT_BYTES + LOG_BYTES * len(self.logs)), epochs * RECORD_BYTES + state_bytes)
            yield

    def _check_room(self, results: int, checkpoint: int) -> None:
        """Checks the room, for twice a file that is replaced: the new one is whole before the old one goes."""
        together = 2 * results + PICTURE_BYTES
        if self.checkpoint is not None:
            with _named("--checkpoint"):
                size, old = checkpoint, self.checkpoint.stat().st_size if self.checkpoint.exists() else 0
                old_and_new = max(size, 2 * size - old)
                files.check_room(self.checkpoint.parent, size, old_and_new)
                if self.checkpoint.parent.stat().st_dev == self.out.stat().st_dev:
                    together += old_and_new
        with _named("--out"):
            files.check_room(self.out, max(results, PICTURE_BYTES // 2), together)


@contextlib.contextmanager
def _named(argument: str) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError) as error:
        raise ValueError(f"{argument}: {error}") from error


@contextlib.contextmanager
def _made(folder: Path) -> Iterator[None]:
    """A block with the folder, for which it and its parents are made; those that are empty at the end are removed."""
    lacking = [missing for missing in (folder, *folder.parents) if not missing.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        yield
    finally:
        with contextlib.suppress(OSError):
            for made in lacking:
                made.rmdir()


def check_file(path: Path) -> None:
    """Raises ``ValueError`` for what cannot be replaced; a link can, whatever it leads to."""
    with contextlib.suppress(FileNotFoundError):
        mode = path.lstat().st_mode
        if not (stat.S_ISREG(mode) or stat.S_ISLNK(mode)):
            raise ValueError(f"expected a file that can be replaced, got {path}, which is none")


def same(a: Path, b: Path) -> bool:
    """Whether two paths name one file, or one place for a file."""
    if a.exists() and b.exists() and os.path.samefile(a, b):
        return True
    return a.name == b.name and os.path.realpath(a.parent) == os.path.realpath(b.parent)
