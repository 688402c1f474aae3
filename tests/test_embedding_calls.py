"""Embeddings with a plan in the ways in which layers are called: twice, in micro-batches, recorded, watched, compiled."""

import copy

import pytest
import torch
import torch._dynamo
import torch.nn as nn
import torch.nn.functional as F
from torch._dynamo.utils import counters
from torch.utils.checkpoint import checkpoint

import wuskern as wk
from tests.test_embedding import FEATURES, SETS, TOKENS, VOCABULARY, embedding, gradient, masked, stock_gradient
from wuskern.sparse_grad import to_rows


@pytest.mark.parametrize("sparse", [True, False], ids=["sparse", "dense"])
@pytest.mark.parametrize("rows", [wk.Rows([3, 7]), wk.BatchRows()], ids=["fixed", "batch"])
def test_accumulation_double_use_and_checkpoints_add_up(rows, sparse):
    layer = embedding()
    expected = torch.zeros_like(layer.weight)
    layer.rows = rows = copy.copy(rows)
    layer.rows = wk.Rows([3, 7], sparse=sparse) if isinstance(rows, wk.Rows) else wk.BatchRows(sparse=sparse)
    kept = [3, 7] if isinstance(rows, wk.Rows) else list(range(VOCABULARY))
    for scale in (1.0, 2.0):
        weight = layer.weight.detach().clone().requires_grad_()
        y = F.embedding(TOKENS, weight) * F.embedding(TOKENS.flip(0), weight) + F.embedding(TOKENS, weight).square()
        (y * scale).sum().backward()
        expected += weight.grad
        y = layer(TOKENS) * layer(TOKENS.flip(0)) + checkpoint(layer, TOKENS, use_reentrant=False).square()
        (y * scale).sum().backward()
    assert layer.weight.grad.is_sparse == sparse
    torch.testing.assert_close(layer.weight.grad.to_dense(), masked(expected, kept))


def test_micro_batches_of_most_of_the_tokens_stay_sparse():
    layer = embedding()
    layer.rows = wk.Rows(SETS["all but one"], sparse=True)
    for _ in range(3):
        layer(TOKENS).sum().backward()
    assert layer.weight.grad.is_sparse
    assert 3 not in layer.weight.grad.coalesce().indices()


def test_autocast_changes_nothing():
    layer = embedding(torch.float32)
    layer.rows = wk.Rows([3, 7], sparse=True)
    with torch.autocast("cpu", torch.bfloat16):
        assert layer(TOKENS).dtype == torch.float32
        assert torch.equal(gradient(layer).to_dense(), masked(stock_gradient(layer), [3, 7]))


@pytest.mark.filterwarnings("ignore:.*is deprecated. Please switch to:DeprecationWarning")
@pytest.mark.parametrize("flag", [{}, {"rows": wk.Rows([3])}, {"rows": wk.BatchRows()}, {"skip": True}], ids=str)
def test_scripting_tracing_and_exporting_take_the_stock_path(flag):
    model = nn.Sequential(wk.SkippableEmbedding(VOCABULARY, FEATURES), nn.Linear(FEATURES, 2))
    wk.set_plan(model, **(flag or {"skip": False}))
    expected = model(TOKENS)
    for made in (torch.jit.script(model), torch.jit.trace(model, TOKENS), torch.fx.symbolic_trace(model)):
        model.zero_grad()
        assert torch.equal(made(TOKENS), expected)
    program = torch.export.export(model, (TOKENS,)).module()
    assert torch.equal(program(TOKENS), expected)


def test_the_function_with_a_weight_of_no_layer():
    weight = torch.randn(VOCABULARY, FEATURES, dtype=torch.float64, requires_grad=True)
    for padding in (None, 7, -5):
        found = torch.autograd.grad(wk.functional.embedding(TOKENS, weight, padding, rows=wk.Rows([3, 7])).sum(), weight)[0]
        expected = torch.autograd.grad(F.embedding(TOKENS, weight, padding).sum(), weight)[0]
        assert torch.equal(found, masked(expected, [3, 7]))
    computed = wk.functional.embedding(TOKENS, weight * 2, rows=wk.Rows([3], sparse=True))
    assert torch.autograd.grad(computed.sum(), weight)[0].abs().sum(1).nonzero().flatten().tolist() == [3]


