"""Column-row sampling: which tokens a weight gradient sums over, and what comes out, against float64 and by hand."""

import copy
import itertools
import math
import pickle

import pytest
import torch
import torch.nn as nn
from hypothesis import given, settings
from hypothesis import strategies as st

import wuskern as wk
from tests.accuracy import assert_as_right_as_stock
from tests.cases import CONVS, LAYERS, MEMORY_FORMATS
from wuskern.compact import request_row_grad
from wuskern.tokens import PICKS, Drawn, _sampled, draw

pytestmark = pytest.mark.usefixtures("one_thread")

DRAWN = PICKS[1:]


def backward(layer, x, dy):
    """The gradients of x, weight and bias."""
    layer.zero_grad()
    x = x.detach().requires_grad_()
    layer(x).backward(dy)
    return x.grad, layer.weight.grad, None if layer.bias is None else layer.bias.grad


def exact(layer, x, dy, index, scale=None):
    """The weight's gradient in float64, summed over these tokens with these scales, token by token, by stock PyTorch."""
    twin = copy.deepcopy(layer).double()
    twin.skip, twin.rows, twin.tokens = False, None, None
    feature = 3 if isinstance(layer, nn.Conv2d) else 1
    x, dy = x.flatten(0, -feature - 1).double(), dy.flatten(0, -feature - 1).double()
    total = torch.zeros_like(twin.weight)
    for i, factor in zip(index, scale if scale is not None else [1.0] * len(index), strict=True):
        total += backward(twin, x[i : i + 1], factor * dy[i : i + 1])[1]
    return total


def sizes_by_hand(x, dy, feature):
    """The size of what each token adds, in plain Python."""
    rows = [t.flatten(0, -feature - 1).flatten(1).double().tolist() for t in (x, dy)]
    return [math.hypot(*a) * math.hypot(*b) for a, b in zip(*rows, strict=True)]


def problem(name, dtype=torch.float32):
    """A layer, an input and an output's gradient whose tokens differ much in size. "linear", or a name of ``CONVS``."""
    if name == "linear":
        layer, x = wk.SkippableLinear(12, 7), torch.randn(5, 6, 12)
        x, dy = x * torch.rand(5, 6, 1).exp() ** 3, torch.randn(5, 6, 7)
    else:
        case = next(case for case in CONVS if case.name == name)
        layer = wk.convert(nn.Sequential(case.layer()))[0]
        x = torch.randn(9, *case.input().shape[1:]) * torch.rand(9, 1, 1, 1).exp() ** 3
        dy = torch.randn_like(layer(x)) * torch.rand(9, 1, 1, 1).exp()
    return layer.to(dtype), x.to(dtype), dy.to(dtype)


# ---- the value ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tokens", "n", "expected"),
    [
        (wk.Tokens(ratio=0.3), 64, 19),  # int(19.2)
        (wk.Tokens(ratio=0.01), 10, 1),  # at least one
        (wk.Tokens(ratio=1), 7, 7),
        (wk.Tokens(k=4), 10, 4),
        (wk.Tokens(k=40), 10, 10),  # all there are
        (wk.Tokens(ratio=0.3), 0, 0),
        (wk.Tokens(k=4), 0, 0),
    ],
    ids=str,
)
def test_count(tokens, n, expected):
    assert tokens.count(n) == expected


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({}, ValueError, "ratio, k: expected one of the two, got ratio=None, k=None"),
        ({"ratio": 0.5, "k": 3}, ValueError, "ratio, k: expected one of the two, got ratio=0.5, k=3"),
        ({"ratio": 1.5}, ValueError, "ratio: expected a number over 0 and up to 1, got 1.5"),
        ({"ratio": "half"}, TypeError, "ratio: expected a number, got 'half'"),
        ({"k": 0}, ValueError, "k: expected at least 1, got 0"),
        ({"k": 2.0}, TypeError, r"k: expected a whole number, got 2\.0"),
        ({"k": 2, "pick": "best"}, ValueError, "pick: expected one of top, crs, wta, got 'best'"),
    ],
    ids=str,
)
def test_wrong_arguments(arguments, error, message):
    with pytest.raises(error, match=message):
        wk.Tokens(**arguments)


