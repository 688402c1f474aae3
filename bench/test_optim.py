"""A whole ``optimizer.step()``: ours with the compact gradient of some rows of a weight, torch's with a dense gradient.

``over_best``: the faster of torch's ``foreach`` and ``fused`` in each round, over ours.
"""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor
from torch.nn import Parameter

import wuskern as wk
from tests.accuracy import assert_as_right_as_stock
from wuskern.sparse_grad import to_sparse


@dataclass(frozen=True)
class Kind:
    """An optimizer: how it is made of either module, and how often one step reads or writes a row."""

    name: str
    make: Callable[..., torch.optim.Optimizer]
    passes: int


KINDS = (
    Kind("AdamW", lambda module, params, **options: module.AdamW(params, lr=1e-3, **options), 7),
    Kind("SGD momentum", lambda module, params, **options: module.SGD(params, lr=1e-3, momentum=0.9, **options), 5),
)


@dataclass(frozen=True)
class Case:
    """So many weights of one shape, each with a gradient in a share of its rows."""

    kind: Kind
    shape: tuple[int, ...]
    dtype: torch.dtype
    ratio: float
    weights: int = 1

    @property
    def k(self) -> int:
        return max(1, int(self.ratio * self.shape[0]))

    def __str__(self) -> str:
        many = f"{self.weights} x " if self.weights > 1 else ""
        return f"{self.kind.name} {many}{'x'.join(map(str, self.shape))} {str(self.dtype)[6:]} {self.ratio:.0%}"


ADAMW, SGD = KINDS
LARGE, SMOKE = (4096, 4096), (512, 4096)
CASES = [
    *(Case(ADAMW, LARGE, dtype, ratio) for dtype in (torch.float32, torch.bfloat16) for ratio in (0.01, 0.05, 0.2)),
    *(Case(SGD, LARGE, torch.float32, ratio) for ratio in (0.05, 0.2)),
    Case(ADAMW, LARGE, torch.float32, 0.05, weights=4),
    Case(ADAMW, (512, 512, 3, 3), torch.float32, 0.05),
    Case(ADAMW, (512, 512), torch.float32, 0.05),
    Case(ADAMW, (64, 64), torch.float32, 0.2),
]
PEERS = {"foreach": dict(foreach=True), "fused": dict(fused=True)}


@dataclass
class Problem:
    """The same weights and gradients for each variant. The first step, which makes the state, is done."""

    start: list[Tensor]
    rows: Tensor
    optimizers: dict[str, torch.optim.Optimizer]

    def weights(self, variant: str) -> list[Parameter]:
        return self.optimizers[variant].param_groups[0]["params"]


def problem(case: Case, device: str) -> Problem:
    start, grads = ([torch.randn(case.shape, device=device).to(case.dtype) for _ in range(case.weights)] for _ in range(2))
    rows = torch.randperm(case.shape[0])[: case.k].sort()[0].to(device)
    optimizers = {}
    for name in ("ours", *PEERS):
        weights = [Parameter(t.clone()) for t in start]
        module, options = (wk.optim, {}) if name == "ours" else (torch.optim, PEERS[name])
        optimizers[name] = case.kind.make(module, weights, **options)
        for weight, grad in zip(weights, grads, strict=True):
            if name == "ours":
                weight.grad = to_sparse(weight, wk.RowGrad(rows, grad.index_select(0, rows)))
            else:
                weight.grad = grad.clone()
        optimizers[name].step()
    return Problem(start, rows, optimizers)


def verify(_: object, first: Problem, case: Case) -> None:
    """Two steps in: the chosen rows as torch's, the others where they were."""
    for start, ours, stock in zip(first.start, first.weights("ours"), first.weights("fused"), strict=True):
        exact = Parameter(start[first.rows].double())
        exact.grad = stock.grad[first.rows].double()
        optimizer = case.kind.make(torch.optim, [exact])
        optimizer.step()
        optimizer.step()
        chosen = ours.detach()[first.rows]
        moved = exact.detach() - start[first.rows].double()
        assert_as_right_as_stock(chosen, stock[first.rows], exact, exact.detach().abs() + moved.abs())
        start[first.rows] = chosen
        assert torch.equal(ours, start)


@pytest.mark.parametrize("case", CASES, ids=lambda case: str(case).replace(" ", "-"))
def test_optim(case, device, race, benchmark):
    timed = dataclasses.replace(case, shape=SMOKE) if benchmark.disabled and case.shape == LARGE else case
    race(
        {name: lambda p, name=name: p.optimizers[name].step() for name in ("ours", *PEERS)},
        group="optim",
        case=str(case),
        inputs=lambda: (problem(timed, device),),
        verify=lambda results, first: verify(results, first, case),
        peer="fused",
        derived={"over_best": lambda t: min(t[name] for name in PEERS) / t["ours"]},
        moved=case.kind.passes * case.weights * case.k * torch.Size(case.shape[1:]).numel() * case.dtype.itemsize,
        copies=None if case.weights == 1 else 1,
        dtype_name=str(case.dtype)[6:],
    )
