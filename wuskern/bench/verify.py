"""What is right: every variant against float64, before any of them is timed."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor

from wuskern.bench.accuracy import assert_as_right_as_stock
from wuskern.bench.slices import Layer, groups_of, within
from wuskern.bench.variants import Gradients, Variants, step
from wuskern.kernels import reference


class Truth(NamedTuple):
    """The gradients of a layer for one dY: stock's, exact ones in float64, and of each the sum of the absolute values."""

    stock: Gradients
    exact: Gradients
    magnitudes: Gradients


def verify(variants: Variants, results: dict[str, Any], x: Tensor, dy: Tensor) -> None:
    """Raises ``AssertionError``, with the variant's name, for the first one that is wrong: ours by the project's rule (at most
    twice stock's largest error), a peer that rounds in other places within 1 % of it all."""
    whole = _truth(variants.stock, x, dy)
    for name, found in results.items():
        with _named(name):
            _check(variants, name, found, whole, x, dy)


@contextmanager
def _named(name: str) -> Iterator[None]:
    try:
        yield
    except AssertionError as error:
        raise AssertionError(f"{name}: {error}") from None


def _truth(stock: Layer, x: Tensor, dy: Tensor) -> Truth:
    exact, of_sizes = copy.deepcopy(stock).double(), copy.deepcopy(stock).double()
    with torch.no_grad():
        of_sizes.weight.abs_()
    return Truth(
        step(copy.deepcopy(stock))(x, dy),
        step(exact)(x.double(), dy.double()),
        step(of_sizes)(x.double().abs(), dy.double().abs()),
    )


def _check(variants: Variants, name: str, found: Any, whole: Truth, x: Tensor, dy: Tensor) -> None:
    if not isinstance(found, Gradients):
        assert_as_right_as_stock(found, whole.stock.bias, whole.exact.bias, whole.magnitudes.bias)
        return
    assert_as_right_as_stock(found.bias, whole.stock.bias, whole.exact.bias, whole.magnitudes.bias)
    parts, of_peer = name.split(), name.startswith("plain")
    if parts[-1] in ("skip", "frozen"):
        assert found.weight is None, "expected no gradient of the weight, got one"
        _near(found, whole, "x", of_peer)
        return
    if parts[-1] == "rows":
        _check_rows(variants, found, x, dy, of_peer)
        return
    _near(found, whole, "x", of_peer)
    if parts[-1] == "columns":
        _check_columns(variants, found, whole, of_peer)
    else:
        _near(found, whole, "weight", of_peer)


def _near(found: Gradients, truth: Truth, of: str, of_peer: bool) -> None:
    ours, stock, exact, magnitudes = (getattr(gradients, of) for gradients in (found, *truth))
    if of_peer:
        off, size = (ours.double() - exact).norm(), exact.norm()
        assert off <= 1e-2 * size, f"the gradient of {of} is off by {off:.3g} of {size:.3g}"
    else:
        assert_as_right_as_stock(ours, stock, exact, magnitudes)


def _check_rows(variants: Variants, found: Gradients, x: Tensor, dy: Tensor, of_peer: bool) -> None:
    """Both gradients are those of the chosen rows alone, and these are k of the largest sums. (A peer sums in the dtype of
    dY, where sums may be equal that are not.)"""
    assert found.weight is not None
    chosen = found.weight.flatten(1).any(1)
    assert int(chosen.sum()) == variants.k, f"expected {variants.k} rows, got {int(chosen.sum())}"
    if not of_peer:
        groups = groups_of(variants.stock)
        scores = reference.row_stats(dy.double(), variants.dim, "l1")[1]
        least = scores.masked_fill(~chosen, torch.inf).view(groups, -1).amin(1)
        most = scores.masked_fill(chosen, 0).view(groups, -1).amax(1)
        assert (least >= (1 - 1e-5) * most).all(), "expected the rows with the largest sums, got others"
    alone = dy.movedim(variants.dim, -1).mul(chosen).movedim(-1, variants.dim)
    of_rows = _truth(variants.stock, x, alone)
    _near(found, of_rows, "x", of_peer)
    _near(found, of_rows, "weight", of_peer)


def _check_columns(variants: Variants, found: Gradients, whole: Truth, of_peer: bool) -> None:
    """The gradient of the weight is that of the chosen columns, and zero in the others; of a slice there are no others."""
    assert variants.columns is not None
    assert found.weight is not None
    columns = within(variants.stock, variants.columns)
    of_columns = Truth(*(g._replace(weight=g.weight.index_select(1, columns)) for g in whole if g.weight is not None))
    if of_peer:
        _near(found, of_columns, "weight", True)
        return
    others = torch.ones(found.weight.shape[1], dtype=torch.bool, device=columns.device).index_fill_(0, columns, False)
    assert not found.weight[:, others].any(), "expected zeros outside of the chosen columns, got others"
    _near(found._replace(weight=found.weight.index_select(1, columns)), of_columns, "weight", False)
