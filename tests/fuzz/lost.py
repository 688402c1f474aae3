"""Three processes under DDP of which one is killed at any moment: the others end, with an error that says so or because they
had all they needed, and never wait for longer than the group's timeout. Each process is a fork of this one."""

import contextlib
import importlib
import os
import random
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from types import FrameType
from typing import Any

import torch
import torch.distributed as dist
import torch.nn as nn
from torch.nn.parallel import DistributedDataParallel

import wuskern as wk
from tests.fuzz import timebox

WORLD, STEPS, TIMEOUT, PATIENCE = 3, 4, 10, 20  # seconds
DONE, BROKEN, ELSE = 0, 3, 4  # exit codes
IMPORTED_LATE = "torch._dynamo", "torch.distributed.nn"  # by DDP: once, and not by each fork
PLACES = "wuskern/distributed/", "torch/distributed/distributed_c10d", "torch/nn/parallel/distributed"


def skips(model: nn.Module, step: int) -> None:
    wk.set_skip(model, step % 2 == 1)


def rows(model: nn.Module, _: int) -> None:
    wk.set_rows(model, wk.TopK(ratio=0.4))


def both(model: nn.Module, step: int) -> None:
    wk.set_plan(model, rows=wk.TopK(ratio=0.4) if step % 2 else wk.Rows([1, 3]), columns=wk.TopColumns(ratio=0.5))


KINDS: dict[str, tuple[Callable[[nn.Module, int], None], dict[str, Any]]] = {
    "skip": (skips, {}),
    "rows": (rows, {}),
    "rows that stay": (rows, {"every": 2}),
    "exact rows": (rows, {"exact": True}),
    "rows and columns": (both, {}),
    "unchecked": (skips, {"check_flags": False}),
}


class Countdown:
    """A profiler that counts calls and returns in code about processes, and kills at one of them."""

    def __init__(self, at: int | None) -> None:
        self.at, self.seen = at, 0

    def __call__(self, frame: FrameType, *_: Any) -> None:
        if any(place in frame.f_code.co_filename for place in PLACES):
            self.seen += 1
            if self.seen == self.at:
                os.kill(os.getpid(), signal.SIGKILL)


def train(rank: int, kind: str, store: Path, at: int | None) -> int:
    """In a child; the number of events."""
    countdown, (plan, options) = Countdown(at), KINDS[kind]
    dist.init_process_group(
        "gloo", init_method=f"file://{store}", rank=rank, world_size=WORLD, timeout=timedelta(seconds=TIMEOUT)
    )
    sys.setprofile(countdown)
    torch.default_generator.manual_seed(3)
    model = wk.convert(nn.Sequential(nn.Linear(4, 10), nn.Tanh(), nn.Linear(10, 10), nn.Tanh(), nn.Linear(10, 5)))
    ddp = DistributedDataParallel(model, bucket_cap_mb=1e-4)
    prepared = wk.distributed.prepare(ddp, **options)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    for step in range(STEPS):
        plan(model, step)
        optimizer.zero_grad()
        for number in range(2):
            with contextlib.nullcontext() if number else ddp.no_sync():
                ddp(torch.randn(3, 4)).square().mean().backward()
        optimizer.step()
        wk.distributed.broadcast_metric(0.5)
    prepared.state_dict()
    sys.setprofile(None)
    return countdown.seen


def forked(rank: int, kind: str, folder: Path, at: int | None) -> int:
    """The number of a process that trains."""
    if pid := os.fork():
        return pid
    code = ELSE
    try:
        said = os.open(folder / f"{rank}.log", os.O_WRONLY | os.O_CREAT)
        os.dup2(said, 1)
        os.dup2(said, 2)
        (folder / f"{rank}.seen").write_text(str(train(rank, kind, folder / "store", at)))
        code = DONE
    except RuntimeError:  # as those of torch.distributed are
        traceback.print_exc()
        code = BROKEN
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def ends(pids: list[int]) -> list[int | None]:
    """How each process ends: its exit code, minus a signal, or None where it is still there when the time is up."""
    found: dict[int, int | None] = {}
    deadline = time.monotonic() + TIMEOUT + PATIENCE
    while len(found) < len(pids):
        for pid in pids:
            if pid not in found and (ended := os.waitpid(pid, os.WNOHANG))[0]:
                found[pid] = os.waitstatus_to_exitcode(ended[1])
            elif pid not in found and time.monotonic() > deadline:
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
                found[pid] = None
        time.sleep(0.02)
    return [found[pid] for pid in pids]


class Lost:
    """Trainings of which a process is lost."""

    def __init__(self) -> None:
        self.events: dict[str, int] = {}
        for name in IMPORTED_LATE:
            importlib.import_module(name)

    def __call__(self, r: random.Random) -> str | None:
        kind, victim = r.choice(list(KINDS)), r.randrange(WORLD)
        if kind not in self.events:
            codes, said = self.run(kind, None, None)
            if codes != [DONE] * WORLD:
                return f"{kind}: nobody was killed, and the processes ended with {codes}: {said}"
        at = r.randint(1, self.events[kind])
        codes, said = self.run(kind, victim, at)
        survivors = [code for rank, code in enumerate(codes) if rank != victim]
        if codes[victim] == -signal.SIGKILL and all(code in (DONE, BROKEN) for code in survivors):
            return None
        return f"{kind}: rank {victim} was killed at event {at}, and the processes ended with {codes}: {said}"

    def run(self, kind: str, victim: int | None, at: int | None) -> tuple[list[int | None], str]:
        """How the processes ended, and the last of what those said that should not have."""
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            pids = [forked(rank, kind, folder, at if rank == victim else None) for rank in range(WORLD)]
            codes = ends(pids)
            if victim is None and codes == [DONE] * WORLD:
                self.events[kind] = int((folder / "0.seen").read_text())
            odd = [rank for rank, code in enumerate(codes) if code not in (DONE, BROKEN) and rank != victim]
            return codes, " ".join(" ".join((folder / f"{rank}.log").read_text().split()[-40:]) for rank in odd)


def main() -> int:
    chosen = timebox.parser(__doc__).parse_args()
    timebox.load_library(chosen)
    return timebox.run(chosen, Lost())


if __name__ == "__main__":
    raise SystemExit(main())