@pytest.mark.parametrize("seen", ["autograd.grad", "hook"])
def test_who_else_wants_the_gradient(seen):
    layer, heard = embedding(), []
    layer.rows = wk.Rows([3, 7], sparse=True)
    if seen == "hook":
        layer.weight.register_hook(lambda grad: heard.append(grad.to_dense()))
        layer(TOKENS).sum().backward()
    else:
        heard.append(torch.autograd.grad(layer(TOKENS).sum(), layer.weight)[0])
        assert layer.weight.grad is None
    assert heard[0].abs().sum(1).nonzero().flatten().tolist() == [3, 7]


def test_copies_and_state():
    layer = embedding(padding_idx=2)
    layer.rows = wk.Rows([3])
    twin = copy.deepcopy(layer)
    assert twin.rows == layer.rows
    assert gradient(twin).any()
    assert layer.weight.grad is None
    assert list(layer.state_dict()) == ["weight"]
    assert repr(layer) == "SkippableEmbedding(12, 5, padding_idx=2, rows=Rows([3], 'weight', 'dense'))"
    stock = wk.revert(twin)
    assert type(stock) is nn.Embedding
    assert gradient(stock).any()
    loaded = wk.SkippableEmbedding.from_pretrained(layer.weight.detach(), freeze=False)
    assert torch.equal(loaded(TOKENS), layer(TOKENS))


# ---- compiled -------------------------------------------------------------------------------------------------------


SAID_BY_TORCH = (
    "ignore:.*should not be instantiated:DeprecationWarning",
    "ignore:.*torch.jit.script_method:DeprecationWarning",
    "ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning",
)


def of_the_compiler(test):
    """A test with a fresh compiler, and without what torch's own says."""
    for said in SAID_BY_TORCH:
        test = pytest.mark.filterwarnings(said)(test)
    return pytest.mark.usefixtures("fresh_compiler")(test)


PLANS = {
    "dense": wk.Plan(),
    "skip": wk.Plan(skip=True),
    "rows": wk.Plan(rows=wk.Rows([3, 7])),
    "sparse rows": wk.Plan(rows=wk.Rows([3, 7], sparse=True)),
    "batch": wk.Plan(rows=wk.BatchRows()),
}


def network() -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(VOCABULARY, FEATURES, padding_idx=5), nn.Linear(FEATURES, VOCABULARY, bias=False))
    model[1].weight = model[0].weight
    return wk.convert(model, embeddings=True)


@pytest.fixture
def fresh_compiler():
    torch._dynamo.reset()
    counters.clear()
    with torch._dynamo.config.patch(fail_on_recompile_limit_hit=True):
        yield
    torch._dynamo.reset()


def left(model: nn.Module, call, tokens: torch.Tensor) -> torch.Tensor:
    model.zero_grad()
    for _ in range(2):
        call(tokens).square().sum().backward()
    return model[0].weight.grad


@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.more)])
@pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)
@of_the_compiler
def test_one_graph_gives_eagers_gradient(plan, backend):
    model = network()
    model[0].plan = plan
    if isinstance(plan.rows, wk.Rows):
        model[1].plan = plan
    compiled = torch.compile(model, fullgraph=True, backend=backend)
    for tokens in (TOKENS, TOKENS.flip(0)):
        found, expected = left(model, compiled, tokens), left(model, model, tokens)
        assert found.is_sparse == expected.is_sparse == bool(getattr(plan.rows, "sparse", False))
        torch.testing.assert_close(found.to_dense(), expected.to_dense(), rtol=1e-4, atol=1e-5)
    assert counters["stats"]["unique_graphs"] == 1


@of_the_compiler
def test_other_rows_of_one_length_make_no_other_graph():
    model = network()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    for rows in ([3, 7], [0, 11], [5, 6]):
        model[0].rows = model[1].rows = wk.Rows(rows, sparse=True)
        found = left(model, compiled, TOKENS)
        torch.testing.assert_close(found.to_dense(), left(model, model, TOKENS).to_dense(), rtol=1e-4, atol=1e-5)
        assert to_rows(found).rows.tolist() == rows
    assert counters["stats"]["unique_graphs"] == 1


@of_the_compiler
def test_sparse_rows_of_the_batch_run_outside_of_graphs():
    model = network()
    model[1].skip = True
    model[0].rows = wk.BatchRows(sparse=True)
    compiled = torch.compile(model, backend="aot_eager")
    found = left(model, compiled, TOKENS)
    assert to_rows(found).rows.tolist() == [0, 3, 7, 11]
    torch.testing.assert_close(found.to_dense(), left(model, model, TOKENS).to_dense(), rtol=1e-4, atol=1e-5)
    torch._dynamo.reset()
    with pytest.raises(torch._dynamo.exc.Unsupported):
        torch.compile(model, fullgraph=True, backend="aot_eager")(TOKENS)
