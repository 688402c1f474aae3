"""Short runs under every method, cut after any micro-batch; ``python -m tests.policies.resumable first|second FOLDER`` has the
first part of all of them, which ends in SIGKILL, or the second, from what the first left."""

import os
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor
from torch.optim import Optimizer

import wuskern as wk
from wuskern import policies
from wuskern.policies import Compose, Policy, SievingSampler
from wuskern.train import methods, pairs

BATCH, MICRO, STEPS, EPOCHS = 4, 2, 2, 7  # samples; micro-batches of a step; steps of an epoch
EPOCH = MICRO * STEPS
END = EPOCH * EPOCHS
MIDDLE = 2 * EPOCH + 3  # half of a step has its gradients: the second one of an epoch that skips, or has frozen layers
CUTS = (MIDDLE, 3 * EPOCH + MICRO, 5 * EPOCH)  # between two steps of the next one, which skips too; between two epochs
WINDOWS = dict(window=1, warmup=0, patience=2, threshold=0.01)  # with a metric that stands still: epochs 2, 3, 5 and 6
IMAGES = torch.randn(24, 3, 6, 6, generator=torch.Generator().manual_seed(1))
LABELS = torch.randint(4, (24,), generator=torch.Generator().manual_seed(2))


def mlp() -> nn.Module:
    parts = nn.Flatten(), nn.Linear(108, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.3), nn.Linear(16, 16), nn.ReLU()
    return nn.Sequential(*parts, nn.Linear(16, 12), nn.ReLU(), nn.Linear(12, 4))


def cnn() -> nn.Module:
    parts = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten()
    return nn.Sequential(*parts, nn.Dropout(0.3), nn.Linear(32, 12), nn.ReLU(), nn.Linear(12, 4))


def sgd(model: nn.Module, module: Any = torch.optim) -> Optimizer:
    return module.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=0.01)


def adamw(model: nn.Module, module: Any = torch.optim) -> Optimizer:
    return module.AdamW(model.parameters(), lr=0.01)


def compact(model: nn.Module) -> Optimizer:
    return adamw(model, wk.optim)


Maker = Callable[[nn.Module, Optimizer], Policy | None]


def of(method: str, **arguments: Any) -> Maker:
    """A method by its class's name."""

    def make(model: nn.Module, optimizer: Optimizer) -> Policy:
        kind = getattr(policies, method)
        takes_example = issubclass(kind, policies.Freezing | policies.MeSimp | policies.SpFDE)
        first = {"WUSLR": (optimizer,)}.get(method, (IMAGES[:2],) if takes_example else ())
        return kind(model, *first, **arguments)

    return make


def by_name(name: str) -> Maker:
    """A method by its name, with the arguments of its trial."""

    def make(model: nn.Module, optimizer: Optimizer) -> Policy | None:
        method = methods.parse(pairs.trial(name))[0]
        return methods.build(method, methods.Given(model, optimizer, IMAGES[:2], len(IMAGES), seed=0), EPOCHS).policy

    return make


def together(*makers: Maker) -> Maker:
    return lambda model, optimizer: Compose([make(model, optimizer) for make in makers])


@dataclass(frozen=True)
class Method:
    model: Callable[[], nn.Module]
    optimizer: Callable[[nn.Module], Optimizer]
    make: Maker
    sieve: bool = False


