"""One run: two processes train by a method for a budget of seconds, and are tested on the way while the clock stands.

    python -m bench.network.training RANK ADDRESS INTERFACE '{"task": "tiny", "method": "dense", ...}' OUT [FOLDER]

is one of the two. Each has one half of the samples, for good. Both go by the first one's clock, which they hear of every few
steps: a message of its own that every method pays.
"""

import contextlib
import importlib
import json
import os
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.nn as nn
from torch import Tensor

from bench import link
from bench.finetune.tasks import TASKS, Samples, Task, logits
from bench.network.methods import METHODS, Together
from wuskern.bench.clocks import settle_allocator
from wuskern.train.data import load
from wuskern.train.models import MODELS

PORT, WORLD = 29478, 2
IMPORTED = "torch._dynamo", "torch.distributed.optim", "peft"  # by DDP and by methods, which would be in their time
BATCH, WARM_UP, DECAY = 16, 0.1, 0.01  # samples of each process in a step
ROUND, TESTS = 8, 10  # steps between two looks at the clock; tests in a run


@dataclass(frozen=True)
class Run:
    """What decides a run. ``rate``: of the link, as tc writes it, or "loopback"; ``budget``: seconds of training."""

    task: str
    method: str
    rate: str
    budget: float
    lr: float
    seed: int


# ---- VGG-11 from scratch -----------------------------------------------------------------------------------------------


def _vgg11(name: str, width: float) -> Task:
    data = load("digits")
    train, test = (Samples({"input": x}, y) for x, y in ((data.x_train, data.y_train), (data.x_test, data.y_test)))

    def make(seed: int) -> nn.Module:
        torch.manual_seed(seed)
        return MODELS["vgg11"](1, tuple(data.x_train.shape[2:]), 10, width)

    def refuse(*_: Any) -> Tensor:
        raise NotImplementedError("a network that learns from scratch has no front to freeze")

    validation = test.part(slice(0))  # nothing is chosen
    return Task(
        name, train, validation, test, make, head="", body="", front=(), projections=(), adapted="", begin=refuse, end=refuse
    )


def task_of(name: str, folder: Path | None) -> Task:
    if name in ("vgg11", "small vgg11"):
        return _vgg11(name, 1.0 if name == "vgg11" else 0.1)
    return TASKS[name](folder)


# ---- one process -------------------------------------------------------------------------------------------------------


class Clock:
    """The first process's seconds of training, as all heard of them last."""

    def __init__(self) -> None:
        self.stood, self.begin = 0.0, time.perf_counter()

    def tell(self) -> float:
        told = torch.tensor([time.perf_counter() - self.begin - self.stood], dtype=torch.float64)
        dist.broadcast(told, 0)
        return float(told)

    def stand(self, since: float) -> None:
        """Takes the time since then out."""
        self.stood += time.perf_counter() - since


def run(what: Run, rank: int, interface: str | None, folder: Path | None = None) -> dict[str, Any]:
    """The tests of a run, ``[seconds, accuracy]`` each, its steps, and the bytes that a step sent through the interface."""
    task = task_of(what.task, folder)
    model = task.make(what.seed).train()
    for name in IMPORTED:
        with contextlib.suppress(ImportError):  # who lacks peft has no LoRA
            importlib.import_module(name)
    dist.barrier()
    clock = Clock()
    torch.manual_seed(what.seed)
    together = METHODS[what.method](model, task, what.seed)
    before = link.sent(interface) if interface else 0
    tests, steps = _train(together, task, what, rank, clock)
    sent = (link.sent(interface) - before) / max(steps, 1) if interface else None
    return asdict(what) | {"tests": tests, "steps": steps, "sent": sent}


def _train(together: Together, task: Task, what: Run, rank: int, clock: Clock) -> tuple[list[list[float]], int]:
    prepared, ddp = together.prepared, together.ddp()
    optimizer = prepared.optimizer(prepared.trained, lr=what.lr, weight_decay=DECAY)
    policy = prepared.policy
    if policy is not None:
        policy.attach(optimizer)
    stepper = optimizer if together.wrap is None else together.wrap(optimizer, ddp)
    tests: list[list[float]] = []
    batches, steps, loss = _order(len(task.train), rank, what.seed), 0, torch.zeros(())
    while (now := clock.tell()) < what.budget:
        if now >= len(tests) * what.budget / TESTS:
            tests.append([now, _tested(prepared.model, task.test, clock)])
        for group in optimizer.param_groups:
            share = now / what.budget
            group["lr"] = what.lr * min(share / WARM_UP + 0.01, (1 - share) / (1 - WARM_UP), 1.0)
        total = 0.0
        for _ in range(ROUND):
            index = next(batches)
            if policy is not None:
                policy.before_step()
            loss = nn.functional.cross_entropy(ddp(index).float(), task.train.labels[index])
            loss.backward()
            stepper.step()
            optimizer.zero_grad()
            if policy is not None:
                policy.after_step()
            total += float(loss.detach()) / ROUND
        steps += ROUND
        if together.by_rounds is not None:
            together.by_rounds.step(_mean(total))
    tests.append([what.budget, _tested(prepared.model, task.test, clock)])
    return tests, steps


def _mean(value: float) -> float:
    total = torch.tensor([value], dtype=torch.float64)
    dist.all_reduce(total)
    return float(total) / WORLD


def _order(samples: int, rank: int, seed: int) -> Iterator[Tensor]:
    """Batches of this process's half, epoch after epoch."""
    half = samples // WORLD
    draw = torch.Generator().manual_seed(WORLD * seed + rank)
    while True:
        order = torch.randperm(half, generator=draw)[: half // BATCH * BATCH] + rank * half
        yield from order.split(BATCH)


@torch.no_grad()
def _tested(model: nn.Module, samples: Samples, clock: Clock) -> float:
    """The accuracy of the first process's model, for which the other one waits."""
    since = time.perf_counter()
    right = torch.zeros(1, dtype=torch.float64)
    if dist.get_rank() == 0:
        model.eval()
        for index in torch.arange(len(samples)).split(64):
            right += (logits(model(**samples.batch(index))).argmax(1) == samples.labels[index]).sum()
        model.train()
    dist.broadcast(right, 0)
    clock.stand(since)
    return float(right) / len(samples)


def main() -> None:
    rank, address, interface, what, out, *folder = sys.argv[1:]
    torch.set_num_threads(1)
    settle_allocator()
    if interface != "lo":
        os.environ["GLOO_SOCKET_IFNAME"] = interface
    dist.init_process_group("gloo", init_method=f"tcp://{address}:{PORT}", rank=int(rank), world_size=WORLD)
    found = run(
        Run(**json.loads(what)), int(rank), None if interface == "lo" else interface, Path(folder[0]) if folder else None
    )
    if rank == "0":
        Path(out).write_text(json.dumps(found))
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
