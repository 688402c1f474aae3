"""What a reader of the seconds needs to know of the machine, and a log that stays silent while a model is tried out."""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn as nn

from wuskern.doctor import environment as of_machine

BUSY = 0.25  # of the cores at work before a profile begins: its seconds are then another program's, too


def environment(model: nn.Module, device: str, autocast: torch.dtype | None) -> dict[str, Any]:
    """Versions, processor, threads, and in which numbers the model computes; nothing that names a machine."""
    dtypes = sorted({str(p.dtype)[6:] for p in model.parameters() if p.is_floating_point()})
    numbers = ", ".join(dtypes) + (f" with {str(autocast)[6:]} autocast" if autocast is not None else "")
    return of_machine(device) | {"dtype": numbers}


def said_of_load() -> list[str]:
    """A warning where other programs are at work."""
    cores = os.cpu_count() or 1
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    if load <= BUSY * cores:
        return []
    return [f"Other programs kept {load:.1f} of {cores} cores busy when this began: trust ratios, and not seconds."]


@contextmanager
def quietly() -> Iterator[None]:
    """A block in which the logger "wuskern" says nothing: what a model is put through is no decision of the user's."""
    log = logging.getLogger("wuskern")
    log.addFilter(_nothing)
    try:
        yield
    finally:
        log.removeFilter(_nothing)


def _nothing(_: logging.LogRecord) -> bool:
    return False
