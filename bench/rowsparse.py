"""What the races of row-sparse layers share: their variants, the ideal, and what a right result is.

Each variant is one ``.backward()`` of a forward that is kept, into ``.grad``; then the gradients are taken away. That is
what a training step does, ``zero_grad`` included, and both matter: autograd adopts a fresh gradient or copies it, and ours
lends its storage again only when the last gradient is gone. ``autograd.grad`` leaves the first out, and always gives the dense
form. All variants are treated so.

The ideal is the library on operands that are compact already, one read of dY at the measured bandwidth, and the gather of
dY's rows by index_select, in the layout of dY. No zeros, no scores, no gather of the weight's rows, no host.
"""

import copy
import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn as nn
from torch import Tensor

from bench.race import Race
from tests.accuracy import assert_as_right_as_stock
from wuskern import TopK, convert
from wuskern.bench.plain import PlainTopK, top_rows
from wuskern.bench.turns import Derived, Seconds
from wuskern.kernels import reference

RATIOS = (0.05, 0.2)
ROUNDS = 9  # at most: there are a hundred and fifty cases
# Under a smoke run a case is smaller, and only the first of each dtype is compiled, which takes seconds.
SMOKE_IMAGES, SMOKE_TOKENS = 4, 128
COMPILES = [
    pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning"),  # Dynamo does it
    pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning"),  # Inductor does it
]
Grads = tuple[Tensor, Any, Tensor]  # of x, weight (sparse for "compact", None for "frozen"), bias


@dataclass(frozen=True)
class Compact:
    """The operands of the ideal: ``rows``, and dY and the weight with those alone."""

    rows: Tensor
    dy: Tensor
    weight: Tensor


