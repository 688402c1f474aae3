"""The file that an interrupted experiment continues from."""

import io
import os
import pickle
import zipfile
from pathlib import Path
from typing import Any, BinaryIO

import torch

from wuskern.doctor import package_version
from wuskern.train.files import opened, replacing

FORMAT, LAYOUT = "wuskern train", 5  # a change of what the file holds is another layout
CONTENT = {"experiment": str, "arguments": dict, "files": dict, "data": int, "finished": list, "runs": list}


def save(path: Path, **content: Any) -> None:
    """Replaces the file in one step. ``content``: the values that CONTENT names, of tensors and plain data only."""
    versions = {"format": FORMAT, "layout": LAYOUT, "torch": str(torch.__version__), "wuskern": package_version("wuskern")}
    with replacing(path) as handle:
        torch.save(versions | content, handle)


def size(**content: Any) -> int:
    """How many bytes a file with that content has, nearly."""
    counted = _Counted()
    torch.save(content, counted)
    return counted.bytes


class _Counted(io.BytesIO):
    """A file that counts the bytes written to it, and keeps none."""

    bytes = 0

    def write(self, data: Any) -> int:
        self.bytes += len(data)
        return len(data)


def load(path: Path) -> dict[str, Any]:
    """What ``save`` was given, and under ``written`` the file's time in nanoseconds. No code in the file is run.

    Raises:
        ValueError: no such file, a damaged one, one of another program or layout, or of another major version of torch.
    """
    try:
        with opened(path) as handle:
            written = os.fstat(handle.fileno()).st_mtime_ns
            _check_archive(handle)
            content = torch.load(handle, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file can raise nearly anything
        raise ValueError(f"--resume: expected a checkpoint that can be read, got {str(path)!r} ({_reason(error)})") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise ValueError(f"--resume: expected a checkpoint of {FORMAT}, got {str(path)!r}, which is something else")
    for name, here in (("layout", LAYOUT), ("torch", torch.__version__)):
        if _major(content.get(name)) != _major(here):
            raise ValueError(
                f"--resume: expected a checkpoint of {name} {_major(here)}, got {content.get(name)} in {str(path)!r}"
            )
    if not all(isinstance(content.get(name), kind) for name, kind in CONTENT.items()):
        raise ValueError(f"--resume: expected a checkpoint with {', '.join(CONTENT)}, got {str(path)!r} with less")
    return {name: content[name] for name in CONTENT} | {"written": written}


def _check_archive(handle: BinaryIO) -> None:
    """Raises ``ValueError`` for a wrong checksum, which torch.load passes over, or compressed content, which may be endless."""
    with zipfile.ZipFile(handle) as archive:
        if sum(entry.file_size for entry in archive.infolist()) > os.fstat(handle.fileno()).st_size:
            raise ValueError("damaged: it says that it holds more than it does")
        if damaged := archive.testzip():
            raise ValueError(f"damaged: {damaged}")
    handle.seek(0)


def _reason(error: Exception) -> str:
    """The reason in words of ours: torch's own on a refused pickle advise to load it all the same."""
    if isinstance(error, pickle.UnpicklingError):
        return "it holds more than tensors and plain data: loading that could run code, and no checkpoint of wuskern has it"
    if isinstance(error, zipfile.BadZipFile):
        return "it is no file of torch.save, or only the beginning of one"
    return (str(error).splitlines() or [type(error).__name__])[0]


def _major(version: Any) -> str:
    return str(version).split(".")[0]