def test_a_value_is_frozen_and_survives_copies():
    tokens = wk.Tokens(ratio=0.5, pick="wta")
    assert copy.deepcopy(tokens) == tokens == pickle.loads(pickle.dumps(tokens)) != wk.Tokens(ratio=0.5)
    with pytest.raises(AttributeError):
        tokens.pick = "top"


def test_what_is_no_choice_of_tokens_is_refused():
    model = wk.convert(nn.Sequential(nn.Linear(3, 4), nn.Conv2d(3, 4, 1)))
    with pytest.raises(TypeError, match="tokens: expected a Tokens or None, got float"):
        wk.set_tokens(model, 0.3)
    for layer, x in zip(model, (torch.randn(2, 3), torch.randn(2, 3, 1, 1)), strict=True):
        layer.tokens = wk.TopK(k=1)
        with pytest.raises(TypeError, match="tokens: expected a Tokens or None, got TopK"):
            layer(x)
    with pytest.raises(ValueError, match="model: expected at least one converted layer"):
        wk.set_tokens(nn.Linear(2, 2), None)


def test_layers_show_their_tokens_and_lose_them_with_what_makes_them_skippable():
    model = wk.convert(nn.Sequential(nn.Linear(3, 4)))
    wk.set_tokens(model, wk.Tokens(k=2))
    assert "tokens=Tokens(ratio=None, k=2, pick='top')" in repr(model)
    assert "rows=None, tokens=Tokens(ratio=None, k=2, pick='top')" in str(wk.doctor(model))
    wk.revert(model)
    assert not hasattr(model[0], "tokens")


# ---- the largest ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", ["linear", "3x3", "groups", "5x5 dilated", "same even kernel", "circular", "1x1 stride 2"])
def test_the_largest_tokens_against_a_sum_over_them_in_float64(name, dtype):
    layer, x, dy = problem(name, dtype)
    dense = backward(layer, x, dy)
    layer.tokens = wk.Tokens(ratio=0.4)
    k = layer.tokens.count(30 if name == "linear" else 9)
    sizes = sizes_by_hand(x, dy, 1 if name == "linear" else 3)
    index = sorted(range(len(sizes)), key=lambda i: -sizes[i])[:k]
    twin = copy.deepcopy(layer)
    twin.tokens = None
    flat = (x.flatten(0, -2), dy.flatten(0, -2)) if name == "linear" else (x, dy)
    stock = backward(twin, *(t[index] for t in flat))[1]
    dx, dw, db = backward(layer, x, dy)
    assert_as_right_as_stock(dw, stock, exact(layer, x, dy, index))
    assert dw.stride() == dense[1].stride()
    torch.testing.assert_close(dx, dense[0])
    torch.testing.assert_close(db, dense[2])


@pytest.mark.parametrize("memory_format", MEMORY_FORMATS.values(), ids=MEMORY_FORMATS)
def test_images_keep_their_memory_format(memory_format):
    x = torch.randn(6, 4, 5, 5).contiguous(memory_format=memory_format)
    some = Drawn(torch.tensor([4, 0, 4]), torch.tensor([1.0, 2.0, 0.5]))
    for found in (some.of(x), some.scaled(x)):
        assert found.is_contiguous(memory_format=memory_format)
    assert torch.equal(some.scaled(x), torch.stack([x[4], 2 * x[0], 0.5 * x[4]]))


def test_of_equal_tokens_the_first_are_chosen():
    x = torch.ones(6, 3)
    assert draw(wk.Tokens(k=2), torch.ones(6, 2), x).index.tolist() == [0, 1]


@pytest.mark.parametrize("pick", PICKS)
@pytest.mark.parametrize(("make", "shape"), LAYERS, ids=["linear", "conv2d"])
def test_as_many_tokens_as_there_are_is_the_dense_backward(make, shape, pick):
    layer, x = make(), torch.randn(shape)
    dy = torch.randn_like(layer(x))
    dense = backward(layer, x, dy)
    for layer.tokens in (wk.Tokens(ratio=1, pick=pick), wk.Tokens(k=shape[0], pick=pick), wk.Tokens(k=999, pick=pick)):
        assert all(map(torch.equal, backward(layer, x, dy), dense))