METHODS = {
    "WUS": Method(mlp, sgd, of("WUS", **WINDOWS)),
    "WUSLR": Method(cnn, adamw, of("WUSLR", **WINDOWS)),
    "MeProp": Method(cnn, sgd, of("MeProp", ratio=0.3)),
    "MeProp, compact": Method(mlp, compact, of("MeProp", ratio=0.3, scope="weight")),
    "MeProp, random": Method(mlp, adamw, of("MeProp", ratio=0.3, score="random")),
    "MeProp, per example": Method(mlp, sgd, of("MeProp", k=3, per="example")),
    "SsProp, bars of steps": Method(cnn, adamw, of("SsProp", unit="step", length=3)),
    "SsProp, cosine of epochs": Method(cnn, sgd, of("SsProp", schedule="cosine", length=6)),
    "ScoreMemory": Method(mlp, adamw, of("ScoreMemory", ratio=0.3)),
    "ScoreMemory, reused": Method(cnn, compact, of("ScoreMemory", ratio=0.3, reuse=3)),
    "TinyProp": Method(cnn, sgd, of("TinyProp")),
    "ColumnRowSampling": Method(mlp, adamw, of("ColumnRowSampling", ratio=0.5)),
    "BitFit": Method(cnn, adamw, of("BitFit")),
    "PaCA": Method(cnn, sgd, of("PaCA", ratio=0.5, steps=3)),
    "PaCA, by the input": Method(mlp, adamw, of("PaCA", ratio=0.25, score="input", steps=3)),
    "MeSimp": Method(mlp, adamw, of("MeSimp", k=5, prune=0.2, cycle=2, interval=1)),
    "MeSimp, each": Method(mlp, sgd, of("MeSimp", k=5, prune=0.2, cycle=3, interval=1, reset="each", carry=False)),
    "MeSimp, smaller": Method(cnn, sgd, of("MeSimp", ratio=0.5, per="batch", prune=0.9, cycle=2, simplify=True)),
    "SievingSampler": Method(mlp, sgd, lambda *_: None, sieve=True),
    "ProgressiveFreezing": Method(cnn, adamw, of("ProgressiveFreezing", start=0, end=4, share=0.9)),
    "SingleShotFreezing": Method(mlp, sgd, of("SingleShotFreezing", at=1, until=5)),
    "PeriodicFreezing": Method(cnn, sgd, of("PeriodicFreezing", start=1, freeze=2)),
    "DelayedFreezing": Method(mlp, adamw, of("DelayedFreezing", start=1, freeze=2, turns=2, share=0.9)),
    "ComposerFreezing": Method(mlp, sgd, of("ComposerFreezing", epochs=4, start=0.0)),
    "PipeTransformerFreezing": Method(cnn, adamw, of("PipeTransformerFreezing")),
    "AutoFreeze": Method(cnn, sgd, of("AutoFreeze", interval=1)),
    "MEST": Method(cnn, adamw, of("MEST", epochs=EPOCHS, sparsity=0.5, variant="ems", interval=1)),
    "RigL": Method(mlp, sgd, of("RigL", epochs=EPOCHS, sparsity=0.5, interval=3)),
    "RigL, 2:4": Method(mlp, adamw, of("RigL", epochs=EPOCHS, pattern="2:4", interval=2, growth="random")),
    "WUS + MEST + ScoreMemory": Method(
        mlp,
        compact,
        together(
            of("WUS", **WINDOWS),
            of("MEST", epochs=EPOCHS, sparsity=0.5, interval=1),
            of("ScoreMemory", ratio=0.3, scope="weight"),
        ),
    ),
    "SpFDE": Method(
        cnn,
        sgd,
        of("SpFDE", epochs=EPOCHS, samples=24, interval=1, sieve_interval=1, rate=0.5, sparsity=0.5, start=0, end=4, share=0.9),
    ),
    "WUSLR + ScoreMemory + SievingSampler": Method(
        cnn, sgd, together(of("WUSLR", **WINDOWS), of("ScoreMemory", ratio=0.3, reuse=2)), sieve=True
    ),
    "ProgressiveFreezing + MeProp": Method(
        mlp, adamw, together(of("ProgressiveFreezing", start=0, end=4, share=0.9), of("MeProp", ratio=0.3, score="random"))
    ),
    "MeProp + ColumnRowSampling": Method(
        cnn, compact, together(of("MeProp", ratio=0.3), of("ColumnRowSampling", k=2, pick="crs"))
    ),
    "PaCA + ScoreMemory": Method(
        cnn, sgd, together(of("PaCA", ratio=0.5, score="input", steps=2), of("ScoreMemory", ratio=0.5, reuse=3))
    ),
    "WUS + SsProp + AutoFreeze": Method(
        cnn, sgd, together(of("WUS", **WINDOWS), of("SsProp", unit="step", length=3), of("AutoFreeze", interval=1))
    ),
}

