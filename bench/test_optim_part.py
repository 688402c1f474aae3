"""An AdamW step of a weight of which a twentieth or a fifth trains, fixed: ours, with moments of that part alone, and torch's
on the dense gradient, whose moments are whole.

``of_state``: our moments over torch's. Columns come one by one, or in aligned blocks of 16, a cache line of float32.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import Parameter

import wuskern as wk
from bench.test_optim import PEERS
from tests.accuracy import assert_as_right_as_stock

PASSES = 8  # of the part: gradient, weight and two moments read, these three written, gradient's lines gathered


@dataclass(frozen=True)
class Case:
    """A weight ``[n, n]`` and the part of it that trains."""

    name: str
    n: int
    ratio: float
    block: int = 1

    def choice(self) -> wk.Rows | wk.Columns:
        blocks = torch.randperm(self.n // self.block)[: max(1, int(self.ratio * self.n / self.block))]
        index = (blocks[:, None] * self.block + torch.arange(self.block)).flatten()
        return wk.Rows(index) if self.name == "rows" else wk.Columns(index)

    def __str__(self) -> str:
        blocks = f" in blocks of {self.block}" if self.block > 1 else ""
        return f"{self.name}{blocks} {self.n}x{self.n} float32 {self.ratio:.0%}"


LARGE, SMOKE = 4096, 1024
CASES = [
    *(Case("rows", n, ratio) for n in (LARGE, 1024) for ratio in (0.05, 0.2)),
    *(Case("columns", n, ratio, block) for n in (LARGE, 1024) for ratio in (0.05, 0.2) for block in (16, 1)),
]


@dataclass
class Problem:
    """The same weight and gradient for each variant. The first step, which makes the state, is done."""

    start: Tensor
    chosen: Tensor
    layer: Any
    optimizers: dict[str, torch.optim.Optimizer]

    def weight(self, variant: str) -> Parameter:
        return self.optimizers[variant].param_groups[0]["params"][0]


def problem(case: Case) -> Problem:
    layer = wk.SkippableLinear(case.n, case.n, bias=False)
    wk.set_plan(layer, **{case.name: case.choice()})
    start = layer.weight.detach().clone()
    optimizers: dict[str, torch.optim.Optimizer] = {"ours": wk.optim.AdamW([layer.weight], lr=1e-3)}
    layer(torch.randn(8, case.n)).square().mean().backward()
    grad = layer.weight.grad.to_dense() if layer.weight.grad.is_sparse else layer.weight.grad
    for name, options in PEERS.items():
        weight = Parameter(start.clone())
        weight.grad = grad.clone()
        optimizers[name] = torch.optim.AdamW([weight], lr=1e-3, **options)
    for optimizer in optimizers.values():
        optimizer.step()
    chosen = torch.zeros(start.shape, dtype=torch.bool)
    choice = layer.rows if case.name == "rows" else layer.columns
    chosen.index_fill_(0 if case.name == "rows" else 1, choice.index, True)
    return Problem(start, chosen, layer, optimizers)


def verify(_: object, first: Problem) -> None:
    """Two steps in: the part as torch's, the rest where it was."""
    ours, stock = first.weight("ours").detach(), first.weight("fused").detach()
    exact = Parameter(first.start[first.chosen].double())
    exact.grad = first.weight("fused").grad[first.chosen].double()
    optimizer = torch.optim.AdamW([exact], lr=1e-3)
    optimizer.step()
    optimizer.step()
    moved = exact.detach() - first.start[first.chosen].double()
    assert_as_right_as_stock(ours[first.chosen], stock[first.chosen], exact, exact.detach().abs() + moved.abs())
    assert torch.equal(ours[~first.chosen], first.start[~first.chosen])


def moments(optimizer: torch.optim.Optimizer) -> int:
    """The bytes of what an optimizer keeps."""
    return sum(t.nbytes for state in optimizer.state.values() for t in state.values() if isinstance(t, Tensor))


@pytest.mark.parametrize("case", CASES, ids=lambda case: str(case).replace(" ", "-"))
def test_optim_part(case, race, benchmark):
    timed = Case(case.name, SMOKE, case.ratio, case.block) if benchmark.disabled else case
    once = problem(timed)
    of_state = moments(once.optimizers["ours"]) / moments(once.optimizers["fused"])
    variants: dict[str, Callable[..., Any]] = {
        name: lambda p, name=name: p.optimizers[name].step() for name in ("ours", *PEERS)
    }
    race(
        variants,
        group="optim part",
        case=str(case),
        inputs=lambda: (problem(timed),),
        verify=verify,
        peer="fused",
        derived={"over_best": lambda t: min(t[name] for name in PEERS) / t["ours"], "of_state": lambda _: of_state},
        moved=int(PASSES * case.ratio * case.n * case.n * 4),
        copies=1,
        dtype_name="float32",
    )
