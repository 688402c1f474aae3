"""Tokens that are drawn at random: indices and scales by hand, mean and variance by enumeration, and means of many draws."""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import wuskern as wk
from tests.tokens import backward, exact, problem
from wuskern.choices import PICKS
from wuskern.tokens import Drawn, _sampled, draw

pytestmark = pytest.mark.usefixtures("one_thread")

DRAWN = PICKS[1:]


class Uniform:
    """Stands for torch.rand: hands out these numbers in place of draws."""

    def __init__(self, numbers):
        self.numbers = numbers

    def __call__(self, k, dtype, device):
        return torch.tensor(self.numbers[:k], dtype=dtype, device=device)


def test_winners_and_draws_worked_by_hand(monkeypatch):
    """p = .5, .2, .15, .1, .05, and k = 3: (1 - P_c) / (3 - c) is 1/3, .5/2, .3/1: one winner; two draws from .2, .15, .1, .05,
    scaled by .5 / (2 p). In ascending order their running sums, over .5, are .1, .3, .6, 1: .05 hits the smallest, .65 the
    largest of them."""
    monkeypatch.setattr(torch, "rand", Uniform([9.0, 0.05, 0.65]))
    index, scale = _sampled(torch.tensor([0.3, 1.0, 0.1, 0.4, 0.2], dtype=torch.float64), 3, winners=True)
    assert index.tolist() == [1, 2, 3]
    torch.testing.assert_close(scale, torch.tensor([1, 0.5 / (2 * 0.05), 0.5 / (2 * 0.2)], dtype=torch.float64))


def test_draws_with_replacement_worked_by_hand(monkeypatch):
    """The same p without winners: 1 / (3 p). Running sums: .05, .15, .3, .5, 1."""
    monkeypatch.setattr(torch, "rand", Uniform([0.49, 0.6, 0.9]))
    index, scale = _sampled(torch.tensor([0.3, 1.0, 0.1, 0.4, 0.2], dtype=torch.float64), 3, winners=False)
    assert index.tolist() == [3, 1, 1]
    torch.testing.assert_close(scale, torch.tensor([1 / 0.6, 1 / 1.5, 1 / 1.5], dtype=torch.float64))


def test_a_draw_of_zero_hits_no_token_without_size(monkeypatch):
    monkeypatch.setattr(torch, "rand", Uniform([0.0]))
    index, scale = _sampled(torch.tensor([0.0, 3.0, 0.0, 1.0], dtype=torch.float64), 1, winners=False)
    assert (index.tolist(), scale.tolist()) == ([3], [4.0])


@pytest.mark.parametrize(("pick", "expected"), [("crs", {2: 1 / 3, 7: 1 / 3}), ("wta", {2: 1.0, 7: 1.0})])
def test_bad_tokens_alone_are_drawn_as_if_alike(pick, expected):
    """Two of nine, k = 6: each draw stands for 2 / 6; both are winners, and what is drawn besides counts for nothing."""
    x, dy = torch.randn(9, 3), torch.randn(9, 2)
    x[2, 0], dy[7, 1] = math.nan, math.inf
    drawn = draw(wk.Tokens(k=6, pick=pick), dy, x)
    found = {i: factor for i, factor in zip(drawn.index.tolist(), drawn.scale.tolist(), strict=True) if factor}
    assert found == pytest.approx(expected)


def outcomes(sizes, k, winners, monkeypatch, steps):
    """Every draw that a grid of so many numbers for each of k uniform ones leads to: index and scale, all equally likely."""
    grid = [(i + 0.5) / steps for i in range(steps)]
    for numbers in itertools.product(grid, repeat=k):
        monkeypatch.setattr(torch, "rand", Uniform(numbers))
        yield _sampled(torch.tensor(sizes, dtype=torch.float64), k, winners)