# Of a method without a line of its own, a run with the arguments of its trial.
METHODS |= {
    kind.__name__: Method(cnn, sgd, by_name(name))
    for name, kind in policies.METHODS.items()
    if not any(line.startswith(kind.__name__) for line in METHODS)
}


class Run:
    """One run, from its start. ``done``: micro-batches."""

    def __init__(self, name: str) -> None:
        method = METHODS[name]
        torch.manual_seed(3)
        self.model = wk.convert(method.model()).train()
        self.optimizer = method.optimizer(self.model)
        self.policy = method.make(self.model, self.optimizer)
        if self.policy is not None:
            self.policy.attach(self.optimizer)
        self.own = SievingSampler(len(IMAGES), keep=0.7, rate=0.5, interval=1) if method.sieve else None
        self.sieve = self.policy.sampler if isinstance(self.policy, policies.SpFDE) else self.own
        self.done = 0
        self.random = torch.get_rng_state()

    def until(self, end: int) -> None:
        torch.set_rng_state(self.random)
        while self.done < end:
            self._micro_batch()
            self.done += 1
        self.random = torch.get_rng_state()

    def _order(self, epoch: int) -> Tensor:
        if self.sieve is not None:
            return torch.tensor(list(self.sieve))
        return torch.randperm(len(IMAGES), generator=torch.Generator().manual_seed(epoch))

    def _micro_batch(self) -> None:
        epoch, place = divmod(self.done, EPOCH)
        if self.policy is not None and place % MICRO == 0:
            self.policy.before_step()
        index = self._order(epoch)[place * BATCH :][:BATCH]
        logits = self.model(IMAGES[index])
        F.cross_entropy(logits, LABELS[index]).backward()
        if self.sieve is not None:
            self.sieve.record(index, logits.detach().argmax(1) == LABELS[index])
        if place % MICRO == MICRO - 1:
            self.optimizer.step()
            self.optimizer.zero_grad()
            if self.policy is not None:
                self.policy.after_step()
        if place == EPOCH - 1:
            self._end_of_epoch()

    def _end_of_epoch(self) -> None:
        if self.own is not None:
            self.own.step()
        if self.policy is not None:
            self.policy.after_epoch()
            self.policy.step(0.5)
        self.model.train()

    def state(self) -> dict[str, Any]:
        grads = {name: p.grad for name, p in self.model.named_parameters() if p.grad is not None}
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "policy": None if self.policy is None else self.policy.state_dict(),
            "sieve": None if self.own is None else self.own.state_dict(),
            "grads": {name: grad for name, grad in grads.items() if not grad.is_sparse},
            "sparse_grads": {name: grad for name, grad in grads.items() if grad.is_sparse},
            "random": self.random,
            "done": self.done,
        }

    def load(self, state: dict[str, Any]) -> None:
        wk.fit_(self.model, state["model"])
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.policy is not None:
            self.policy.load_state_dict(state["policy"])
        if self.own is not None:
            self.own.load_state_dict(state["sieve"])
        for name, p in self.model.named_parameters():
            p.grad = (state["grads"] | state["sparse_grads"]).get(name)
        self.random, self.done = state["random"], state["done"]


def resumed(name: str, state: dict[str, Any]) -> dict[str, Any]:
    """What a run is at its end that begins with this state."""
    run = Run(name)
    run.load(state)
    run.until(END)
    return run.state()


def first(folder: Path) -> None:
    """Checkpoints of all runs, and a bit more of each that is lost."""
    for name in METHODS:
        run = Run(name)
        for cut in CUTS:
            run.until(cut)
            path = folder / f"{name} {cut}.pt"
            torch.save(run.state(), path)
        run.until(CUTS[-1] + 1)
    os.kill(os.getpid(), signal.SIGKILL)


def second(folder: Path) -> None:
    ends = {}
    for name in METHODS:
        for cut in CUTS:
            ends[name, cut] = resumed(name, torch.load(folder / f"{name} {cut}.pt", weights_only=True))
    torch.save(ends, folder / "ends.pt")


if __name__ == "__main__":
    torch.set_num_threads(1)
    {"first": first, "second": second}[sys.argv[1]](Path(sys.argv[2]))
