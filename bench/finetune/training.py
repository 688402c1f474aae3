"""One run: a method fine-tunes a task's model for a budget of seconds, and is tested.

    python -m bench.finetune.training '{"task": "tiny", "method": "dense", "budget": 2, "lr": 0.001, "seed": 0, "dtype":
    "fp32"}'

prints one line of JSON. A process of its own, so that the peak of its memory is the run's.
"""

import contextlib
import json
import resource
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn as nn
from torch import Tensor

from bench.finetune.methods import METHODS, Prepared
from bench.finetune.tasks import TASKS, Samples, logits

BATCH, WARM_UP, CLIP, DECAY = 16, 0.1, 1.0, 0.01


@dataclass(frozen=True)
class Run:
    """What decides a run. ``budget``: seconds of wall time, from the loaded model on."""

    task: str
    method: str
    budget: float
    lr: float
    seed: int
    dtype: str  # fp32, or bf16: autocast

    def autocast(self) -> Any:
        return torch.autocast("cpu", torch.bfloat16) if self.dtype == "bf16" else contextlib.nullcontext()


def run(what: Run, folder: Path | None = None) -> dict[str, Any]:
    """What the run gave: accuracy, seconds, steps, seconds before the first step, peak bytes, trained and saved numbers."""
    task = TASKS[what.task](folder)
    model = task.make(what.seed)
    before = _peak_bytes()
    torch.manual_seed(what.seed)
    begin = time.perf_counter()
    prepared = METHODS[what.method](model.train(), task, what.seed)
    steps, first = _train(prepared, task.train, what, begin)
    seconds, peak = time.perf_counter() - begin, _peak_bytes()
    saved = prepared.saved()
    correct, loss = _test(prepared.model, task.test, what)
    return {
        **asdict(what), "accuracy": correct, "loss": loss, "seconds": seconds, "steps": steps, "before_first_step": first,
        "peak_bytes": peak - before, "parameters": sum(p.numel() for p in prepared.trained),
        "saved_bytes": sum(value.numel() * value.element_size() for value in saved.values()),
        "saved_numbers": sum(value.numel() for value in saved.values() if value.is_floating_point()),
    }  # fmt: skip


def _train(prepared: Prepared, samples: Samples, what: Run, begin: float) -> tuple[int, float]:
    """Trains until the budget is used up; returns the steps, and the seconds ahead of the first one."""
    optimizer = prepared.optimizer(prepared.trained, lr=what.lr, weight_decay=DECAY, fused=True)
    policy, later = prepared.policy, dict(prepared.at)
    if policy is not None:
        policy.attach(optimizer)
    first, steps, longest = time.perf_counter() - begin, 0, 0.0
    for index in _order(len(samples), what.seed):
        now = time.perf_counter() - begin
        share = now / what.budget
        if now + longest / 2 > what.budget:
            return steps, first
        for at in [at for at in later if at <= share]:
            later.pop(at)()
        for group in optimizer.param_groups:
            group["lr"] = what.lr * min(share / WARM_UP + 0.01, (1 - share) / (1 - WARM_UP), 1.0)
        _step(prepared, optimizer, index, samples.labels[index], what)
        steps, longest = steps + 1, max(longest * 0.9, time.perf_counter() - begin - now)
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
def _test(model: nn.Module, samples: Samples, what: Run) -> tuple[float, float]:
    model.eval()
    right, loss = 0, 0.0
    for index in torch.arange(len(samples)).split(64):
        with what.autocast():
            found = logits(model(**samples.batch(index))).float()
        right += int((found.argmax(1) == samples.labels[index]).sum())
        loss += float(nn.functional.cross_entropy(found, samples.labels[index], reduction="sum"))
    return right / len(samples), loss / len(samples)


def _peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


if __name__ == "__main__":
    given = json.loads(sys.argv[1])
    where = given.pop("folder", None)
    print(json.dumps(run(Run(**given), None if where is None else Path(where))))