# ---- draws ----------------------------------------------------------------------------------------------------------


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
    """bfloat16, 5 draws of 40: within its rounding of the sum in float64 over the same draws."""
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


# ---- bad gradients --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("where", ["x", "dy"])
@pytest.mark.parametrize("pick", PICKS)
def test_a_bad_token_is_seen(pick, where, value):
    layer, x, dy = wk.SkippableLinear(3, 4), torch.randn(50, 3), torch.randn(50, 4)
    (x if where == "x" else dy)[17, 1] = value
    layer.tokens = wk.Tokens(k=2, pick=pick)
    assert 17 in draw(layer.tokens, dy, x).index
    bad = ~backward(layer, x, dy)[1].isfinite()
    assert bad[:, 1].all() if where == "x" else bad[1].all()


@pytest.mark.parametrize("pick", PICKS)
@pytest.mark.parametrize(("make", "shape"), LAYERS, ids=["linear", "conv2d"])
def test_gradients_of_zero_stay_zero(make, shape, pick):
    layer, x = make(), torch.randn(shape)
    layer.tokens = wk.Tokens(k=2, pick=pick)
    for gradient in backward(layer, x, torch.zeros_like(layer(x))):
        assert not gradient.any()


@pytest.mark.parametrize("pick", PICKS)
@pytest.mark.parametrize(("make", "shape"), LAYERS, ids=["linear", "conv2d"])
def test_empty_batches_and_single_tokens(make, shape, pick):
    layer = make()
    layer.tokens = wk.Tokens(ratio=0.5, pick=pick)
    for x in (torch.randn(0, *shape[1:]), torch.randn(shape[1:]), torch.randn(1, *shape[1:])):
        dy = torch.randn_like(layer(x))
        found = backward(layer, x, dy)
        layer.tokens, tokens = None, layer.tokens
        assert all(map(torch.equal, found, backward(layer, x, dy)))
        layer.tokens = tokens


# ---- beside the other flags -----------------------------------------------------------------------------------------

ROWS = {
    "top-k": wk.TopK(k=2),
    "top-k of both": wk.TopK(k=2, scope="both", bias="rows"),
    "rows": wk.Rows([0, 3]),
    "rows of both": wk.Rows([0, 3], "both"),
}


@pytest.mark.parametrize("compact", [False, True], ids=["dense form", "compact"])
@pytest.mark.parametrize("pick", PICKS)
@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("name", ["linear", "3x3", "groups"])
def test_chosen_rows_of_a_sampled_gradient(name, rows, pick, compact):
    """Rows by all of dY; the same draw; dX and the bias gradient as rows alone have them."""
    if name == "groups":
        rows = {"top-k": "top-k", "top-k of both": "top-k"}.get(rows, "rows")
    layer, x, dy = problem(name, torch.float64)
    choice = ROWS[rows]
    if name == "groups":
        choice = wk.TopK(k=4) if rows == "top-k" else wk.Rows([0, 3, 6, 11])
    if compact:
        request_row_grad(layer.weight)
    found = {}
    for kind, layer.rows, layer.tokens in (
        ("rows", choice, None),
        ("tokens", None, wk.Tokens(ratio=0.4, pick=pick)),
        ("both", choice, wk.Tokens(ratio=0.4, pick=pick)),
    ):
        torch.manual_seed(9)
        dx, dw, db = backward(layer, x, dy)
        if layer.weight.row_grad is not None if compact else False:
            dw, layer.weight.row_grad = layer.weight.row_grad.dense(len(layer.weight)), None
        found[kind] = dx, dw, db
    chosen = found["rows"][1].flatten(1).any(1)
    assert chosen.sum() == (4 if name == "groups" else 2)
    expected = found["tokens"][1] * chosen.view(-1, *[1] * (layer.weight.ndim - 1))
    torch.testing.assert_close(found["both"][1], expected)
    assert torch.equal(found["both"][0], found["rows"][0])
    assert torch.equal(found["both"][2], found["rows"][2])


