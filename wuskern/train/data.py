"""The data of small experiments: scikit-learn's handwritten digits, CIFAR, images from an ``.npz`` file, or text."""

import zlib
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from wuskern.common.arguments import whole
from wuskern.train import text
from wuskern.train.files import opened

ARRAYS = ("x_train", "y_train", "x_test", "y_test")
DIGITS_TEST_IMAGES = 360
CIFAR = ("cifar10", "cifar100")
MAX_CLASSES = 100_000
COLOURS = (1, 3, 4)  # how many channels images usually have


@dataclass(frozen=True)
class Data:
    """Samples and labels. Images: x float32 ``[N, C, H, W]``, y int64 ``[N]``. Text: x, y int64 ``[N, T]``. y < ``classes``."""

    name: str
    x_train: Tensor
    y_train: Tensor
    x_test: Tensor
    y_test: Tensor
    classes: int

    def resized(self, size: int) -> "Data":
        """The data with every image bilinearly interpolated to ``size`` x ``size``. Raises ``ValueError`` for text."""
        if self.x_train.ndim != 4:
            raise ValueError(f"--image-size: expected with images only, got {size} with the text {self.name}")

        def resize(x: Tensor) -> Tensor:
            return F.interpolate(x, (size, size), mode="bilinear", align_corners=False)

        return replace(self, x_train=resize(self.x_train), x_test=resize(self.x_test))

    def to(self, device: str, memory_format: torch.memory_format) -> "Data":
        """The data on the device; images are in ``memory_format``."""

        def move(x: Tensor) -> Tensor:
            return x.to(device).contiguous(memory_format=memory_format) if x.ndim == 4 else x.to(device)

        return replace(
            self,
            x_train=move(self.x_train),
            x_test=move(self.x_test),
            y_train=self.y_train.to(device),
            y_test=self.y_test.to(device),
        )

    def checksum(self) -> int:
        """A number made of all inputs and labels: the same data give the same one."""
        number = 0
        for x in (self.x_train, self.y_train, self.x_test, self.y_test):
            number = zlib.crc32(x.cpu().contiguous().numpy().data, number)
        return number


def load(source: str, folder: str | None = None, *, context: int = 64, limit: int = 2**18) -> Data:
    """The data of a ``source``: ``"digits"``; ``"cifar10"`` or ``"cifar100"`` in ``folder``; the path of an ``.npz`` file with
    x_train, y_train, x_test, y_test; ``"text"``, the Python standard library's source; or the path of a ``.txt`` file, UTF-8.

    An ``.npz`` file's x: ``[N, H, W]`` or ``[N, C, H, W]``, floating (taken as it is) or uint8 (divided by 255), or a table
    ``[N, features]``, which is taken as images of one row; its y: whole numbers from 0.

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
    path = Path(source)
    if source == "text" or path.suffix == ".txt":
        content = text.standard_library(limit) if source == "text" else text.file(path, limit)
        train, test = text.windows(content, context)
        return Data(path.stem, *train, *test, classes=text.TOKENS)
    if path.suffix != ".npz":
        raise ValueError(
            f"--data: expected digits, cifar10, cifar100, text or the path of an .npz or .txt file, got {source!r}"
        )
    return _npz(source, path)


def _npz(source: str, path: Path) -> Data:
    try:
        with opened(path) as handle, np.load(handle, allow_pickle=False) as file:
            missing = [name for name in ARRAYS if name not in file.files]
            if missing:
                raise ValueError(f"--data: expected the arrays {', '.join(ARRAYS)} in {source}, got no {', '.join(missing)}")
            arrays = {name: file[name] for name in ARRAYS}
    except Exception as error:  # a damaged archive can raise nearly anything
        if str(error).startswith("--data"):
            raise
        # NumPy's own words on a refused pickle advise to load it all the same.
        reason = "it holds Python objects: loading those could run code" if "pickle" in str(error) else str(error)
        raise ValueError(f"--data: expected a readable .npz file of plain arrays, got {source!r}: {reason}") from error

    x_train, x_test = (_images(name, arrays[name]) for name in ("x_train", "x_test"))
    y_train, y_test = (_labels(name, arrays[name]) for name in ("y_train", "y_test"))
    if x_train.shape[1:] != x_test.shape[1:]:
        raise ValueError(f"x_test: expected images of {tuple(x_train.shape[1:])}, got {tuple(x_test.shape[1:])}")
    for split, x, y in (("train", x_train, y_train), ("test", x_test, y_test)):
        if len(x) != len(y):
            raise ValueError(f"y_{split}: expected {len(x)} labels, one for each image, got {len(y)}")
    return Data(path.stem, x_train, y_train, x_test, y_test, classes=int(max(y_train.max(), y_test.max())) + 1)


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


def _images(name: str, array: np.ndarray) -> Tensor:
    if array.ndim not in (2, 3, 4) or 0 in array.shape:
        raise ValueError(f"{name}: expected [N, features], [N, H, W] or [N, C, H, W] with N > 0, got {list(array.shape)}")
    if array.ndim == 4 and array.shape[3] in COLOURS and array.shape[1] not in COLOURS:
        raise ValueError(
            f"{name}: expected [N, C, H, W], got {list(array.shape)}, which looks like channels last: x.transpose(0, 3, 1, 2)"
        )
    if array.dtype == np.uint8:
        array = array.astype(np.float32) / 255
    if array.dtype.kind != "f":
        raise ValueError(f"{name}: expected floating numbers or uint8, got {array.dtype}")
    with np.errstate(over="ignore"):
        array = array.astype(np.float32)
    if not np.isfinite(array).all():
        raise ValueError(f"{name}: expected finite float32 numbers, got NaN or infinity")
    x = torch.from_numpy(array)
    return x.view(len(x), *[1] * (4 - x.ndim), *x.shape[1:])


def _labels(name: str, array: np.ndarray) -> Tensor:
    if array.ndim != 1 or array.dtype.kind not in "iu":
        raise ValueError(f"{name}: expected [N] whole numbers, got {list(array.shape)} of {array.dtype}")
    if len(array) and (array.min() < 0 or array.max() >= MAX_CLASSES):
        raise ValueError(f"{name}: expected labels from 0 to {MAX_CLASSES - 1}, got {array.min()} to {array.max()}")
    return torch.from_numpy(array.astype(np.int64))
