"""The one rule of correctness: no table of tolerances, and the same verdict on every processor."""

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

FEW = 1000  # of fewer outputs the largest error is luck: another processor's library, or number of threads, has another


def assert_as_right_as_stock(ours: Tensor, stock: Tensor, exact: Tensor, magnitudes: Tensor | None = None) -> None:
    """Raises ``AssertionError`` unless our largest error against ``exact`` (float64) is at most twice stock PyTorch's, plus
    eps * max|exact|.

    Fewer outputs than ``FEW`` need ``magnitudes``: of each output the sum of the absolute values that it adds up. An output is
    then right too that is within 4 * eps(accumulator) * magnitude of the exact one, and rounded. So it is in float64, where
    ``exact`` is no better than stock.
    """
    _assert_alike(ours, stock, exact)
    few = _outputs(exact) < FEW
    assert not few or magnitudes is not None, f"magnitudes: expected with fewer than {FEW} outputs, got {_outputs(exact)}"
    error, bound = _largest(ours, exact), 2 * _largest(stock, exact) + _eps(ours) * _scale(exact)
    if error > bound and magnitudes is not None and (few or ours.dtype == torch.float64):
        over = (_errors(ours, exact) - _allowed(ours, magnitudes)).max().item()
        assert over <= 0, f"error {error:.3e} is over {bound:.3e} (twice stock's), and by {over:.3e} over what its sums allow"
    else:
        assert error <= bound, f"error {error:.3e} is over {bound:.3e} (twice stock's)"


def assert_all_as_right(ours: Mapping[str, Tensor], stock: Mapping[str, Tensor], exact: Mapping[str, Tensor]) -> None:
    """The rule for the results of one computation, which pass their errors on: where one has few outputs, stock's error is the
    largest that stock makes in any of them, each in units of its largest exact value."""
    assert ours.keys() == stock.keys() == exact.keys()
    outputs = sum(map(_outputs, exact.values()))
    shared = max((_largest(stock[name], value) / (_scale(value) or 1) for name, value in exact.items()), default=0)
    for name, value in exact.items():
        _assert_alike(ours[name], stock[name], value)
        enough = _outputs(value) >= FEW
        assert enough or outputs == 0 or outputs >= FEW, f"expected at least {FEW} outputs, got {outputs}"
        stock_error = _largest(stock[name], value) if enough else shared * _scale(value)
        error, bound = _largest(ours[name], value), 2 * stock_error + _eps(ours[name]) * _scale(value)
        assert error <= bound, f"{name}: error {error:.3e} is over {bound:.3e} (stock {stock_error:.3e})"


def exact_channel_sums(dy: Tensor, dim: int, of: Callable[[Tensor], Tensor] = Tensor.double) -> Tensor:
    """Sums in float64 over everything but ``dim`` of what ``of`` makes of each value; of float64 correctly rounded."""
    channels = of(dy.detach().cpu().double().movedim(dim, 0))[..., None].flatten(1)
    if dy.dtype != torch.float64:
        return channels.sum(1)
    return torch.tensor([math.fsum(channel.tolist()) for channel in channels], dtype=torch.float64)


def _assert_alike(ours: Tensor, stock: Tensor, exact: Tensor) -> None:
    assert ours.shape == exact.shape, f"shape: expected {tuple(exact.shape)}, got {tuple(ours.shape)}"
    assert ours.dtype == stock.dtype, f"dtype: expected {stock.dtype}, got {ours.dtype}"


def _outputs(exact: Tensor) -> int:
    """How many can be wrong by a rounding: what is exactly zero adds nothing up, or cancels out."""
    return int(exact.count_nonzero())


def _errors(found: Tensor, exact: Tensor) -> Tensor:
    return (found.detach().double().cpu() - exact.detach().double().cpu()).abs()


def _largest(found: Tensor, exact: Tensor) -> float:
    return _errors(found, exact).max().item() if exact.numel() else 0.0


def _scale(exact: Tensor) -> float:
    return exact.detach().double().abs().max().item() if exact.numel() else 0.0


def _eps(found: Tensor) -> float:
    return torch.finfo(found.dtype).eps


def _allowed(found: Tensor, magnitudes: Tensor) -> Tensor:
    """How far off a result may be by its sum of absolute values: an accumulator's roundings, then that of the result."""
    accumulator = torch.finfo(torch.promote_types(found.dtype, torch.float32))
    sums = 4 * accumulator.eps * magnitudes.detach().double().cpu()
    return sums + _eps(found) / 2 * (found.detach().double().abs().cpu() + sums)
