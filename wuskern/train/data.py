"""The data of small experiments: scikit-learn's digits, CIFAR, arrays from an ``.npz`` file or a function, or text."""

import zlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from wuskern.common.arguments import whole
from wuskern.common.example import Samples
from wuskern.train import arrays, own, text
from wuskern.train.files import opened
from wuskern.train.inputs import Inputs
from wuskern.train.own import ARRAYS

DIGITS_TEST_IMAGES = 360
CIFAR = ("cifar10", "cifar100")


@dataclass(frozen=True)
class Data:
    """Samples and labels. Images: x float32 ``[N, C, H, W]``, y int64 ``[N]``. Text: x, y int64 ``[N, T]``. y < ``classes``.

    For a model of one's own x is whatever it takes. ``notes``: what its user should hear of.
    """

    name: str
    x_train: Inputs
    y_train: Tensor
    x_test: Inputs
    y_test: Tensor
    classes: int
    notes: tuple[str, ...] = ()

    def resized(self, size: int) -> "Data":
        """The data with every image bilinearly interpolated to ``size`` x ``size``. Raises ``ValueError`` for no images."""
        train, test = self.x_train, self.x_test
        if isinstance(train, Samples) or isinstance(test, Samples) or train.ndim != 4 or not train.is_floating_point():
            raise ValueError(f"--image-size: expected with images only, got {size} with {self.name}")

        def resize(x: Tensor) -> Tensor:
            return F.interpolate(x, (size, size), mode="bilinear", align_corners=False)

        return replace(self, x_train=resize(train), x_test=resize(test))

    def to(self, device: str, memory_format: torch.memory_format) -> "Data":
        """The data on the device; images are in ``memory_format``."""

        def move(x: Tensor) -> Tensor:
            return x.to(device).contiguous(memory_format=memory_format) if x.ndim == 4 else x.to(device)

        return replace(
            self,
            x_train=_each(self.x_train, move),
            x_test=_each(self.x_test, move),
            y_train=self.y_train.to(device),
            y_test=self.y_test.to(device),
        )

    def checksum(self) -> int:
        """A number made of all inputs and labels: the same data give the same one."""
        number = 0
        for x in (self.x_train, self.y_train, self.x_test, self.y_test):
            for name, values in x.inputs.items() if isinstance(x, Samples) else [("", x)]:
                number = zlib.crc32(values.cpu().contiguous().numpy().data, zlib.crc32(name.encode(), number))
        return number


def _each(x: Inputs, function: Callable[[Tensor], Tensor]) -> Inputs:
    return x.each(function) if isinstance(x, Samples) else function(x)


def load(source: str, folder: str | None = None, *, context: int = 64, limit: int = 2**18, own_model: bool = False) -> Data:
    """The data of a ``source``: ``"digits"``; ``"cifar10"`` or ``"cifar100"`` in ``folder``; the path of an ``.npz`` file with
    x_train, y_train, x_test, y_test; ``"FILE.py:function"``, which gives these; ``"text"``, the Python standard library's
    source; or the path of a ``.txt`` file, UTF-8.

    The arrays' x: ``[N, H, W]`` or ``[N, C, H, W]``, floating (taken as it is) or uint8 (divided by 255), or a table
    ``[N, features]``, which is taken as images of one row; their y: whole numbers from 0. With ``own_model`` x is taken as it
    is, also of whole numbers, or several inputs by name.

    Args:
        context: bytes of text in a window. limit: how many bytes of text are taken, from the beginning; the last tenth of
            them is for testing.

    Raises:
        ValueError: what is wrong with the file or the name, or text too short for one window in each part.
    """
    whole("context", context)
    whole("limit", limit)
    if (source in CIFAR) != (folder is not None):
        raise ValueError(f"--data-dir: expected with cifar10 and cifar100, and only there, got {folder} with {source!r}")
    if source == "digits":
        return _digits()
    if folder is not None:
        return _cifar(source, Path(folder))
    if own.is_own(source):
        return _of_arrays(source, own.arrays(source), own_model)
    path = Path(source)
    if source == "text" or path.suffix == ".txt":
        content = text.standard_library(limit) if source == "text" else text.file(path, limit)
        train, test = text.windows(content, context)
        return Data(path.stem, *train, *test, classes=text.TOKENS)
    if path.suffix != ".npz":
        raise ValueError(
            "--data: expected digits, cifar10, cifar100, text, the path of an .npz or .txt file, or FILE.py:function, got "
            f"{source!r}"
        )
    return _of_arrays(path.stem, _npz(source, path), own_model)