class Problem:
    """One layer, of which a share of the rows is trained; scope "both"."""

    def __init__(self, stock: nn.Linear | nn.Conv2d, ratio: float) -> None:
        self.stock, self.conv = stock, isinstance(stock, nn.Conv2d)
        self.out, self.dim, self.groups = stock.weight.shape[0], 1, stock.groups if self.conv else 1
        self.choice = TopK(ratio=ratio, scope="both")
        self.k, self.row = self.choice.count(self.out, self.groups), stock.weight[0].numel()

    def layers(self, compiled: bool) -> dict[str, nn.Module]:
        """Every variant's layer, with parameters of its own, of the same values."""
        ours, compact = (convert(copy.deepcopy(self.stock)) for _ in range(2))
        ours.rows, compact.rows = self.choice, dataclasses.replace(self.choice, sparse=True)
        dense, frozen = (copy.deepcopy(self.stock) for _ in range(2))
        frozen.weight.requires_grad_(False)
        found = {"ours": ours, "compact": compact, "dense": dense, "frozen": frozen, "plain": PlainTopK(self.stock, self.k)}
        return found | ({"compiled": PlainTopK(self.stock, self.k, compiled=True)} if compiled else {})

    def compact(self, dy: Tensor, rows: Tensor) -> Compact:
        weight = self.stock.weight.detach()
        return Compact(rows, self.gather(dy, rows), _laid_out_as(weight.index_select(0, rows), weight))

    def gather(self, dy: Tensor, rows: Tensor) -> Tensor:
        """In the layout of dy. (Of a channels_last tensor index_select makes a contiguous one.)"""
        if self.conv and not dy.is_contiguous():
            return dy.permute(0, 2, 3, 1).index_select(3, rows).permute(0, 3, 1, 2)
        return dy.index_select(self.dim, rows)

    def products(self, dy: Tensor, x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        """dx and dw by the library, of operands as they are."""
        if not self.conv:
            return dy.mm(weight), dy.t().mm(x)
        s = self.stock
        geometry = (s.stride, s.padding, s.dilation, False, (0, 0), s.groups)
        return torch.ops.aten.convolution_backward(dy, x, weight, None, *geometry, (True, True, False))[:2]

    def parts_of_the_ideal(self) -> dict[str, Callable[..., object]]:
        return {
            "products": lambda graphs, dy, x, ideal: self.products(ideal.dy, x, ideal.weight),
            "gather": lambda graphs, dy, x, ideal: self.gather(dy, ideal.rows),
        }


# ---- the races ------------------------------------------------------------------------------------------------------


def against_all_peers(race: Race, problem: Problem, make: Callable[[], Tensor], /, *, compiled: bool, **facts: Any) -> None:
    """``make`` makes an x. facts: go to the race as they are."""
    torch._dynamo.reset()  # forgets the graphs of other cases
    layers = problem.layers(compiled)
    over: Derived = {f"over_{peer}": lambda t, peer=peer: t[peer] / t["ours"]
                     for peer in ("dense", "frozen", "compiled") if peer in layers}  # fmt: skip
    _run(race, problem, make, layers, over, peer="plain", **facts)


def cost(race: Race, problem: Problem, make: Callable[[], Tensor], /, *, use: str, ratio: float, **facts: Any) -> None:
    """Ours and stock alone, with the ideal."""
    layers = {name: layer for name, layer in problem.layers(False).items() if name in ("ours", "dense")}
    named = dict(group="rowsparse cost", case=f"{use} {ratio:.0%}", peer="dense", use=use, ratio=ratio)
    _run(race, problem, make, layers, {}, **named, **facts)


def _run(
    race: Race,
    problem: Problem,
    make: Callable[[], Tensor],
    layers: dict[str, nn.Module],
    over: Derived,
    /,
    **facts: Any,
) -> None:
    x = make()
    size = _forward(layers["ours"], x)[0].numel()
    read = size * x.itemsize / race.ceilings.bytes_per_second
    race(
        {name: backward(name, layer) for name, layer in layers.items()} | problem.parts_of_the_ideal(),
        inputs=lambda: _inputs(problem, layers, make()),
        verify=lambda results, graphs, dy, x, _: verify(problem, results, dy, x),
        derived=over | against_the_ideal(problem, read, "compact" in layers),
        moved=(size + 2 * x.numel() + 2 * problem.k * problem.row) * x.itemsize,  # dy, x, dx; rows of weight and gradient
        flops=4 * size // problem.out * problem.k * problem.row,
        rounds=ROUNDS,
        rehearse=True,
        **facts,
    )


def _forward(layer: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    x = x.detach().requires_grad_()
    return layer(x), x


def _inputs(problem: Problem, layers: dict[str, nn.Module], x: Tensor) -> tuple[Any, ...]:
    """Each layer's forward of the same x, as ``name -> (y, x)``; a gradient of the output; x; the compact operands."""
    graphs = {name: _forward(layer, x) for name, layer in layers.items()}
    dy = torch.randn_like(graphs["ours"][0])
    return graphs, dy, x, problem.compact(dy, top_rows(dy, problem.dim, problem.k, problem.groups))


def backward(name: str, layer: nn.Module) -> Callable[..., Grads]:
    """One backward of the kept forward. The gradients are returned, and nothing is left behind."""
    weight, bias = layer.weight, layer.bias

    def run(graphs: Any, dy: Tensor, *_: Any) -> Grads:
        y, x = graphs[name]
        y.backward(dy, retain_graph=True)
        found = x.grad, weight.grad, bias.grad
        x.grad = weight.grad = bias.grad = None
        return found

    return run


def against_the_ideal(problem: Problem, read: float, compact: bool) -> Derived:
    """Ours over the ideal, and with ``compact`` that form's too, else the ideal over dense. read: seconds, of dY."""

    def ideal(t: Seconds) -> float:
        return t["products"] + read + (t["gather"] if problem.k < problem.out else 0)

    found: Derived = {"of_ideal": lambda t: t["ours"] / ideal(t)}
    if compact:
        return found | {"compact_of_ideal": lambda t: t["compact"] / ideal(t)}
    return found | {"ideal_of_dense": lambda t: ideal(t) / t["dense"]}


# ---- what is right --------------------------------------------------------------------------------------------------


def verify(problem: Problem, results: dict[str, Any], dy: Tensor, x: Tensor) -> None:
    """Ours against float64 of the rows that it chose, which have the largest sums; compact: the same bits. Plain and compiled
    may break near ties differently, in bfloat16 above all: each against the library on its own rows."""
    dx, dw, db = results["ours"]
    rows = _check_choice(problem, dw, dy)
    exact_operands = problem.compact(dy, rows)
    stock_dx, stock_dw = problem.products(exact_operands.dy, x, exact_operands.weight)
    exact_dx, exact_dw = problem.products(exact_operands.dy.double(), x.double(), exact_operands.weight.double())
    magnitudes = problem.products(exact_operands.dy.abs(), x.abs(), exact_operands.weight.abs())
    assert_as_right_as_stock(dx, stock_dx, exact_dx, magnitudes[0])
    assert_as_right_as_stock(dw[rows], stock_dw, exact_dw, magnitudes[1])
    exact_db, of_magnitudes = reference.row_stats(dy.double(), problem.dim, "l1")
    assert_as_right_as_stock(db, results["dense"][2], exact_db, of_magnitudes)
    assert dx.stride() == results["dense"][0].stride()
    if "compact" in results:
        _check_compact(results["compact"], results["ours"], rows)
    for name in ("plain", "compiled"):
        if name in results:
            _check_plain(problem, results[name], dy, x)


def _check_choice(problem: Problem, dw: Tensor, dy: Tensor) -> Tensor:
    """The rows of dw that are not zero: k of them, and none of the same group has a larger sum than one of them."""
    rows = _rows_of(dw)
    assert len(rows) == problem.k
    scores = reference.row_stats(dy.double(), problem.dim, "l1")[1]
    chosen = torch.zeros(problem.out, dtype=torch.bool, device=dw.device).index_fill_(0, rows, True)
    least = scores.masked_fill(~chosen, torch.inf).view(problem.groups, -1).amin(1)
    most = scores.masked_fill(chosen, 0).view(problem.groups, -1).amax(1)
    assert (least >= (1 - 1e-5) * most).all()
    return rows


def _check_compact(compact: Grads, ours: Grads, rows: Tensor) -> None:
    assert torch.equal(compact[0], ours[0])
    assert torch.equal(compact[1]._indices(), rows[None])
    assert torch.equal(compact[1]._values(), ours[1][rows])
    assert torch.equal(compact[2], ours[2])


def _check_plain(problem: Problem, found: Grads, dy: Tensor, x: Tensor) -> None:
    dx, dw, _ = found
    rows = _rows_of(dw)
    assert len(rows) == problem.k
    operands = problem.compact(dy, rows)
    for got, expected in zip((dx, dw[rows]), problem.products(operands.dy, x, operands.weight), strict=True):
        assert (got - expected).norm() <= 1e-2 * expected.norm()


def _rows_of(dw: Tensor) -> Tensor:
    return dw.flatten(1).any(1).nonzero().flatten()


def _laid_out_as(values: Tensor, weight: Tensor) -> Tensor:
    if weight.ndim == 4 and not weight.is_contiguous():
        return values.contiguous(memory_format=torch.channels_last)
    return values
