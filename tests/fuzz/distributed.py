"""Random trainings in two processes, under plain and prepared DDP, against one process on the joint batch: by stock PyTorch
that masks gradients by hand, or with a policy, which then decides in both. The two processes stay for all scenarios."""

import contextlib
import functools
import os
import random
from collections.abc import Callable
from typing import Any

import torch
import torch.nn as nn
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

import wuskern as wk
from tests.distributed import training
from tests.distributed.ranks import WORLD, Failed, Ranks
from tests.fuzz import plans, timebox
from tests.fuzz.plain_layers import network, plain
from wuskern import policies

BATCH, STEPS = 8, 6
OPTIMIZERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "sgd": lambda p: torch.optim.SGD(p, 0.1, momentum=0.9, weight_decay=0.1),
    "adamw": lambda p: torch.optim.AdamW(p, 0.02),
    "plain sgd": lambda p: torch.optim.SGD(p, 0.1),
    "rows": lambda p: wk.optim.SGD(p, 0.1),
}
# With what each needs of DDP: rows by scores of the step itself, or parameters without gradients.
POLICIES: dict[str, tuple[Callable[[nn.Module, Tensor], policies.Policy], str]] = {
    "WUS": (lambda net, _: policies.WUS(net, window=1, warmup=0, patience=2, threshold=0.01), ""),
    "ScoreMemory": (lambda net, _: policies.ScoreMemory(net, ratio=0.4, reuse=2), ""),
    "TinyProp": (lambda net, _: policies.TinyProp(net), ""),
    "MeProp": (lambda net, _: policies.MeProp(net, ratio=0.4), "exact"),
    "SsProp": (lambda net, _: policies.SsProp(net, unit="step", length=3), "exact"),
    "PaCA": (lambda net, _: policies.PaCA(net, ratio=0.5, score="input", steps=2), ""),
    "MEST": (lambda net, _: policies.MEST(net, epochs=STEPS, sparsity=0.5, interval=1), ""),
    "RigL": (lambda net, _: policies.RigL(net, epochs=STEPS, sparsity=0.5, interval=2), ""),
    "PeriodicFreezing": (lambda net, x: policies.PeriodicFreezing(net, x, start=1, freeze=2, train=1, share=0.7), "unused"),
}


class Scenario:
    """One training, the same wherever its key is known."""

    def __init__(self, key: str) -> None:
        r = self.r = random.Random(key)
        self.key, self.policy = key, r.choice([None, None, *POLICIES])
        need = "" if self.policy is None else POLICIES[self.policy][1]
        self.prepared = need == "exact" or r.random() < 0.7
        self.exact = need == "exact" or (self.prepared and not need and r.random() < 0.5)
        self.attached = not self.prepared or self.policy is not None or r.random() < 0.3
        self.optimizer = r.choice(list(OPTIMIZERS) if self.prepared else ["sgd", "adamw", "plain sgd"])
        self.check_flags, self.micro, self.to_none = r.random() < 0.7, r.choice([1, 1, 2, 3]), r.random() < 0.7
        self.ddp = dict(
            bucket_cap_mb=r.choice([25, 1e-4]),
            gradient_as_bucket_view=r.random() < 0.3,
            find_unused_parameters=need == "unused" or (not self.exact and r.random() < 0.3),
        )
        units = [m.units for m in wk.convert(network()) if hasattr(m, "units")]
        self.plans = [self._plans(units) for _ in range(STEPS)]

    def _plans(self, units: list[Any]) -> list[list[wk.Plan]]:
        """Of each micro-batch and layer; without processes that agree on rows, none that have to. What an attached policy
        drops is what skips when the optimizer steps, so that all micro-batches are alike then."""
        drawn = [[self._plan(of) for of in units] for _ in range(1 if self.attached else self.micro)]
        return drawn * self.micro if self.attached else drawn

    def _plan(self, units: Any) -> wk.Plan:
        sparse = self.prepared and self.optimizer in ("plain sgd", "rows")
        while True:
            plan = plans.draw(self.r, units, by_chance=False, by_tokens=False, by_input=self.exact, sparse=sparse)
            if self.exact or not isinstance(plan.rows, wk.TopK):
                return plan

    def __str__(self) -> str:
        told = {name: value for name, value in vars(self).items() if name not in ("r", "plans")}
        return f"{told}, {'' if self.policy else [[list(map(str, p)) for p in step] for step in self.plans]}"