def _npz(source: str, path: Path) -> dict[str, np.ndarray]:
    try:
        with opened(path) as handle, np.load(handle, allow_pickle=False) as file:
            missing = [name for name in ARRAYS if name not in file.files]
            if missing:
                raise ValueError(f"--data: expected the arrays {', '.join(ARRAYS)} in {source}, got no {', '.join(missing)}")
            return {name: file[name] for name in ARRAYS}
    except Exception as error:  # a damaged archive can raise nearly anything
        if str(error).startswith("--data"):
            raise
        # NumPy's own words on a refused pickle advise to load it all the same.
        reason = "it holds Python objects: loading those could run code" if "pickle" in str(error) else str(error)
        raise ValueError(f"--data: expected a readable .npz file of plain arrays, got {source!r}: {reason}") from error


def _of_arrays(name: str, given: dict[str, Any], own_model: bool) -> Data:
    x_train, notes = arrays.inputs("x_train", given["x_train"], own_model)
    x_test, _ = arrays.inputs("x_test", given["x_test"], own_model)
    y_train, y_test = (arrays.labels(name, given[name], own_model) for name in ("y_train", "y_test"))
    arrays.check_alike(given["x_train"], given["x_test"])
    for split, x, y in (("train", x_train, y_train), ("test", x_test, y_test)):
        if len(x) != len(y):
            raise ValueError(f"y_{split}: expected {len(x)} labels, one for each sample, got {len(y)}")
    if y_train.shape[1:] != y_test.shape[1:]:
        raise ValueError(f"y_test: expected {list(y_train.shape[1:])} labels of a sample, got {list(y_test.shape[1:])}")
    classes = int(max(y_train.max(), y_test.max())) + 1
    return Data(name, x_train, y_train, x_test, y_test, classes, tuple(notes))


def _digits() -> Data:
    """The digits: 1,797 images of 8 x 8, split once and for all into 1,437 and 360 with equal shares of each digit."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    digits = load_digits()
    x = torch.from_numpy(digits.images).float()[:, None] / 16
    y = torch.from_numpy(digits.target).long()
    train, test = train_test_split(np.arange(len(y)), test_size=DIGITS_TEST_IMAGES, stratify=digits.target, random_state=0)
    mean, std = x[train].mean(), x[train].std()
    x = (x - mean) / std
    return Data("digits", x[train], y[train], x[test], y[test], classes=10)


def _cifar(name: str, folder: Path) -> Data:
    """The 60,000 images of 3 x 32 x 32, read by torchvision; channels are normalised by the training images' mean and std."""
    try:
        from torchvision import datasets  # type: ignore[import-not-found,import-untyped]
    except Exception as error:  # built for another torch, it raises more than ImportError
        reason = str(error).splitlines()[0]
        raise ValueError(f"--data: {name} needs torchvision, install the one that fits this torch ({reason})") from error
    kind = {"cifar10": datasets.CIFAR10, "cifar100": datasets.CIFAR100}[name]
    try:
        train, test = (kind(folder, train=train, download=False) for train in (True, False))
    except Exception as error:
        raise ValueError(
            f"--data-dir: expected a folder with {kind.base_folder} in it ({kind.filename}, unpacked), got {str(folder)!r} "
            f"({str(error).splitlines()[0]})"
        ) from error
    x_train, x_test = (torch.from_numpy(split.data).permute(0, 3, 1, 2).float() / 255 for split in (train, test))
    y_train, y_test = (torch.tensor(split.targets) for split in (train, test))
    std, mean = torch.std_mean(x_train, (0, 2, 3), keepdim=True)
    return Data(name, (x_train - mean) / std, y_train, (x_test - mean) / std, y_test, classes=len(train.classes))