def test_what_is_kept_of_each_example_is_sampled_by_its_own_size():
    layer, x, dy = problem("linear", torch.float64)
    layer.rows, layer.tokens = wk.PerExample(k=2), wk.Tokens(k=9)
    kept = torch.zeros_like(dy).flatten(0, -2)
    for row, values in zip(kept, dy.flatten(0, -2), strict=True):
        top = values.abs().topk(2).indices
        row[top] = values[top]
    sizes = sizes_by_hand(x, kept.view_as(dy), 1)
    index = sorted(range(30), key=lambda i: -sizes[i])[:9]
    torch.testing.assert_close(backward(layer, x, dy)[1], exact(layer, x, kept.view_as(dy), index))


def test_skip_wins():
    layer, x = wk.SkippableLinear(5, 4), torch.randn(8, 5)
    dense = backward(layer, x, torch.ones(8, 4))
    layer.skip, layer.tokens = True, wk.Tokens(k=2)
    dx, dw, db = backward(layer, x, torch.ones(8, 4))
    assert dw is None
    assert torch.equal(dx, dense[0])
    assert torch.equal(db, dense[2])


def test_tokens_are_latched_in_forward():
    layer, x = wk.SkippableLinear(5, 4), torch.randn(8, 5)
    layer.tokens = wk.Tokens(k=2)
    y = layer(x)
    layer.tokens = None
    y.sum().backward()
    index = draw(wk.Tokens(k=2), torch.ones(8, 4), x).index
    torch.testing.assert_close(layer.weight.grad, x[index].sum(0).expand(4, 5))


def test_draws_are_of_torchs_generator_and_new_in_each_backward():
    layer, x, dy = problem("linear")
    layer.tokens = wk.Tokens(k=3, pick="crs")
    found = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        found.append([backward(layer, x, dy)[1] for _ in range(2)])
    (first, then), again, other = found
    assert all(map(torch.equal, (first, then), again))
    assert not torch.equal(first, then)
    assert not torch.equal(first, other[0])


@pytest.mark.parametrize("pick", PICKS)
def test_micro_batches_add_up_and_autocast_gives_the_parameters_dtype(pick):
    layer, x, dy = problem("linear")
    layer.tokens = wk.Tokens(k=5, pick=pick)
    torch.manual_seed(3)
    parts = [backward(layer, x, dy)[1].clone() for _ in range(2)]
    torch.manual_seed(3)
    layer.zero_grad()
    for _ in range(2):
        layer(x).backward(dy)
    torch.testing.assert_close(layer.weight.grad, parts[0] + parts[1])
    layer.zero_grad()
    with torch.autocast("cpu", torch.bfloat16):
        layer(x).backward(dy.bfloat16())
    assert layer.weight.grad.dtype == torch.float32


def test_functional_forms_take_tokens():
    x, dy, weight = torch.randn(8, 5), torch.randn(8, 4), torch.randn(4, 5)
    tokens = wk.Tokens(k=3)
    index = draw(tokens, dy, x).index
    found = wk.functional.linear_backward(dy, x, weight, None, tokens=tokens)
    torch.testing.assert_close(found.weight, dy[index].T @ x[index])
    rows = wk.functional.linear_backward(dy, x, weight, wk.Rows([1, 2]), tokens=tokens).weight
    torch.testing.assert_close(rows.values, dy[index][:, 1:3].T @ x[index])
    assert torch.equal(wk.functional.linear_backward(dy, x, weight, None, tokens=wk.Tokens(k=8)).weight, dy.T @ x)
    images, out = torch.randn(8, 5, 3, 3), torch.randn(8, 4, 3, 3)
    conv = wk.functional.conv2d_backward(out, images, weight[:, :, None, None], None, tokens=wk.Tokens(k=8))
    torch.testing.assert_close(conv.weight[:, :, 0, 0], torch.einsum("nohw,nchw->oc", out, images))
