"""``wuskern train`` under every method of the command line, killed at any moment and resumed: it ends as the run that nobody
killed, bit for bit, and leaves no other files. Each run is a fork of this process, so that none has to import torch."""

import importlib
import json
import os
import random
import secrets
import signal
import sys
import tempfile
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import torch

from tests.fuzz import timebox
from tests.policies.test_resume import same
from wuskern import cli
from wuskern.train import checkpoint, experiment, files, methods, pairs, results

MLP, VGG, ALEXNET = (("--width", w, "--model", m) for w, m in ((".05", "mlp"), (".03", "vgg11"), (".03", "alexnet")))
WINDOWS = ":threshold=1:window=1:patience=2:cooldown=1:warmup=1:guard=1"
AVERAGE, ROWS = ("--accumulate", "2"), ("--optimizer", "row-adamw", "--lr", ".01")
METHODS: dict[str, tuple[str, ...]] = {
    f"wus{WINDOWS},frozen": MLP,
    f"wus{WINDOWS}": (*VGG, *AVERAGE),
    f"wus+lr{WINDOWS}": (*ALEXNET, "--schedule", "constant"),
    "meprop:ratio=.3:score=random": (*MLP, *ROWS, "--amp", "bf16"),
    "meprop:k=3:per=example": MLP,
    "ssprop:unit=step:length=3": VGG,
    "memory:ratio=.3:reuse=3": (*ALEXNET, *ROWS),
    "tinyprop": (*VGG, *AVERAGE),
    "crs:ratio=.5": (*MLP, "--optimizer", "adamw", "--lr", ".01"),
    "mesimp:k=5:prune=.2:cycle=2": MLP,
    "mesimp:ratio=.3:per=batch:prune=.5:cycle=2:simplify=true": MLP,
    "freeze:start=0:end=4:share=.9": ALEXNET,
    "freeze-once:at=1:until=4": MLP,
    "freeze-periodic:start=1:freeze=2": (*VGG, "--cache", "0"),
    "freeze-delayed:start=1:freeze=2:turns=1": MLP,
    "composer:start=0": MLP,
    "pipetransformer": VGG,
    "autofreeze:interval=1": MLP,
    "sieve:keep=.6:interval=1": ALEXNET,
    "mest:sparsity=.5:interval=1": (*VGG, *ROWS),
    "rigl:sparsity=.5:interval=2": (*MLP, "--optimizer", "row-sgd"),
    "rigl:sparsity=.5:interval=2:growth=random": MLP,
    "spfde:sparsity=.5:interval=1:sieve_interval=1:keep=.6:start=0:end=4": ALEXNET,
    f"wus{WINDOWS}+mest:sparsity=.5:interval=1+memory:ratio=.3": MLP,
    "meprop:ratio=.3+crs:ratio=.5+sieve:keep=.6:interval=1": (*MLP, *AVERAGE),
}
NAMED = {part.name for label in METHODS for method in methods.parse(label) for part in method.parts}
METHODS |= {pairs.trial(name): MLP for name in methods.PARTS if name not in NAMED}  # those without a line of their own
IMPORTED_LATE = "matplotlib", "torch._dynamo", "torch.distributed.fsdp", "torch.export._trace"  # once, and not by each fork
EVERYWHERE, IN_FILES = "anywhere", "while a file is written"


class Countdown:
    """A profiler that counts calls and returns, all of them and those while a file is written, and kills at one of them."""

    def __init__(self, where: str, at: int | None) -> None:
        self.where, self.at, self.writing = where, at, False
        self.seen = {EVERYWHERE: 0, IN_FILES: 0}

    def __call__(self, frame: FrameType, event: str, argument: Any) -> None:
        self.seen[EVERYWHERE] += 1
        self.seen[IN_FILES] += self.writing
        if self.seen[self.where] == self.at:
            os.kill(os.getpid(), signal.SIGKILL)

    def during(self, save: Callable[..., None]) -> Callable[..., None]:
        def counted(*args: Any, **kwargs: Any) -> None:
            self.writing = True
            save(*args, **kwargs)
            self.writing = False

        return counted


def forked(arguments: list[str], log: Path, where: str = EVERYWHERE, at: int | None = None) -> dict[str, int] | None:
    """``wuskern`` in a process of its own. What it counted; None where it was killed at that count.

    Raises:
        AssertionError: it ended in another way.
    """
    reading, writing = os.pipe()
    if (pid := os.fork()) == 0:
        code = 99
        try:
            code = _train(arguments, log, Countdown(where, at), writing)
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    os.close(writing)
    with open(reading) as pipe:
        told = pipe.read()
    status = os.waitpid(pid, 0)[1]
    if os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL and at is not None:
        return None
    said = " ".join(log.read_text().split()[-60:])
    assert status == 0, f"wuskern {' '.join(arguments)} ended with {os.waitstatus_to_exitcode(status)}: {said}"
    return json.loads(told)


