"""The file that an interrupted experiment continues from."""

import zipfile
from pathlib import Path
from typing import Any

import torch

from wuskern.doctor import package_version
from wuskern.train.files import replacing

FORMAT, LAYOUT = "wuskern train", 2  # a change of what the file holds is another layout
CONTENT = {"arguments": dict, "data": int, "finished": list, "runs": list}


def save(path: Path, **content: Any) -> None:
    """Replaces the file in one step. ``content``: what CONTENT names, tensors and plain data only."""
    versions = {"format": FORMAT, "layout": LAYOUT, "torch": str(torch.__version__), "wuskern": package_version("wuskern")}
    with replacing(path) as handle:
        torch.save(versions | content, handle)


def load(path: Path) -> dict[str, Any]:
    """What ``save`` was given. Runs no code of the file.

    Raises:
        ValueError: no such file, a damaged one, one of another program or layout, or of another major version of torch.
    """
    try:
        with zipfile.ZipFile(path) as file:
            damaged = file.testzip()  # torch.load does not compare checksums
        if damaged:
            raise ValueError(f"damaged: {damaged}")
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file can raise nearly anything
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(f"--resume: expected a checkpoint that can be read, got {str(path)!r} ({reason})") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise ValueError(f"--resume: expected a checkpoint of {FORMAT}, got {str(path)!r}, which is something else")
    for name, here in (("layout", LAYOUT), ("torch", torch.__version__)):
        if _major(content.get(name)) != _major(here):
            raise ValueError(
                f"--resume: expected a checkpoint of {name} {_major(here)}, got {content.get(name)} in {str(path)!r}"
            )
    if not all(isinstance(content.get(name), kind) for name, kind in CONTENT.items()):
        raise ValueError(f"--resume: expected a checkpoint with {', '.join(CONTENT)}, got {str(path)!r} with less")
    return {name: content[name] for name in CONTENT}


def _major(version: Any) -> str:
    return str(version).split(".")[0]
