"""Column-row sampling: which tokens a weight gradient sums over, and what comes out, against float64 and by hand."""

import copy
import dataclasses
import math
import pickle

import pytest
import torch
import torch.nn as nn

import wuskern as wk
from tests.accuracy import assert_as_right_as_stock
from tests.cases import LAYERS, MEMORY_FORMATS
from tests.tokens import backward, exact, problem, sizes_by_hand
from wuskern.choices import PICKS
from wuskern.tokens import Drawn, draw

pytestmark = pytest.mark.usefixtures("one_thread")


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
    with pytest.raises(TypeError, match=r"tokens: expected a Tokens, or None, got 0\.3"):
        wk.set_tokens(model, 0.3)
    for layer in model:
        with pytest.raises(TypeError, match=r"tokens: expected a Tokens, or None, got TopK\("):
            layer.tokens = wk.TopK(k=1)
    with pytest.raises(ValueError, match="model: expected at least one converted layer"):
        wk.set_tokens(nn.Linear(2, 2), None)


def test_layers_show_their_tokens_and_lose_them_with_what_makes_them_skippable():
    model = wk.convert(nn.Sequential(nn.Linear(3, 4)))
    wk.set_tokens(model, wk.Tokens(k=2))
    assert "tokens=Tokens(ratio=None, k=2, pick='top')" in repr(model)
    assert "SkippableLinear, tokens=Tokens(ratio=None, k=2, pick='top')" in str(wk.doctor(model))
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
    dw = backward(layer, x, dy)[1]
    assert_as_right_as_stock(dw, stock, exact(layer, x, dy, index), exact(layer, x.abs(), dy.abs(), index))
    assert dw.stride() == dense[1].stride()


@pytest.mark.parametrize("name", ["linear", "groups"])
def test_the_gradients_of_the_input_and_of_the_bias_are_the_dense_ones(name):
    layer, x, dy = problem(name, torch.float64)
    dense = backward(layer, x, dy)
    layer.tokens = wk.Tokens(ratio=0.4)
    dx, _, db = backward(layer, x, dy)
    torch.testing.assert_close((dx, db), (dense[0], dense[2]))


@pytest.mark.parametrize("memory_format", MEMORY_FORMATS.values(), ids=MEMORY_FORMATS)
def test_images_keep_their_memory_format(memory_format):
    x = torch.randn(6, 4, 5, 5).contiguous(memory_format=memory_format)
    some = Drawn(torch.tensor([4, 0, 4]), torch.tensor([1.0, 2.0, 0.5]))
    for found in (some.of(x), some.scaled(x)):
        assert found.is_contiguous(memory_format=memory_format)
    assert torch.equal(some.scaled(x), torch.stack([x[4], 2 * x[0], 0.5 * x[4]]))


def test_one_token_fewer_than_there_are_leaves_that_one_out():
    x = torch.eye(4)[:, :3] + 1  # each token adds something
    layer = wk.SkippableLinear(3, 2)
    layer.tokens = wk.Tokens(k=3, pick="top")
    layer(x).backward(torch.tensor([[4.0, 4.0], [3.0, 3.0], [1.0, 1.0], [2.0, 2.0]]))
    assert layer.weight.grad.tolist() == [[8 + 3 + 2, 4 + 6 + 2, 4 + 3 + 2]] * 2  # of tokens 0, 1 and 3


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
    choice = dataclasses.replace(choice, sparse=compact)
    found = {}
    for kind, layer.rows, layer.tokens in (
        ("rows", choice, None),
        ("tokens", None, wk.Tokens(ratio=0.4, pick=pick)),
        ("both", choice, wk.Tokens(ratio=0.4, pick=pick)),
    ):
        torch.manual_seed(9)
        dx, dw, db = backward(layer, x, dy)
        assert dw.is_sparse == (compact and kind != "tokens")
        found[kind] = dx, dw.to_dense(), db
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
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.data_ptr()) or t, lambda t: t):
        layer(x.detach().requires_grad_())
    assert x.data_ptr() not in kept
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
    x, dy, weight = (torch.randn(size, dtype=torch.float64) for size in ((8, 5), (8, 4), (4, 5)))
    tokens = wk.Tokens(k=3)
    index = draw(tokens, dy, x).index
    found = wk.functional.linear_backward(dy, x, weight, tokens=tokens)
    torch.testing.assert_close(found.weight, dy[index].T @ x[index])
    rows = wk.functional.linear_backward(dy, x, weight, rows=wk.Rows([1, 2]), tokens=tokens).weight
    torch.testing.assert_close(rows.values, dy[index][:, 1:3].T @ x[index])
    assert torch.equal(wk.functional.linear_backward(dy, x, weight, tokens=wk.Tokens(k=8, pick="crs")).weight, dy.T @ x)
    images, out = torch.randn(8, 5, 3, 3).double(), torch.randn(8, 4, 3, 3).double()
    conv = wk.functional.conv2d_backward(out, images, weight[:, :, None, None], tokens=wk.Tokens(k=8, pick="wta"))
    torch.testing.assert_close(conv.weight[:, :, 0, 0], torch.einsum("nohw,nchw->oc", out, images))


# Channels, rows, kernel, stride, padding, height and width.
UNWRITTEN = {"NHWC": (8, 8, (2, 3), (2, 3), (0, 1), 2, 1), "NCHW": (16, 4, (2, 5), (1, 3), (0, 4), 6, 1)}


@pytest.mark.parametrize("layout", UNWRITTEN)
@pytest.mark.parametrize("also", [{}, {"rows": wk.Rows([0, 2])}], ids=["tokens", "tokens and rows"])
def test_taps_that_meet_padding_alone_are_zero(also, layout, monkeypatch):
    """oneDNN leaves them unwritten in bfloat16: what was in its memory, here NaN, would be their gradient."""
    channels, out, kernel, stride, padding, *size = UNWRITTEN[layout]
    layer = wk.SkippableConv2d(channels, out, kernel, stride, padding).bfloat16()
    layer.plan = wk.Plan(tokens=wk.Tokens(k=3), **also)
    x = torch.randn(4, channels, *size).bfloat16().contiguous(memory_format=MEMORY_FORMATS[layout])
    monkeypatch.setattr(torch.utils.deterministic, "fill_uninitialized_memory", True)
    torch.use_deterministic_algorithms(True)
    try:
        layer(x).sum().backward()
    finally:
        torch.use_deterministic_algorithms(False)
    grad = layer.weight.grad
    assert grad.isfinite().all()
    assert grad[0].any()