def train(rank: int, world: int, key: str, stock: bool = False) -> list[list[Tensor]]:
    """The parameters after each step."""
    s = Scenario(key)
    torch.default_generator.manual_seed(3)
    net = network()
    net = plain(net) if stock else wk.convert(net)
    layers = [m for m in net if isinstance(m, nn.Linear | nn.Conv2d)]
    called: nn.Module = net
    if world > 1:
        called = DistributedDataParallel(net, **s.ddp)
        if s.prepared:
            wk.distributed.prepare(called, exact=s.exact, check_flags=s.check_flags)
    optimizer = OPTIMIZERS["plain sgd" if stock and s.optimizer == "rows" else s.optimizer](net.parameters())
    batches = torch.Generator().manual_seed(1)
    draw = functools.partial(torch.randn, generator=batches, dtype=torch.float64)
    policy = POLICIES[s.policy][0](net, draw(2, 2, 6, 6)) if s.policy else None
    if s.attached and not stock:
        (policy or policies.WUS(net)).attach(optimizer)
    mine = slice(BATCH // world * rank, BATCH // world * (rank + 1))
    history = []
    for step in range(STEPS):
        if policy is not None:
            policy.before_step()
        for number, of_layers in enumerate(s.plans[step]):
            for layer, plan in zip(layers, of_layers, strict=True):
                if policy is None:
                    layer.plan = plan
            x, y = draw(BATCH, 2, 6, 6), draw(BATCH, 4)
            last = number == s.micro - 1
            with contextlib.nullcontext() if world == 1 or last else called.no_sync():
                (called(x[mine]) - y[mine]).square().mean().backward()
        for layer in layers:
            if stock and s.attached and layer.plan.skip:
                layer.weight.grad = None
        optimizer.step()
        optimizer.zero_grad(set_to_none=s.to_none)
        if policy is not None:
            policy.after_step()
            policy.after_epoch()
            policy.step(0.5)
        history.append([p.detach().clone() for p in net.parameters()])
    return history


def in_two(rank: int, key: str) -> list[list[Tensor]]:
    return train(rank, WORLD, key)


def compare(both: list[list[list[Tensor]]], key: str) -> None:
    """What the two processes have given, with the one process."""
    expected = train(0, 1, key, stock=Scenario(key).policy is None)
    for step, (first, second, right) in enumerate(zip(*both, expected, strict=True)):
        for number, (a, b, value) in enumerate(zip(first, second, right, strict=True)):
            assert torch.equal(a, b), f"step {step}: parameter {number} differs between the processes"
            torch.testing.assert_close(a, value, rtol=1e-9, atol=1e-12, msg=lambda m, s=step, n=number: f"step {s}: {n}: {m}")


# ---- rows and columns by the scores of the step before --------------------------------------------------------------


def compare_lagged(ranks: Ranks, r: random.Random) -> None:
    """By the twin of tests/distributed/training.py, which knows what a prepared DDP chooses from."""
    sizes = [layer.weight.shape[:2] for layer in training_layers()]
    plan = [tuple((_rows(r, out), _columns(r, inputs)) for out, inputs in sizes) for _ in range(STEPS)]
    flags = "gradient_as_bucket_view", "find_unused_parameters"
    ddp = dict(bucket_cap_mb=r.choice([25, 1e-4]), **{name: r.random() < 0.4 for name in flags})
    how = dict(optimizer=r.choice(list(training.OPTIMIZERS)), micro=r.choice([1, 1, 3]), compact=r.random() < 0.5)
    attach, prepare = r.random() < 0.3, dict(check_flags=r.random() < 0.7)
    try:
        training.assert_equal(ranks, plan, ddp=ddp, prepare=prepare, attach=attach, **how)
    except AssertionError as error:
        raise AssertionError(f"{error}: {plan}, {ddp}, {how}, {prepare}, attach={attach}") from error


def _rows(r: random.Random, out: int) -> Any:
    top = wk.TopK(k=r.randint(1, out - 1), score=r.choice(["l1", "l2"]))
    return r.choice([None, True, sorted(r.sample(range(out), r.randint(1, out - 1))), top, top])


def _columns(r: random.Random, inputs: int) -> Any:
    fixed = wk.Columns(r.sample(range(inputs), r.randint(1, inputs - 1)))
    return r.choice([None, None, fixed, *(wk.TopColumns(k=r.randint(1, inputs - 1), score=s) for s in ("input", "weight"))])


def training_layers() -> list[nn.Module]:
    net = training.network()
    return [net[i] for i in training.LAYERS]


class Distributed:
    """Scenarios, one after the other. ``training``: a scenario in one of the processes."""

    def __init__(self, ranks: Ranks, training: Callable[[int, str], list[list[Tensor]]] = in_two) -> None:
        self.ranks, self.training = ranks, training

    def __call__(self, r: random.Random) -> str | None:
        if r.random() < 0.3:
            return _fault(lambda: compare_lagged(self.ranks, r), "lagged rows")
        return self.compare(str(r.random()))

    def compare(self, key: str) -> str | None:
        return _fault(lambda: compare(self.ranks.run(self.training, key), key), Scenario(key))


def _fault(comparing: Callable[[], None], told: object) -> str | None:
    try:
        comparing()
    except Exception as error:  # of any kind, in any process
        lines = str(error).strip().splitlines() or [""]
        return f"{type(error).__name__}: {lines[-1] if isinstance(error, Failed) else ' '.join(lines)}: {told}"
    return None


def main() -> int:
    chosen = timebox.parser(__doc__).parse_args()
    timebox.load_library(chosen)
    os.environ |= {"TORCH_CPP_LOG_LEVEL": "ERROR", "PYTHONWARNINGS": "ignore"}  # of the processes, about slow layouts
    ranks = Ranks()
    try:
        return timebox.run(chosen, Distributed(ranks))
    finally:
        ranks.stop()


if __name__ == "__main__":
    raise SystemExit(main())
