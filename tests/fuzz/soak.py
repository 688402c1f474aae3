"""A small model trains for long, with every mode toggled at random, beside a thread that infers, through exceptions, rebuilding
and checkpoints. Its weights stay those of a plain loop that masks gradients by hand, and memory stays flat."""

import argparse
import contextlib
import functools
import io
import random
import sys
from collections.abc import Callable, Iterator
from unittest import mock

import torch
import torch.nn as nn
from torch import Tensor

import wuskern as wk
from tests.fuzz import plans, timebox
from tests.fuzz.beside import Boom, Infers, grown, used
from tests.fuzz.plain_layers import network, plain, plain_layers
from wuskern.delivery import dense_grad

WARM_UP, CHECKED = 0.2, 50  # of all steps, after which memory is flat; steps from check to check
NEAR = 1e-9  # of the largest weight: two orders of the same sums in float64, over thousands of steps
OPTIMIZERS = {
    "torch, with momentum and decay": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, weight_decay=0.01),
    "torch": lambda p: torch.optim.SGD(p, lr=0.05),
    "wuskern": lambda p: wk.optim.SGD(p, lr=0.05),  # moves rows alone: the same without momentum and decay
}
POLICIES: list[Callable[[nn.Module], wk.policies.Policy]] = [
    functools.partial(wk.policies.MeProp, ratio=0.4),
    functools.partial(wk.policies.ScoreMemory, ratio=0.4, reuse=2),
    wk.policies.TinyProp,
    functools.partial(wk.policies.SsProp, unit="step", length=3),
    functools.partial(wk.policies.ColumnRowSampling, ratio=0.5, pick="top"),
    functools.partial(wk.policies.WUS, window=1, warmup=0, patience=2, threshold=0.01),
]


def boom(*_: object) -> None:
    raise Boom


def half_written(target: Tensor, stale: Tensor | None, grad: object) -> Tensor:
    """As a Ctrl-C leaves it."""
    target.flatten()[::2] = float("nan")
    raise Boom


