"""Layers with ``rows``: the weight gradient, and with scope "both" the input gradient, from the chosen rows alone."""

import copy

import pytest
import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

import wuskern as wk
from tests.accuracy import assert_as_right_as_stock
from tests.cases import CONVS, MEMORY_FORMATS
from tests.oracle import PlainLinear, check_layer, gradients, plain, set_flags
from wuskern import ops

pytestmark = pytest.mark.usefixtures("one_thread")

SCOPES = ["weight", "both"]
BIASES = ["dense", "rows"]
LAYERS = [
    pytest.param(lambda: nn.Linear(12, 24), (3, 5, 12), id="linear"),
    pytest.param(lambda: nn.Conv2d(4, 24, 3, padding=1), (3, 4, 7, 7), id="conv2d"),
    pytest.param(lambda: nn.Conv2d(4, 24, 3, padding=1, groups=2), (3, 4, 7, 7), id="conv2d-groups"),
]


def units(dy: Tensor, layer: nn.Module) -> Tensor:
    """dy as ``[out, everything else]``, in float64."""
    return dy.double().movedim(-1 if isinstance(layer, nn.Linear) else 1, 0).flatten(1)


def chosen(layer: nn.Module) -> list[int]:
    """The rows in which the weight's gradient is not zero."""
    return layer.weight.grad.flatten(1).any(1).nonzero().flatten().tolist()


def largest(scores: list[float], k: int, block: int = 1, groups: int = 1) -> list[int]:
    """By hand: blocks sorted by (score, then index), as many of each group."""
    blocks = [sum(scores[i : i + block]) for i in range(0, len(scores), block)]
    per_group = len(blocks) // groups
    rows = []
    for group in range(groups):
        mine = range(group * per_group, (group + 1) * per_group)
        for b in sorted(mine, key=lambda b: (-blocks[b], b))[: k // block // groups]:
            rows += range(b * block, (b + 1) * block)
    return sorted(rows)


# ---- the result -----------------------------------------------------------------------------------------------------


def test_hand_worked_with_ties():
    """meProp's formulas on a 4x4, rows 1 and 3 having equal scores, of which the lower one is taken."""
    layer = wk.SkippableLinear(2, 4)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[1.0, 2], [3, 4], [5, 6], [7, 8]]))
    layer.rows = wk.TopK(k=2, scope="both")
    x = torch.tensor([[1.0, 0], [0, 1], [1, 1], [2, 3]], requires_grad=True)
    dy = torch.tensor([[1.0, -2, 0, 4], [0, 3, 1, 0], [0, 0, -9, 0], [1, 2, 0, -3]])
    layer(x).backward(dy)  # scores: 2, 7, 10, 7
    assert layer.weight.grad.tolist() == [[0, 0], [2, 9], [-9, -8], [0, 0]]
    assert layer.bias.grad.tolist() == [2, 3, -8, 1]
    assert x.grad.tolist() == [[-6, -8], [14, 18], [-45, -54], [6, 8]]


@pytest.mark.pairs
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("shape", [(9,), (40, 9), (2, 3, 9), (0, 9), (1, 9)], ids=str)
def test_linear(shape, scope, dtype):
    check_layer(nn.Linear(9, 40, dtype=dtype), torch.randn(shape), flag=wk.Rows([0, 7, 8, 39], scope))


