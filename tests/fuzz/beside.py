"""What goes on beside the steps of the soak: a thread that infers, and a look at the memory."""

import contextlib
import gc
import os
import threading
from pathlib import Path

import torch
import torch.nn as nn
from torch import Tensor

MORE = {"bytes": 8 * 2**20, "tensors": 40, "objects": 5000}  # that may be there at the end


class Boom(Exception):
    """Raised where nobody expects it."""


class Infers:
    """A thread that calls the model beside training, whenever it is asked to."""

    def __init__(self) -> None:
        self.model: nn.Module | None = None
        self.wanted, self.faults, self.calls = threading.Semaphore(0), [], 0
        self.thread = threading.Thread(target=self._serve, daemon=True)
        self.thread.start()

    def stop(self) -> None:
        self.model = None
        self.wanted.release()
        self.thread.join()

    def _serve(self) -> None:
        x = torch.ones(3, 2, 6, 6, dtype=torch.float64)
        while self.wanted.acquire() and (model := self.model) is not None:
            try:
                with torch.no_grad() if self.calls % 2 else contextlib.nullcontext():
                    y = model(x)
                if y.requires_grad == bool(self.calls % 2) or not y.isfinite().all():
                    self.faults.append(f"a thread that infers got requires_grad={y.requires_grad}, {y}")
            except Boom:  # a hook of the model's
                pass
            except Exception as error:
                self.faults.append(f"a thread that infers: {type(error).__name__}: {error}")
            self.calls += 1


def used() -> dict[str, int]:
    gc.collect()
    objects = gc.get_objects()
    tensors = sum(issubclass(type(each), Tensor) for each in objects)
    resident = int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return {"bytes": resident, "tensors": tensors, "objects": len(objects)}


def grown(before: dict[str, int], after: dict[str, int]) -> list[str]:
    """What there is more of than may be, in words."""
    return [f"{name}: from {before[name]} to {after[name]}" for name in MORE if after[name] - before[name] > MORE[name]]
