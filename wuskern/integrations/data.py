"""What a data loader can tell ahead of training: an example, and its samplers."""

import contextlib
import random
import sys
from collections.abc import Iterator, Mapping
from typing import Any

import torch
import torch.nn as nn
from torch import Tensor

INSIDE = ("base_dataloader", "batch_sampler", "sampler")  # where loaders and samplers keep what they draw from


def first_samples(loader: Any, model: nn.Module, count: int = 2) -> Any:
    """The first samples of a loader's data, put together as the loader does, on the model's device. No random state moves.

    Raises:
        ValueError: data that cannot be indexed, or none.
    """
    data: Any = getattr(loader, "dataset", None)
    together = getattr(loader, "collate_fn", None)
    if together is None or not hasattr(data, "__getitem__") or not hasattr(data, "__len__"):
        raise ValueError(
            f"example: expected training data with an index, got {type(data).__name__}: give a policy that has its example"
        )
    with still_random_state(model):
        samples = [data[i] for i in range(min(count, len(data)))]
        if not samples:
            raise ValueError("example: expected training data, got none")
        batch = together(samples)
    return moved(batch, next(model.parameters()).device)


def moved(value: Any, device: torch.device) -> Any:
    """The value with the tensors in nested lists, tuples and mappings on the device; mappings come back as dicts."""
    if isinstance(value, Tensor):
        return value.to(device)
    if isinstance(value, Mapping):
        return {name: moved(item, device) for name, item in value.items()}
    if isinstance(value, list | tuple):
        items = [moved(item, device) for item in value]
        return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)
    return value


@contextlib.contextmanager
def still_random_state(model: nn.Module) -> Iterator[None]:
    """A block in which random numbers may be drawn, by Python, numpy and torch, and none is missing behind it."""
    numpy = sys.modules.get("numpy")
    of_python, of_numpy = random.getstate(), numpy and numpy.random.get_state()
    devices = sorted({p.device.index for p in model.parameters() if p.is_cuda})
    try:
        with torch.random.fork_rng(devices):
            yield
    finally:
        random.setstate(of_python)
        if numpy is not None:
            numpy.random.set_state(of_numpy)


def samplers_of(loader: Any) -> list[Any]:
    """All that a loader draws indices by, samplers inside of samplers included."""
    found: list[Any] = []
    looked_at = [loader]
    while looked_at:
        looked_at = [inner for outer in looked_at for name in INSIDE if (inner := getattr(outer, name, None)) is not None]
        looked_at = [inner for inner in looked_at if not any(inner is known for known in found)]
        found += looked_at
    return found