@pytest.mark.parametrize("winners", [False, True])
def test_enumerated_draws_have_the_exact_mean_and_winners_less_variance(winners, monkeypatch):
    """Sizes 70, 20, 6, 4, each in a direction of its own, k = 2. The variance of k draws by size is, over k, the square of the
    sum less the sum of squares: without winners (100^2 - 5352) / 2 = 2324. One winner leaves one draw from the others:
    30^2 - 452 = 448."""
    sizes, steps = [6.0, 70.0, 4.0, 20.0], 15 if winners else 50  # multiples of which all bounds between tokens are
    exact_sum, mean, square, count = torch.tensor(sizes).double(), torch.zeros(4).double(), 0.0, 0
    for index, scale in outcomes(sizes, 2, winners, monkeypatch, steps):
        found = torch.zeros(4).double().index_add_(0, index, scale * exact_sum[index])
        mean, square, count = mean + found, square + (found - exact_sum).square().sum().item(), count + 1
    torch.testing.assert_close(mean / count, exact_sum)
    assert square / count == pytest.approx(448 if winners else 2324)


ERROR_RATE = 1e-6  # that a right estimator fails any of these tests, once in a million choices of the seed


@pytest.mark.parametrize("pick", DRAWN)
@pytest.mark.parametrize("name", ["linear", "groups"])
def test_the_mean_of_many_gradients_is_the_dense_one(name, pick):
    """In each entry the mean of 600 draws is within z standard errors of the exact gradient, where z leaves ``ERROR_RATE`` for
    all entries together (Bonferroni, two sides, normal; a tenth more, because the standard errors are estimated)."""
    layer, x, dy = problem(name, torch.float64)
    dense = backward(layer, x, dy)[1]
    layer.tokens = wk.Tokens(ratio=0.4, pick=pick)
    draws = torch.stack([backward(layer, x, dy)[1] for _ in range(600)])
    z = torch.distributions.Normal(0, 1).icdf(torch.tensor(1 - ERROR_RATE / 2 / dense.numel(), dtype=torch.float64))
    error = draws.std(0) / math.sqrt(len(draws))
    assert error.gt(0).all()
    assert ((draws.mean(0) - dense).abs() <= 1.1 * z * error).all()


def test_half_precision_is_scaled_before_it_is_rounded():
    """bfloat16: 1.9921875, its neighbour of 2, times 1.003, which it would round to 1. And 5 draws of 40: within its rounding
    of the sum in float64 over the same draws."""
    one = torch.tensor([[1.9921875]], dtype=torch.bfloat16)
    assert Drawn(torch.tensor([0]), torch.tensor([1.003])).scaled(one).item() == 2
    layer, x, dy = (
        wk.SkippableLinear(12, 7, dtype=torch.bfloat16),
        torch.randn(40, 12).bfloat16(),
        torch.randn(40, 7).bfloat16(),
    )
    layer.tokens = wk.Tokens(k=5, pick="crs")
    torch.manual_seed(5)
    found = backward(layer, x, dy)[1]
    torch.manual_seed(5)
    drawn = draw(layer.tokens, dy, x)
    assert drawn.scale.dtype == torch.float32
    expected = exact(layer, x, dy, drawn.index.tolist(), drawn.scale.tolist())
    torch.testing.assert_close(found.double(), expected, rtol=2**-6, atol=2**-6 * expected.abs().max().item())


@settings(max_examples=80, deadline=None)
@given(
    sizes=st.lists(st.one_of(st.just(0.0), st.floats(1e-30, 1e30)), min_size=2, max_size=12),
    data=st.data(),
    winners=st.booleans(),
)
def test_any_sizes_give_valid_draws(sizes, data, winners):
    """Indices in range, finite scales that are never negative, no weight on nothing; winners are the largest, each once."""
    k = data.draw(st.integers(1, len(sizes) - 1))
    index, scale = _sampled(torch.tensor(sizes, dtype=torch.float64), k, winners)
    assert index.shape == scale.shape == (k,)
    assert ((index >= 0) & (index < len(sizes))).all()
    assert (scale.isfinite() & (scale >= 0)).all()
    for i, factor in zip(index.tolist(), scale.tolist(), strict=True):
        assert (factor == 0) == (sizes[i] == 0)
    if winners:
        alone = [sizes[i] for i, factor in zip(index.tolist(), scale.tolist(), strict=True) if factor == 1]
        assert alone == sorted(sizes, reverse=True)[: len(alone)] or any(sizes.count(s) > 1 for s in sizes)