@pytest.mark.pairs
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("layout", MEMORY_FORMATS.values(), ids=MEMORY_FORMATS)
@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("case", CONVS, ids=str)
def test_conv2d(case, scope, layout, dtype):
    """Every geometry, its dX in stock's strides."""
    layer = case.layer(dtype).to(memory_format=layout)
    of_group = case.out // case.groups
    rows = wk.Rows([g * of_group + of_group // 2 for g in range(case.groups)], scope)
    x = case.input(dtype).contiguous(memory_format=layout)
    check_layer(layer, x, flag=rows)
    ours = gradients(set_flags(wk.convert(copy.deepcopy(layer)), rows), x)
    assert ours["x"].stride() == gradients(layer, x)["x"].stride()


@pytest.mark.parametrize("choice", [wk.Rows([1, 4]), wk.Rows([1, 4], "both"), wk.PerExample(k=2)], ids=str)
@pytest.mark.parametrize("leading", [(6,), (3, 1), (1, 3), (2, 3), (2, 1, 3), (0, 2), (1, 1)], ids=str)
def test_dx_of_a_linear_lies_as_stocks(leading, choice):
    """With x contiguous, and with x a transposed matrix: stock's dX is one too."""
    stock = nn.Linear(4, 5)
    ours = wk.convert(copy.deepcopy(stock))
    ours.rows = choice
    for x in (torch.randn(*leading, 4), torch.randn(4, *leading).movedim(0, -1)):
        found = [gradients(layer, x)["x"].stride() for layer in (ours, stock)]
        assert found[0] == found[1], x.stride()


@pytest.mark.parametrize("gathers", [True, False])
@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize(("make", "shape"), LAYERS)
def test_float64_against_the_oracle(make, shape, scope, gathers, monkeypatch):
    monkeypatch.setattr("wuskern.gradients.gathers", lambda *_: gathers)
    stock, x, rows = make().double(), torch.randn(shape, dtype=torch.float64), wk.Rows([2, 3, 12, 23], scope)
    expected = gradients(set_flags(plain(copy.deepcopy(stock)), rows), x)
    for name, value in gradients(set_flags(wk.convert(stock), rows), x).items():
        torch.testing.assert_close(value, expected[name])


@pytest.mark.parametrize("score", ["l1", "l2"])
@pytest.mark.parametrize("block", [1, 4])
@pytest.mark.parametrize(("make", "shape"), LAYERS)
def test_the_rows_with_the_largest_scores_are_chosen(make, shape, block, score):
    layer = wk.convert(make())
    layer.rows = wk.TopK(k=8, score=score, block=block)
    for _ in range(5):
        layer.zero_grad()
        y = layer(torch.randn(shape))
        dy = torch.randn_like(y)
        y.backward(dy)
        flat = units(dy, layer)
        scores = (flat.abs() if score == "l1" else flat.square()).sum(1).tolist()
        assert chosen(layer) == largest(scores, 8, block, getattr(layer, "groups", 1))


@pytest.mark.parametrize("bias", BIASES)
@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize(("make", "shape"), LAYERS)
def test_topk_gives_what_a_fixed_choice_of_its_rows_gives(make, shape, scope, bias):
    layer, x = wk.convert(make().double()), torch.randn(shape, dtype=torch.float64)
    ours = gradients(set_flags(layer, wk.TopK(k=6, scope=scope, bias=bias)), x)
    index = ours["weight"].flatten(1).any(1).nonzero().flatten()
    expected = gradients(set_flags(plain(copy.deepcopy(wk.revert(layer))), wk.Rows(index, scope, bias)), x)
    for name, value in expected.items():
        torch.testing.assert_close(ours[name], value)
        assert torch.equal(ours[name] == 0, value == 0), name


@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize(("make", "shape"), LAYERS)
def test_all_rows_are_the_dense_backward_bit_for_bit(make, shape, scope):
    stock, x = make(), torch.randn(shape)
    expected = gradients(stock, x)
    for rows in (wk.TopK(ratio=1, scope=scope), wk.TopK(k=24, scope=scope), wk.Rows(range(24), scope)):
        ours = gradients(set_flags(wk.convert(copy.deepcopy(stock)), rows), x)
        assert all(torch.equal(ours[name], value) for name, value in expected.items())


def test_row_magnitudes_are_in_proportion():
    """Each chosen row is right by itself, also one a million times smaller than its neighbour."""
    layer = wk.SkippableLinear(64, 32)
    layer.rows = wk.Rows([3, 4, 20])
    x, dy = torch.randn(100, 64), torch.randn(100, 32) * torch.logspace(-6, 6, 32)
    layer(x).backward(dy)
    exact, magnitudes = dy.double().t() @ x.double(), dy.double().abs().t() @ x.double().abs()
    for row in (3, 4, 20):
        assert_as_right_as_stock(layer.weight.grad[row], (dy.t() @ x)[row], exact[row], magnitudes[row])


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize(("make", "shape"), LAYERS)
def test_a_bad_gradient_is_seen_and_not_hidden(make, shape, value):
    layer = wk.convert(make())
    layer.rows = wk.TopK(k=2, scope="both")
    x = torch.randn(shape, requires_grad=True)
    y = layer(x)
    dy = torch.randn_like(y)
    units_first = dy.movedim(-1 if isinstance(layer, nn.Linear) else 1, 0)
    units_first[17, 0] = value
    y.backward(dy)
    assert not layer.weight.grad[17].isfinite().all()
    assert not layer.bias.grad[17].isfinite()
    assert not x.grad.isfinite().all()
    others = [row for row in range(24) if row != 17]
    assert layer.weight.grad[others].isfinite().all()


@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize(("make", "shape"), LAYERS)
def test_the_same_bits_twice(make, shape, scope):
    layer, x = set_flags(wk.convert(make()), wk.TopK(ratio=0.3, scope=scope)), torch.randn(shape)
    first, second = gradients(layer, x), gradients(layer, x)
    assert all(torch.equal(first[name], value) for name, value in second.items())


def test_micro_batches_add_up():
    layer = wk.SkippableLinear(12, 24).double()
    layer.rows = wk.Rows([1, 5, 6])
    x, dy = torch.randn(4, 8, 12, dtype=torch.float64), torch.randn(4, 8, 24, dtype=torch.float64)
    for i in range(4):
        layer(x[i]).backward(dy[i])
    accumulated = layer.weight.grad.clone()
    layer.zero_grad()
    layer(x.flatten(0, 1)).backward(dy.flatten(0, 1))
    torch.testing.assert_close(accumulated, layer.weight.grad)


@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize(
    ("layer", "shape", "rows"),
    [
        (wk.SkippableLinear(3, 5), (2, 3), [0, 3]),
        (wk.SkippableConv2d(2, 4, 3, 2, padding=1), (2, 2, 5, 4), [1, 2]),
        (wk.SkippableConv2d(2, 4, 2, dilation=2, groups=2), (2, 2, 4, 5), [1, 2]),
    ],
)
def test_gradcheck(layer, shape, rows, scope):
    """Numerical derivatives of the chosen rows and the bias; with scope "both", the chosen outputs are all of the function,
    with scope "weight" all outputs are."""
    layer = layer.double()
    call = F.linear if isinstance(layer, nn.Linear) else layer._conv_forward
    assert call is not None

    def function(x: Tensor, some: Tensor, bias: Tensor) -> Tensor:
        weight = layer.weight.detach().index_copy(0, torch.tensor(rows), some)
        parameters = {"weight": weight, "bias": bias}
        y = torch.func.functional_call(layer, parameters, x)
        return y.index_select(-1 if isinstance(layer, nn.Linear) else 1, torch.tensor(rows)) if scope == "both" else y

    layer.rows = wk.Rows(rows, scope)
    x = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    some = layer.weight.detach()[rows].requires_grad_()
    assert torch.autograd.gradcheck(function, (x, some, layer.bias.detach().requires_grad_()))


def test_where_gathering_does_not_pay_all_rows_are_multiplied(monkeypatch):
    """Of 100 rows with 64 features, 43 are gathered and 44 are not: 64 * 57 >= 25 * 143, 64 * 56 < 25 * 144."""
    gathered = counted(monkeypatch, "gather_rows")
    layer = wk.SkippableLinear(64, 100)
    for k, expected in ((1, 1), (43, 1), (44, 0), (99, 0)):
        gathered.clear()
        layer.zero_grad()
        layer.rows = wk.TopK(k=k)
        layer(torch.randn(8, 64)).sum().backward()
        assert (len(chosen(layer)), len(gathered)) == (k, expected)


# ---- flags ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("make", "shape"), LAYERS)
def test_skip_wins_and_leaves_rows_as_they_were(make, shape):
    layer = wk.convert(make())
    layer.rows, layer.skip = wk.TopK(k=2), True
    layer(torch.randn(shape)).sum().backward()
    assert layer.weight.grad is None
    assert layer.rows == wk.TopK(k=2)


@pytest.mark.parametrize(("make", "shape"), LAYERS)
def test_rows_are_latched_in_forward(make, shape):
    layer = wk.convert(make())
    layer.rows = wk.Rows([0, 12])
    y = layer(torch.randn(shape))
    layer.rows = None
    y.sum().backward()
    assert chosen(layer) == [0, 12]


def test_set_rows():
    model = wk.convert(nn.Sequential(nn.Conv2d(2, 8, 3), nn.Flatten(), nn.Linear(8, 16)))
    wk.set_rows(model, wk.TopK(ratio=0.25))
    assert model[0].rows == model[2].rows == wk.TopK(ratio=0.25)
    wk.set_rows(model, None)
    assert model[0].rows is model[2].rows is None


@pytest.mark.parametrize(
    ("rows", "error", "message"),
    [
        (wk.TopK(k=12), ValueError, r"0: k: expected at most 8, got 12"),
        (wk.TopK(k=4, block=16), ValueError, r"0: block: expected a divisor of 8 rows"),
        (wk.Rows([9]), ValueError, "0: index: expected rows under 8, got 9"),
        (wk.PerExample(k=2), TypeError, "0: rows: expected TopK or Rows for a Conv2d, got PerExample"),
        (0.05, TypeError, "rows: expected a TopK, Rows, PerExample or BatchRows, or None, got 0.05"),
    ],
    ids=str,
)
def test_rows_that_do_not_fit_change_no_layer(rows, error, message):
    model = wk.convert(nn.Sequential(nn.Linear(4, 16), nn.Conv2d(2, 8, 3)))
    model = nn.Sequential(model[1], model[0])  # the layer that refuses comes first, the other one could take it
    with pytest.raises(error, match=message):
        wk.set_rows(model, rows)
    assert model[0].rows is model[1].rows is None


def test_set_rows_wants_a_converted_layer():
    with pytest.raises(ValueError, match="model: expected at least one converted layer"):
        wk.set_rows(nn.Linear(2, 2), wk.TopK(k=1))


@pytest.mark.parametrize(("make", "shape"), LAYERS)
def test_a_wrong_choice_raises_where_it_is_assigned(make, shape):
    layer = wk.convert(make())
    for name, value, error, message in (
        ("rows", wk.TopK(k=30), ValueError, "k: expected "),
        ("rows", wk.Rows([0, 24]), ValueError, "index: expected rows under 24, got 24"),
        ("rows", [1, 2], TypeError, r"rows: expected a TopK, Rows, PerExample or BatchRows, or None, got \[1, 2\]"),
        ("skip", "no", TypeError, "skip: expected True or False, got 'no'"),
        ("tokens", 0.3, TypeError, "tokens: expected a Tokens, or None, got 0.3"),
        ("plan", None, TypeError, "plan: expected a Plan, got None"),
    ):
        with pytest.raises(error, match=message):
            setattr(layer, name, value)
    assert layer.plan == wk.Plan()


def test_rows_that_no_longer_fit_raise_in_backward():
    layer = wk.SkippableLinear(4, 16)
    layer.rows = wk.Rows([15])
    layer.weight = nn.Parameter(torch.randn(8, 4))
    layer.bias = nn.Parameter(torch.randn(8))
    with pytest.raises(ValueError, match="index: expected rows under 8, got 15"):
        layer(torch.randn(2, 4)).sum().backward()


def test_the_flag_is_shown_and_reverted():
    layer = wk.convert(nn.Linear(4, 8))
    layer.rows = wk.TopK(k=2)
    assert "rows=TopK(ratio=None, k=2" in repr(layer)
    assert "rows=TopK" in str(wk.doctor(layer))
    assert "rows" not in layer.state_dict()
    assert not hasattr(wk.revert(layer), "rows")


# ---- work that is not done ------------------------------------------------------------------------------------------


def counted(monkeypatch, name: str) -> list[tuple]:
    calls: list[tuple] = []
    real = getattr(ops, name)
    monkeypatch.setattr(ops, name, lambda *args: calls.append(args) or real(*args))
    return calls


@pytest.mark.parametrize(("make", "shape"), LAYERS)
def test_fixed_rows_cost_no_score_pass(make, shape, monkeypatch):
    stats, sums = counted(monkeypatch, "top_rows"), counted(monkeypatch, "bias_grad")
    layer = wk.convert(make())
    layer.rows = wk.Rows([0, 12])
    layer(torch.randn(shape)).sum().backward()
    assert (len(stats), len(sums)) == (0, 1)
    layer.rows = wk.TopK(k=2)
    layer(torch.randn(shape)).sum().backward()
    assert (len(stats), len(sums)) == (1, 1)


@pytest.mark.parametrize(
    ("layer", "shape", "product", "units"),
    [  # multiply and add are two operations; a unit's bias gradient and score are sums of n numbers, n - 1 each
        (wk.SkippableLinear(64, 32), (2, 8, 64), 2 * 16 * 64 * 32, (32, 16)),
        (wk.SkippableConv2d(6, 4, (3, 5), padding=(1, 2)), (2, 6, 7, 9), 2 * (2 * 4 * 7 * 9) * (6 * 3 * 5), (4, 2 * 7 * 9)),
    ],
    ids=["linear", "conv2d"],
)
def test_a_quarter_of_the_rows_costs_a_quarter(layer, shape, product, units):
    out, n = units
    for scope, products in (("weight", 2.25), ("both", 1.5)):
        layer.rows = wk.TopK(ratio=0.25, scope=scope)
        x = torch.randn(shape, requires_grad=True)
        with FlopCounterMode(display=False) as flops:
            layer(x).sum().backward()
        assert flops.get_total_flops() == products * product + 2 * out * (n - 1) + out  # and a comparison each


@pytest.mark.parametrize(("make", "shape"), LAYERS)
def test_only_what_is_wanted_is_computed(make, shape, monkeypatch):
    wgrad, dgrad, gathered = (
        counted(monkeypatch, name)
        for name in ("rowsparse_wgrad_conv2d", "rowsparse_dgrad_conv2d", "gather_rows")
    )  # fmt: skip
    layer = wk.convert(make())
    layer.rows = wk.TopK(k=2, scope="both")
    layer.weight.requires_grad_(False)
    x = torch.randn(shape, requires_grad=True)
    layer(x).sum().backward()
    assert layer.weight.grad is None
    assert x.grad is not None
    assert not wgrad
    assert len(gathered) == 1
    dgrad.clear()
    layer.weight.requires_grad_()
    layer(torch.randn(shape)).sum().backward()
    assert len(chosen(layer)) == 2
    assert not dgrad


# ---- the backward alone ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scope", SCOPES)
def test_backward_of_a_linear_as_a_function(scope):
    x, weight, dy = torch.randn(7, 5), torch.randn(6, 5), torch.randn(7, 6)
    dx, grad, db = wk.functional.linear_backward(dy, x, weight, rows=wk.Rows([1, 4], scope))
    assert grad.rows.tolist() == [1, 4]
    torch.testing.assert_close(grad.values, (dy.t() @ x)[[1, 4]])
    torch.testing.assert_close(dx, dy[:, [1, 4]] @ weight[[1, 4]] if scope == "both" else dy @ weight)
    torch.testing.assert_close(db, dy.sum(0))
    assert wk.functional.linear_backward(dy, x, weight, rows=wk.TopK(k=2), needs=(False, True, False))[::2] == (None, None)


@pytest.mark.parametrize("scope", SCOPES)
def test_backward_of_a_conv2d_as_a_function(scope):
    x, weight = torch.randn(2, 4, 8, 7), torch.randn(6, 2, 3, 3)
    geometry = (2, 1), (1, 0), (1, 2), 2
    dy = torch.randn_like(F.conv2d(x, weight, None, *geometry))
    dx, grad, db = wk.functional.conv2d_backward(dy, x, weight, wk.Rows([1, 4], scope), *geometry)
    masked = torch.zeros_like(dy).index_copy_(1, torch.tensor([1, 4]), dy[:, [1, 4]])
    torch.testing.assert_close(grad.dense(6), nn.grad.conv2d_weight(x, weight.shape, masked, *geometry))
    passed = masked if scope == "both" else dy
    torch.testing.assert_close(dx, nn.grad.conv2d_input(x.shape, weight, passed, *geometry))
    torch.testing.assert_close(db, dy.sum((0, 2, 3)))


# ---- meProp per example ---------------------------------------------------------------------------------------------


def largest_of_each(dy: Tensor, k: int) -> Tensor:
    """Plain Python: of each row of dy the k largest magnitudes, the lower index first, NaN before all."""
    kept = torch.zeros_like(dy)
    for row, target in zip(dy.flatten(0, -2), kept.view(-1, dy.shape[-1]), strict=True):
        order = sorted(range(len(row)), key=lambda i: (not row[i].isnan(), -row[i].abs().item(), i))
        for i in order[:k]:
            target[i] = row[i]
    return kept


def test_per_example_hand_worked():
    layer = wk.SkippableLinear(2, 4)
    layer.rows = wk.PerExample(k=1)
    x = torch.tensor([[1.0, 2], [3, 4]], requires_grad=True)
    layer(x).backward(torch.tensor([[1.0, -2, 2, 0], [0, 1, 0, 5]]))  # of the tie, -2 comes first
    assert layer.weight.grad.tolist() == [[0, 0], [-2, -4], [0, 0], [15, 20]]
    torch.testing.assert_close(x.grad, torch.stack((-2 * layer.weight[1], 5 * layer.weight[3])).detach())
    assert layer.bias.grad.tolist() == [1, -1, 2, 5]


@pytest.mark.parametrize("shape", [(6, 5), (2, 3, 5), (0, 5)])
def test_per_example(shape):
    layer = wk.SkippableLinear(5, 9).double()
    layer.rows = wk.PerExample(ratio=0.4)
    x = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    y = layer(x)
    dy = torch.randn_like(y).round(decimals=1)  # with ties
    y.backward(dy)
    kept = largest_of_each(dy, 3)
    torch.testing.assert_close(layer.weight.grad, kept.flatten(0, -2).t() @ x.detach().flatten(0, -2))
    torch.testing.assert_close(x.grad, kept @ layer.weight.detach())
    torch.testing.assert_close(layer.bias.grad, dy.flatten(0, -2).sum(0))


def test_per_example_is_the_plain_layer_where_all_are_kept():
    stock, x = nn.Linear(5, 9), torch.randn(4, 5)
    ours = gradients(set_flags(wk.convert(copy.deepcopy(stock)), wk.PerExample(ratio=1)), x)
    assert all(torch.equal(ours[name], value) for name, value in gradients(stock, x).items())


def test_per_example_sees_a_nan():
    layer = wk.SkippableLinear(3, 4)
    layer.rows = wk.PerExample(k=1)
    dy = torch.ones(2, 4)
    dy[0, 2] = float("nan")
    layer(torch.ones(2, 3)).backward(dy)
    assert layer.weight.grad[2].isnan().all()


def test_a_conv2d_knows_no_examples():
    layer = wk.SkippableConv2d(2, 4, 3)
    with pytest.raises(TypeError, match="rows: expected TopK or Rows for a Conv2d, got PerExample"):
        layer.rows = wk.PerExample(k=1)
    with pytest.raises(TypeError, match="rows: expected TopK or Rows for a Conv2d, got PerExample"):
        wk.functional.conv2d(torch.randn(1, 2, 4, 4), layer.weight, rows=wk.PerExample(k=1))


def test_the_oracle_itself():
    """The plain twin lets exactly the chosen rows through."""
    layer = PlainLinear(3, 4)
    layer.rows = wk.Rows([1, 2], "both", "rows")
    x = torch.randn(5, 3, requires_grad=True)
    dy = torch.randn(5, 4)
    layer(x).backward(dy)
    assert chosen(layer) == [1, 2]
    torch.testing.assert_close(x.grad, dy[:, 1:3] @ layer.weight[1:3].detach())
    torch.testing.assert_close(layer.bias.grad, torch.stack((torch.zeros(()), *dy.sum(0)[1:3], torch.zeros(()))))