class Soak:
    """Both loops. ``plans``: what each layer has to be set to."""

    def __init__(self, seed: int) -> None:
        self.r, self.data = random.Random(seed), torch.Generator().manual_seed(seed)
        torch.default_generator.manual_seed(seed)
        self.ours, self.plain, self.infers = network(), plain(network()), Infers()
        self.plain.load_state_dict(self.ours.state_dict())
        self._rebuild()

    # ---- a step -----------------------------------------------------------------------------------------------------

    def step(self) -> None:
        r = self.r
        if r.random() < (0.4 if self.policy is None else 0.1):
            r.choice([self._one_layer, self._one_layer, self._all_layers, self._some_layers, self._take_policy])()
        if r.random() < 0.05:
            r.choice([self._raise_in_forward, self._raise_in_backward, self._raise_in_write, self._save, self._load])()
        if r.random() < 0.001:
            self._rebuild()
        if r.random() < 0.2:
            self.infers.wanted.release()
        if self.policy is not None:
            self.policy.before_step()
            self._take_plans()
        with self._surroundings():
            for _ in range(r.choice([1, 1, 2, 3])):
                x, y = self._draw(2, 6, 6), self._draw(4)
                for model in (self.ours, self.plain):
                    (model(x) - y).square().mean().backward()
        for name, layer in plain_layers(self.plain).items():
            if self.attached and self.layers[name].skip:
                layer.weight.grad = None
        self.optimizer.step()
        self.plain_optimizer.step()
        if self.policy is not None:
            self.policy.after_step()
            if r.random() < 0.1:
                self.policy.after_epoch()
                self.policy.step(r.random())
            self._take_plans()
        self._clear()

    def _draw(self, *size: int) -> Tensor:
        return torch.randn(5, *size, generator=self.data, dtype=torch.float64)

    def _clear(self) -> None:
        to_none = self.r.random() < 0.6
        for of in (self.optimizer, self.plain_optimizer) if self.r.random() < 0.5 else (self.ours, self.plain):
            of.zero_grad(set_to_none=to_none)

    @contextlib.contextmanager
    def _surroundings(self) -> Iterator[None]:
        """What a step is inside of: ``skipping``, or a backend, or neither."""
        how, before = self.r.random(), dict(self.plans)
        if how < 0.1:
            with wk.skipping(self.ours):
                self.plans = {name: plan.replace(skip=True) for name, plan in before.items()}
                self._check_plans()
                yield
            self.plans = before
        elif how < 0.3:
            with wk.backend(self.r.choice(["native", "reference"])):
                self._check_plans()
                yield
        else:
            self._check_plans()
            yield

    def _check_plans(self) -> None:
        for name, layer in plain_layers(self.plain).items():
            assert self.layers[name].plan == self.plans[name], f"{name}: {self.layers[name].plan}, expected {self.plans[name]}"
            layer.plan = self.plans[name]

    # ---- what is toggled --------------------------------------------------------------------------------------------

    def _draw_plan(self, name: str) -> wk.Plan:
        sparse = isinstance(self.optimizer, wk.optim.SGD) or not self.optimizer.defaults["momentum"]
        return plans.draw(self.r, self.layers[name].units, by_chance=False, sparse=sparse)

    def _one_layer(self) -> None:
        self._leave_policy()
        name = self.r.choice(list(self.layers))
        self.plans[name] = self._draw_plan(name)
        if self.r.random() < 0.5:
            self.layers[name].plan = self.plans[name]
        else:
            self.layers[name].columns = None  # a sparse gradient of rows is refused beside them
            for part in ("skip", "rows", "columns", "tokens"):
                setattr(self.layers[name], part, getattr(self.plans[name], part))

    def _all_layers(self) -> None:
        self._leave_policy()
        top = wk.TopK(ratio=self.r.uniform(0.1, 1), scope=self.r.choice(["weight", "both"]))
        rows = self.r.choice([None, top, wk.Rows([1, 3])])
        tokens, skip = self.r.choice([None, wk.Tokens(k=3)]), self.r.random() < 0.3
        part, value, setter = self.r.choice(
            [("rows", rows, wk.set_rows), ("tokens", tokens, wk.set_tokens), ("skip", skip, wk.set_skip)]
        )
        setter(self.ours, value)
        self.plans = {name: plan.replace(**{part: value}) for name, plan in self.plans.items()}

    def _some_layers(self) -> None:
        self._leave_policy()
        names = self.r.sample(list(self.layers), 2)
        tokens = self.r.choice([None, wk.Tokens(ratio=0.5)])
        parts = dict(skip=self.r.random() < 0.3, rows=wk.TopK(ratio=0.5, score="l2"), tokens=tokens)
        wk.set_plan(self.ours, filter_fn=lambda _, name: name in names, **parts)
        for name in names:
            self.plans[name] = self.plans[name].replace(**parts)

    def _take_policy(self) -> None:
        self._leave_policy()
        self.policy = self.r.choice(POLICIES)(self.ours)
        self._take_plans()

    def _take_plans(self) -> None:
        """Those that a policy has set: what it decides is tested elsewhere."""
        self.plans = {name: layer.plan for name, layer in self.layers.items()}

    def _leave_policy(self) -> None:
        if self.policy is not None:
            self.policy.release()
            self.policy = None
            self._take_plans()

    # ---- exceptions -------------------------------------------------------------------------------------------------

    def _raise_in_forward(self) -> None:
        with self._raising(self.ours[self.r.choice([2, 5, 7])].register_forward_pre_hook(boom), self._skipping()):
            self.ours(self._draw(2, 6, 6))

    def _raise_in_backward(self) -> None:
        with self._raising(self.ours[self.r.choice([0, 2, 5])].register_full_backward_hook(boom), self._skipping()):
            self.ours(self._draw(2, 6, 6)).sum().backward()

    def _raise_in_write(self) -> None:
        wk.set_plan(self.ours, skip=False, rows=wk.Rows([0, 3], sparse=False), columns=None, tokens=None)
        with self._raising(mock.patch.object(dense_grad, "_write", half_written), contextlib.nullcontext()):
            self.ours(self._draw(2, 6, 6)).sum().backward()
        for name, layer in self.layers.items():
            layer.plan = self.plans[name]

    def _skipping(self) -> contextlib.AbstractContextManager:
        return wk.skipping(self.ours, self.r.random() < 0.5) if self.r.random() < 0.3 else contextlib.nullcontext()

    @contextlib.contextmanager
    def _raising(self, cause: contextlib.AbstractContextManager, inside: contextlib.AbstractContextManager) -> Iterator[None]:
        """Half a step, which raises, and whose gradients nobody uses."""
        try:
            with cause, inside:
                yield
        except Boom:
            for model in (self.ours, self.plain):
                model.zero_grad()
        else:
            raise AssertionError("nothing was raised")

    # ---- checkpoints ------------------------------------------------------------------------------------------------

    def _both(self) -> tuple[tuple[nn.Module, torch.optim.Optimizer], ...]:
        return (self.ours, self.optimizer), (self.plain, self.plain_optimizer)

    def _save(self) -> None:
        self.saved = []
        for model, optimizer in self._both():
            file = io.BytesIO()
            torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, file)
            self.saved.append(file.getvalue())

    def _load(self) -> None:
        for (model, optimizer), saved in zip(self._both(), self.saved or (), strict=False):
            state = torch.load(io.BytesIO(saved), weights_only=True)
            model.load_state_dict(state["model"])
            optimizer.load_state_dict(state["optimizer"])

    def _rebuild(self) -> None:
        """Another model with the same weights, and another optimizer."""
        ours, kind = network(), self.r.choice(list(OPTIMIZERS))
        ours.load_state_dict(self.ours.state_dict())
        self.ours = self.infers.model = wk.convert(ours)
        self.layers = {name: m for name, m in self.ours.named_modules() if isinstance(m, nn.Linear | nn.Conv2d)}
        self.plans, self.policy, self.saved = dict.fromkeys(self.layers, wk.Plan()), None, None
        self.optimizer = OPTIMIZERS[kind](self.ours.parameters())
        self.plain_optimizer = OPTIMIZERS["torch" if kind == "wuskern" else kind](self.plain.parameters())
        self.plain.zero_grad()
        self.attached = self.r.random() < 0.5
        if self.attached:
            wk.policies.WUS(self.ours).attach(self.optimizer)

    # ---- what has to hold -------------------------------------------------------------------------------------------

    def check(self) -> None:
        assert not self.infers.faults, self.infers.faults[0]
        pairs = zip(self.ours.named_parameters(), self.plain.parameters(), strict=True)
        for (name, ours), theirs in pairs:
            error, size = (ours - theirs).abs().max().item(), theirs.abs().max().item()
            assert error <= NEAR * size, f"{name} is {error:.2e} away from the plain loop's, of {size:.2e}"