def _train(arguments: list[str], log: Path, countdown: Countdown, pipe: int) -> int:
    """In the child."""
    handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(handle, 1)
    os.dup2(handle, 2)
    files.OWN = secrets.token_hex(8)  # as another process has another
    experiment.draw = experiment.draw_front = lambda *_: None  # which takes longer than all the rest
    for module in (checkpoint, results):
        module.save = countdown.during(module.save)
    sys.setprofile(countdown)
    code = cli.main(arguments)
    sys.setprofile(None)
    os.write(pipe, json.dumps(countdown.seen).encode())
    return code


@dataclass(frozen=True)
class End:
    """What a training leaves: its results without seconds, and all state of its runs."""

    numbers: list[Any]
    runs: list[dict[str, Any]]

    @classmethod
    def of(cls, folder: Path) -> "End":
        found = json.loads((folder / "out" / "results.json").read_text())
        assert found["complete"], "the results say that they are not complete"
        numbers = [[{k: v for k, v in e.items() if "seconds" not in k} for e in run["epochs"]] for run in found["runs"]]
        states = torch.load(folder / "run.pt", weights_only=True)["runs"]
        return cls(numbers, [{name: part for name, part in state.items() if name != "record"} for state in states])

    def check(self, whole: "End") -> None:
        assert same(self.numbers, whole.numbers), "results.json has other numbers"
        for ours, theirs in zip(self.runs, whole.runs, strict=True):
            parts = [name for name in theirs if not same(ours[name], theirs[name])]
            assert not parts, f"other {', '.join(parts)} at the end"


class Kills:
    """Kill points, one after the other."""

    def __init__(self, folder: Path) -> None:
        for module in IMPORTED_LATE:
            importlib.import_module(module)
        self.folder, self.images = folder, folder / "images.npz"
        rng = np.random.default_rng(0)
        x, y = rng.random((40, 1, 8, 8), dtype=np.float32), np.arange(40) % 3
        np.savez(self.images, x_train=x, y_train=y, x_test=x, y_test=y)
        self.whole: dict[str, tuple[End, dict[str, int]]] = {}
        self.killed = 0

    def arguments(self, method: str, folder: Path) -> list[str]:
        paths = "--data", str(self.images), "--out", str(folder / "out"), "--checkpoint", str(folder / "run.pt")
        return ["train", "--policy", method, *METHODS[method], "--epochs", "5", "--batch", "8", *paths]

    def _undisturbed(self, method: str) -> tuple[End, dict[str, int]]:
        if method not in self.whole:
            with tempfile.TemporaryDirectory(dir=self.folder) as name:
                folder = Path(name)
                counted = forked(self.arguments(method, folder), folder / "log")
                assert counted is not None
                self.whole[method] = End.of(folder), counted
        return self.whole[method]

    def __call__(self, r: random.Random) -> str | None:
        method, where = r.choice(list(METHODS)), r.choice([EVERYWHERE, IN_FILES])
        told = f"{method}, {where}"
        try:
            whole, counts = self._undisturbed(method)
            at = [r.randint(1, counts[where])]
            while r.random() < 0.25:
                at.append(r.randint(1, counts[where]))
            told += f", at {at} of {counts[where]}"
            self._killed_and_resumed(method, where, at, whole)
        except Exception as error:
            return f"{told}: {type(error).__name__}: {error}"
        return None

    def _killed_and_resumed(self, method: str, where: str, kills: list[int], whole: End) -> None:
        with tempfile.TemporaryDirectory(dir=self.folder) as name, tempfile.NamedTemporaryFile(dir=self.folder) as log:
            folder = Path(name)
            for at in [*kills, None]:
                begun = (folder / "run.pt").exists()
                arguments = ["train", "--resume", str(folder / "run.pt")] if begun else self.arguments(method, folder)
                self.killed += forked(arguments, Path(log.name), where, at) is None
            End.of(folder).check(whole)
            left = sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))
            assert left == ["out", "out/results.json", "run.pt"], f"files at the end: {left}"


def main() -> int:
    chosen = timebox.parser(__doc__).parse_args()
    timebox.load_library(chosen)
    with tempfile.TemporaryDirectory() as folder:
        kills = Kills(Path(folder))
        status = timebox.run(chosen, kills)
    print(f"{kills.killed} kills, {len(kills.whole)} of {len(METHODS)} methods")
    return status


if __name__ == "__main__":
    raise SystemExit(main())
