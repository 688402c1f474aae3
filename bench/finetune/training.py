"""One run: a method fine-tunes a task's model for a budget of seconds, and is tested.

    python -m bench.finetune.training '{"task": "tiny", "method": "dense", "budget": 2, "lr": 0.001, "seed": 0, "dtype":
    "fp32"}'

takes the time by the wall's clock and prints one line of JSON. It is a process of its own, so that the peak of its memory is
the run's.
"""

import contextlib
import ctypes
import importlib
import json
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn as nn
from torch import Tensor

from bench.finetune.clock import Clock, WallClock
from bench.finetune.methods import METHODS, Prepared
from bench.finetune.tasks import Samples, Task, get, logits

BATCH, WARM_UP, CLIP, DECAY = 16, 0.1, 1.0, 0.01


@dataclass(frozen=True)
class Run:
    """What decides a run.

    Attributes:
        budget: seconds, from the loaded model on. dtype: "fp32", or "bf16" for autocast. split: what it is tested on.
    """

    task: str
    method: str
    budget: float
    lr: float
    seed: int
    dtype: str
    split: str = "test"

    def autocast(self) -> Any:
        return torch.autocast("cpu", torch.bfloat16) if self.dtype == "bf16" else contextlib.nullcontext()


def run(what: Run, folder: Path | None = None, clock: Clock | None = None) -> dict[str, Any]:
    """What the run gave: accuracy and loss, seconds and steps by ``clock`` (None: the wall's)."""
    task = get(what.task, folder)
    model = task.make(what.seed)
    return _train_and_test(what, task, model, clock or WallClock())[0]


def timed(what: Run, folder: Path | None = None) -> dict[str, Any]:
    """What :func:`run` gives, the times of all steps, and what the run took: peak bytes, trained and saved numbers."""
    task = get(what.task, folder)
    model = task.make(what.seed)
    for library in ("torch._dynamo", "peft"):  # imported at the first optimizer and the first adapter: in nobody's time
        with contextlib.suppress(ImportError):
            importlib.import_module(library)
    ctypes.CDLL(None).malloc_trim(0)  # what reading the data has freed would hold a part of the run's memory, unseen
    before, clock = _resident_bytes("VmRSS"), WallClock()
    Path("/proc/self/clear_refs").write_text("5")  # the peak from here on
    record, prepared = _train_and_test(what, task, model, clock, tested=False)
    peak, saved = _resident_bytes("VmHWM"), prepared.saved()
    return record | {
        "threads": torch.get_num_threads(), "first": clock.first, "phases": clock.phases, "peak_bytes": peak - before,
        "parameters": sum(p.numel() for p in prepared.trained),
        "saved_bytes": sum(value.numel() * value.element_size() for value in saved.values()),
        "saved_numbers": sum(value.numel() for value in saved.values() if value.is_floating_point()),
    }  # fmt: skip


def _train_and_test(
    what: Run, task: Task, model: nn.Module, clock: Clock, tested: bool = True
) -> tuple[dict[str, Any], Prepared]:
    torch.manual_seed(what.seed)
    prepared = METHODS[what.method](model.train(), task, what.seed)
    steps, seconds = train(prepared, task.train, what, clock)
    record = asdict(what) | {"steps": steps, "seconds": seconds}
    if tested:
        record["accuracy"], record["loss"] = test(prepared.model, task.part(what.split), what)
    return record, prepared


def train(prepared: Prepared, samples: Samples, what: Run, clock: Clock) -> tuple[int, float]:
    """Trains until the budget is used up, to the nearest step; returns the steps and the seconds."""
    optimizer = prepared.optimizer(prepared.trained, lr=what.lr, weight_decay=DECAY, fused=True)
    policy, later = prepared.policy, dict(prepared.at)
    if policy is not None:
        policy.attach(optimizer)
    before = None
    for steps, index in enumerate(_order(len(samples), what.seed)):
        now = clock()
        if now + (0 if before is None else now - before) / 2 > what.budget:
            return steps, now
        before, share = now, now / what.budget
        for at in [at for at in later if at <= share]:
            later.pop(at)()
            clock.next_phase()
        for group in optimizer.param_groups:
            group["lr"] = what.lr * min(share / WARM_UP + 0.01, (1 - share) / (1 - WARM_UP), 1.0)
        _step(prepared, optimizer, index, samples.labels[index], what)
    raise AssertionError("the order of samples never ends")


def _step(prepared: Prepared, optimizer: torch.optim.Optimizer, index: Tensor, labels: Tensor, what: Run) -> None:
    policy = prepared.policy
    if policy is not None:
        policy.before_step()
    with what.autocast():
        loss = nn.functional.cross_entropy(prepared.forward(index).float(), labels)
    loss.backward()
    nn.utils.clip_grad_norm_([p for p in prepared.trained if p.grad is not None], CLIP)
    optimizer.step()
    optimizer.zero_grad()
    if policy is not None:
        policy.after_step()


def _order(samples: int, seed: int) -> Iterator[Tensor]:
    """Batches of epochs without end; the last samples of an epoch that fill no batch are left out."""
    draw = torch.Generator().manual_seed(seed)
    while True:
        yield from torch.randperm(samples, generator=draw)[: samples // BATCH * BATCH].split(BATCH)


@torch.no_grad()
def test(model: nn.Module, samples: Samples, what: Run) -> tuple[float, float]:
    """The accuracy and the mean loss; leaves the model in evaluation mode."""
    model.eval()
    right, loss = 0, 0.0
    for index in torch.arange(len(samples)).split(64):
        with what.autocast():
            found = logits(model(**samples.batch(index))).float()
        right += int((found.argmax(1) == samples.labels[index]).sum())
        loss += float(nn.functional.cross_entropy(found, samples.labels[index], reduction="sum"))
    return right / len(samples), loss / len(samples)


def _resident_bytes(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name + ":")) * 1024


if __name__ == "__main__":
    given = json.loads(sys.argv[1])
    where = given.pop("folder", None)
    print(json.dumps(timed(Run(**given), None if where is None else Path(where))))
