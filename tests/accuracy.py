"""The one rule of correctness: no table of tolerances."""

import math

import torch
from torch import Tensor


def assert_as_right_as_stock(ours: Tensor, stock: Tensor, exact: Tensor) -> None:
    """Our largest error against ``exact`` (float64) is at most twice stock PyTorch's, plus eps * max|exact|."""
    assert ours.shape == exact.shape, f"shape: expected {tuple(exact.shape)}, got {tuple(ours.shape)}"
    assert ours.dtype == stock.dtype, f"dtype: expected {stock.dtype}, got {ours.dtype}"
    if exact.numel() == 0:
        return
    exact = exact.detach().double().to(ours.device)
    error = (ours.detach().double() - exact).abs().max().item()
    stock_error = (stock.detach().double().to(ours.device) - exact).abs().max().item()
    bound = 2 * stock_error + torch.finfo(ours.dtype).eps * exact.abs().max().item()
    assert error <= bound, f"error {error:.3e} is over {bound:.3e} (stock {stock_error:.3e})"


def exact_channel_sums(dy: Tensor, dim: int) -> Tensor:
    """Correctly rounded float64 sums over everything but ``dim``, by ``math.fsum``."""
    channels = dy.detach().double().cpu().movedim(dim, 0)
    return torch.tensor([math.fsum(channel.flatten().tolist()) for channel in channels], dtype=torch.float64)