def soak(chosen: argparse.Namespace) -> int:
    """Steps until the time, or the count, is up. Gives the exit status."""
    run, clock, steps, warm, before, faults = Soak(chosen.seed), timebox.Clock(chosen), 0, 0, used(), []
    with mock.patch.object(dense_grad, "LEAST", 0):
        while clock.goes_on(steps) and not faults:
            if not warm and clock.share(steps) >= WARM_UP:
                warm, before = steps, used()
            try:
                run.step()
                if steps % CHECKED == 0 or not clock.goes_on(steps + 1):
                    run.check()
            except Exception as error:  # of any kind: nothing but Boom is to be raised
                faults.append(f"step {steps}: {type(error).__name__}: {error}")
            steps += 1
    run.infers.stop()
    after = used()
    faults = faults or grown(before, after)
    for fault in faults:
        print(f"{fault} (--seed {chosen.seed})", file=sys.stderr)
    print(f"{steps} steps from seed {chosen.seed}, {run.infers.calls} calls beside them, {len(faults)} faults")
    print(f"memory after {warm} steps: {before}, at the end: {after}")
    return int(bool(faults) or not steps)


def main() -> int:
    chosen = timebox.parser(__doc__).parse_args()
    timebox.load_library(chosen)
    torch.set_num_threads(1)
    return soak(chosen)


if __name__ == "__main__":
    raise SystemExit(main())
