"""A whole ``optimizer.step()`` of one weight: ours with the compact gradient of some rows, torch's with a dense gradient.

``over_best``: the faster of torch's ``foreach`` and ``fused`` in each round, over ours.
"""

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor
from torch.nn import Parameter

import wuskern as wk
from tests.accuracy import assert_as_right_as_stock


@dataclass(frozen=True)
class Kind:
    """An optimizer: how it is made of either module, and how often one step reads or writes a row."""

    name: str
    make: Callable[..., torch.optim.Optimizer]
    passes: int


KINDS = {
    "AdamW": Kind("AdamW", lambda module, params, **options: module.AdamW(params, lr=1e-3, **options), 7),
    "SGD": Kind(
        "SGD momentum",
        lambda module, params, **options: module.SGD(params, lr=1e-3, momentum=0.9, weight_decay=1e-4, **options),
        5,
    ),
}
CASES = [
    *(("AdamW", (4096, 4096), dtype, ratio) for dtype in (torch.float32, torch.bfloat16) for ratio in (0.01, 0.05, 0.2)),
    *(("SGD", (4096, 4096), torch.float32, ratio) for ratio in (0.05, 0.2)),
    ("AdamW", (512, 512, 3, 3), torch.float32, 0.05),
    ("AdamW", (512, 512), torch.float32, 0.05),
    ("AdamW", (64, 64), torch.float32, 0.2),
]
PEERS = {"foreach": dict(foreach=True), "fused": dict(fused=True)}


def name_of(case) -> str:
    kind, shape, dtype, ratio = case
    return f"{KINDS[kind].name} {'x'.join(map(str, shape))} {str(dtype)[6:]} {ratio:.0%}"


@dataclass
class Problem:
    """The same weight and gradient for each variant, before its first step."""

    start: Tensor
    rows: Tensor
    optimizers: dict[str, torch.optim.Optimizer]

    def weight(self, variant: str) -> Tensor:
        return self.optimizers[variant].param_groups[0]["params"][0].detach()


def problem(kind: Kind, shape: tuple[int, ...], dtype: torch.dtype, k: int, device: str) -> Problem:
    start, grad = (torch.randn(shape, device=device).to(dtype) for _ in range(2))
    rows = torch.randperm(shape[0])[:k].sort()[0].to(device)
    optimizers = {}
    for name, options in PEERS.items():
        weight = Parameter(start.clone())
        weight.grad = grad.clone()
        optimizers[name] = kind.make(torch.optim, [weight], **options)
    weight = Parameter(start.clone())
    optimizers["ours"] = kind.make(wk.optim, [weight])
    weight.row_grad = wk.RowGrad(rows, grad.index_select(0, rows))
    return Problem(start, rows, optimizers)


@pytest.mark.parametrize("case", CASES, ids=lambda case: name_of(case).replace(" ", "-"))
def test_optim(case, device, race):
    kind, shape, dtype, ratio = KINDS[case[0]], *case[1:]
    k = max(1, int(ratio * shape[0]))

    def inputs():
        return (problem(kind, shape, dtype, k, device),)

    def verify(_, first) -> None:
        """The chosen rows as torch's, the others where they were."""
        start, rows = first.start, first.rows
        exact = Parameter(start.double())
        exact.grad = first.optimizers["fused"].param_groups[0]["params"][0].grad.double()
        kind.make(torch.optim, [exact]).step()
        chosen = [t.detach()[rows] for t in (first.weight("ours"), first.weight("fused"), exact)]
        assert_as_right_as_stock(*chosen)
        start[rows] = chosen[0]
        assert torch.equal(first.weight("ours"), start)

    elements = k * torch.Size(shape[1:]).numel()
    race(
        {name: lambda p, name=name: p.optimizers[name].step() for name in ("ours", *PEERS)},
        group="optim",
        case=name_of(case),
        inputs=inputs,
        verify=verify,
        peer="fused",
        derived={"over_best": lambda t: min(t[name] for name in PEERS) / t["ours"]},
        moved=kind.passes * elements * dtype.itemsize,
        dtype_name=str(dtype)[6:],
    )
