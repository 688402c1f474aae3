"""Arrays of samples and labels, from a file or a function: checked, and made tensors."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from wuskern.common.example import Samples
from wuskern.train.inputs import Inputs

MAX_CLASSES = 100_000
COLOURS = (1, 2, 3, 4)  # how many channels images usually have
BRIGHT = 16  # numbers over this are no images that were scaled


def inputs(name: str, value: Any, own_model: bool) -> tuple[Inputs, list[str]]:
    """The samples of an array, or of a mapping of several inputs, and what is to be said of them.

    Floating numbers become float32, uint8 is divided by 255. For a model of wuskern's they are images, ``[N, C, H, W]``, and
    ``[N, H, W]`` and ``[N, features]`` are taken as such; a model of one's own gets them in their shape, and whole numbers
    (int64) and bool, too.

    Raises:
        ValueError: an array that is none of these, or looks like images with the channels last.
    """
    if not isinstance(value, Mapping):
        return _one(name, _array(name, value), own_model)
    if not own_model:
        raise ValueError(f"{name}: expected one array for a model that is not your own, got {', '.join(map(str, value))}")
    made = {key: _one(f"{name}[{key!r}]", _array(f"{name}[{key!r}]", value[key]), own_model) for key in value}
    return Samples({key: x for key, (x, _) in made.items()}), [note for _, notes in made.values() for note in notes]


def _array(name: str, value: Any) -> np.ndarray:
    if isinstance(value, Tensor):
        value = value.detach().cpu()
        return (value.float() if value.dtype in (torch.bfloat16, torch.half) else value).numpy()
    if not hasattr(value, "__array__"):
        raise ValueError(f"{name}: expected an array or a tensor, got {type(value).__name__}")
    return np.asarray(value)


def _one(name: str, array: np.ndarray, own_model: bool) -> tuple[Tensor, list[str]]:
    shapes = "[N, ...]" if own_model else "[N, features], [N, H, W] or [N, C, H, W]"
    if 0 in array.shape or not (array.ndim >= 1 if own_model else 2 <= array.ndim <= 4):
        raise ValueError(f"{name}: expected {shapes} with N > 0, got {list(array.shape)}")
    notes = _about_layout(name, array.shape, own_model) if array.dtype.kind in "fu" else []
    if own_model and array.dtype.kind in "iub" and array.dtype != np.uint8:
        return torch.from_numpy(array.astype(bool if array.dtype.kind == "b" else np.int64)), notes
    if array.dtype == np.uint8:
        array = array.astype(np.float32) / 255
        notes.append(f"{name}: uint8, divided by 255")
    elif array.dtype.kind != "f":
        raise ValueError(f"{name}: expected floating numbers or uint8, got {array.dtype}")
    elif array.ndim > 2 and (most := float(np.abs(array).max())) > BRIGHT:
        notes.append(f"{name}: numbers up to {most:g}, taken as they are (uint8 would be divided by 255)")
    with np.errstate(over="ignore"):
        array = array.astype(np.float32)
    if not np.isfinite(array).all():
        raise ValueError(f"{name}: expected finite float32 numbers, got NaN or infinity")
    x = torch.from_numpy(array)
    return (x if own_model else x.view(len(x), *[1] * (4 - x.ndim), *x.shape[1:])), notes


def _about_layout(name: str, shape: tuple[int, ...], own_model: bool) -> list[str]:
    """What is to be said of images with the channels last. Raises ``ValueError`` where the model is wuskern's."""
    if len(shape) != 4 or shape[3] not in COLOURS or shape[2] == shape[3]:
        return []
    if shape[1] in COLOURS and not shape[1] == shape[2] > 1:
        return []
    if own_model:
        return [f"{name}: {list(shape)} looks like channels last, and is taken as it is"]
    raise ValueError(
        f"{name}: expected [N, C, H, W], got {list(shape)}, which looks like channels last: x.transpose(0, 3, 1, 2)"
    )


def labels(name: str, value: Any, own_model: bool) -> Tensor:
    """The labels, int64: ``[N]``, or ``[N, ...]`` for a model of one's own. Raises ``ValueError`` for anything else."""
    array = _array(name, value)
    if not (array.ndim >= 1 if own_model else array.ndim == 1) or array.dtype.kind not in "iu":
        shapes = "[N] or [N, ...]" if own_model else "[N]"
        raise ValueError(f"{name}: expected {shapes} whole numbers, got {list(array.shape)} of {array.dtype}")
    if array.size and (array.min() < 0 or array.max() >= MAX_CLASSES):
        raise ValueError(f"{name}: expected labels from 0 to {MAX_CLASSES - 1}, got {array.min()} to {array.max()}")
    return torch.from_numpy(array.astype(np.int64))


def check_alike(train: Any, test: Any, name: str = "x_test") -> None:
    """Raises ``ValueError`` where samples for testing are not such as those for training."""
    if isinstance(train, Mapping) and isinstance(test, Mapping):
        if train.keys() != test.keys():
            raise ValueError(f"{name}: expected {', '.join(map(str, train))}, as x_train, got {', '.join(map(str, test))}")
        for key in train:
            check_alike(train[key], test[key], f"{name}[{key!r}]")
        return
    if isinstance(train, Mapping) or isinstance(test, Mapping):
        raise ValueError(f"{name}: expected of the kind of x_train, got {type(test).__name__}")
    a, b = _array(name, train), _array(name, test)
    if a.dtype.kind != b.dtype.kind:  # uint8 is divided, for one
        raise ValueError(f"{name}: expected {a.dtype}, as x_train, got {b.dtype}")
    if a.shape[1:] != b.shape[1:]:
        raise ValueError(f"{name}: expected samples of {list(a.shape[1:])}, as x_train, got {list(b.shape[1:])}")
