"""Compiled models: eager's results, and as many graphs as there are kinds of steps."""

import copy
import dataclasses
import itertools

import pytest
import torch
import torch._inductor.config
import torch.nn as nn
from torch._dynamo.utils import counters
from torch.utils.checkpoint import checkpoint

import wuskern as wk
from wuskern.delivery.deliver import new_key
from wuskern.distributed.exact import Agreed, AgreedColumns

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    # of torch's own compiler
    pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*torch.jit.script_method:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning"),
]

FLAGS = {
    "dense": {},
    "skip": {"skip": True},
    "top-k": {"rows": wk.TopK(ratio=0.3)},
    "top-k of both": {"rows": wk.TopK(ratio=0.3, score="l2", scope="both", bias="rows")},
    "rows": {"rows": wk.Rows([0, 2, 3])},
    "columns": {"columns": wk.Columns([0, 2])},
    "top columns": {"columns": wk.TopColumns(ratio=0.5), "rows": wk.TopK(ratio=0.3)},
    "tokens": {"tokens": wk.Tokens(ratio=0.5)},
}
MODELS = {
    "linear": (lambda: nn.Sequential(nn.Linear(24, 32), nn.GELU(), nn.Linear(32, 8)), (6, 24)),
    "conv2d": (
        lambda: nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 3, stride=2, bias=False), nn.Flatten()
        ),
        (6, 3, 8, 8),
    ),
}


INDUCTOR_TOO = pytest.param("inductor", marks=pytest.mark.more)


class Residual(nn.Module):
    """Blocks of two layers each, and a head."""

    def __init__(self, width: int = 16, depth: int = 4) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))
            for _ in range(depth)
        )
        self.head = nn.Linear(width, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for block in self.blocks:
            x = x + block(x)
        return self.head(x)


@pytest.fixture(autouse=True)
def _fresh_compiler():
    torch._dynamo.reset()
    counters.clear()
    vectors = {} if torch.backends.cpu.get_cpu_capability() != "DEFAULT" else {"cpp.simdlen": 1}  # inductor writes them anyway
    with (
        torch._dynamo.config.patch(fail_on_recompile_limit_hit=True),  # it would go on in eager, without a word
        torch._inductor.config.patch(vectors),
    ):
        yield
    torch._dynamo.reset()


def graphs():
    return counters["stats"]["unique_graphs"]


def set_flags(model, flag):
    wk.set_skip(model, flag.get("skip", False))
    wk.set_rows(model, flag.get("rows"))
    wk.set_tokens(model, flag.get("tokens"))


def sparse(flag):
    """The same, with a sparse gradient of its rows."""
    rows = flag.get("rows")
    return flag | {"rows": dataclasses.replace(rows, sparse=True)} if isinstance(rows, wk.TopK | wk.Rows) else flag


def results(model, call, x):
    """The output, and what one backward leaves of gradients; a sparse one as two tensors."""
    x = x.clone().requires_grad_()
    y = call(x)
    y.square().sum().backward()
    found = {"y": y.detach(), "x": x.grad}
    for name, parameter in model.named_parameters():
        grad, parameter.grad = parameter.grad, None
        if grad is None or not grad.is_sparse:
            found[name] = grad
        else:
            found[f"{name} rows"], found[f"{name} values"] = grad._indices(), grad._values()
    return found


def assert_same(model, compiled, x):
    torch.testing.assert_close(results(model, compiled, x), results(model, model, x), rtol=1e-4, atol=1e-5)


@pytest.mark.pairs
@pytest.mark.parametrize("dynamic", [False, True], ids=["static", "dynamic"])
@pytest.mark.parametrize("flag", FLAGS)
@pytest.mark.parametrize("kind", MODELS)
def test_one_graph_gives_eagers_results(kind, flag, dynamic):
    make, shape = MODELS[kind]
    model = wk.convert(make())
    set_flags(model, FLAGS[flag])
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager", dynamic=dynamic)
    for batch in (6, 6, 11):
        assert_same(model, compiled, torch.randn(batch, *shape[1:]))
    assert graphs() == (1 if dynamic else 2)


IN_BOTH = {("conv2d", "rows")}  # the others' backward is traced by aot_eager above


@pytest.mark.parametrize(
    ("kind", "flag"),
    [pytest.param(*case, marks=[] if case in IN_BOTH else pytest.mark.more) for case in itertools.product(MODELS, FLAGS)],
)
def test_inductor_gives_eagers_results(kind, flag):
    make, shape = MODELS[kind]
    model = wk.convert(make())
    set_flags(model, sparse(FLAGS[flag]) if "top-k" in flag else FLAGS[flag])
    compiled = torch.compile(model, fullgraph=True)
    for _ in range(2):
        assert_same(model, compiled, torch.randn(shape))


@pytest.mark.parametrize("backend", ["aot_eager", INDUCTOR_TOO])
def test_compact_rows_of_several_backwards_add_up(backend):
    model = wk.convert(MODELS["linear"][0]())
    wk.set_rows(model, wk.TopK(k=3, sparse=True))
    compiled = torch.compile(model, fullgraph=True, backend=backend)
    batches = [torch.randn(6, 24) for _ in range(4)]

    def accumulated(call):
        for x in batches:
            call(x).square().sum().backward()
        held = [layer.weight.grad.to_dense() for layer in (model[0], model[2])]
        model.zero_grad()
        return held

    torch.testing.assert_close(accumulated(compiled), accumulated(model), rtol=1e-4, atol=1e-5)


def test_a_copy_of_a_layer_with_sparse_gradients_has_its_own():
    """Nothing of the copy may reach the original."""
    model = wk.convert(MODELS["linear"][0]())
    wk.set_rows(model, wk.TopK(k=3, sparse=True))
    twin = copy.deepcopy(model)
    torch.compile(twin, fullgraph=True, backend="aot_eager")(torch.randn(6, 24)).sum().backward()
    assert model[0].weight.grad is None
    assert twin[0].weight.grad.is_sparse


@pytest.mark.parametrize("rows", [wk.TopK(k=3), wk.Rows([0, 2]), wk.TopK(k=2, scope="both")], ids=["TopK", "Rows", "both"])
def test_an_optimizers_wish_reaches_compiled_layers_and_ends_with_it(rows):
    model, x = wk.convert(MODELS["linear"][0]()), torch.randn(6, 24)
    wk.set_rows(model, rows)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    for _ in range(2):
        assert_same(model, compiled, x)
        optimizer = wk.optim.SGD(model.parameters(), lr=0.1)
        assert any("rows" in name for name in results(model, compiled, x))
        assert_same(model, compiled, x)
        del optimizer
        assert not any("rows" in name for name in results(model, compiled, x))
    assert graphs() == 2


def test_a_compiled_gradient_of_the_input_leaves_nothing_behind():
    """Nor does an observer hear of it; and what cannot be given raises."""
    model, x = wk.convert(nn.Sequential(nn.Linear(24, 8))), torch.randn(6, 24, requires_grad=True)
    observer = wk.Observer("l1", alive=torch.ones(8, dtype=torch.bool))
    model[0].plan = wk.Plan(rows=wk.TopK(k=3, sparse=True), observer=observer)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    torch.autograd.grad(compiled(x).sum(), x)
    compiled(x).sum().backward(inputs=[x])
    assert model[0].weight.grad is None
    assert observer.total is observer.hits is observer.seen is None
    with pytest.raises(RuntimeError, match=r"weight: autograd\.grad wants its gradient"):
        torch.autograd.grad(compiled(x).sum(), model[0].weight)
    compiled(x).sum().backward()
    assert model[0].weight.grad.is_sparse
    assert (int(observer.seen), int(observer.hits.sum())) == (1, 3)
    model.zero_grad()
    model[0].weight.register_hook(lambda grad: grad)
    with pytest.raises(RuntimeError, match="weight: a hook wants its gradient"):
        compiled(x).sum().backward()
    torch._dynamo.reset()
    torch.compile(model, fullgraph=True, backend="aot_eager")(x).sum().backward()
    assert not model[0].weight.grad.is_sparse


@pytest.mark.pairs
@pytest.mark.parametrize("rows", [None, wk.TopK(k=3)], ids=["all rows", "top-k"])
@pytest.mark.parametrize("pick", ["crs", "wta"])
@pytest.mark.parametrize("kind", MODELS)
def test_tokens_are_drawn_in_a_graph_as_in_eager(kind, pick, rows):
    """aot_eager draws by the same generator; without fullgraph's own error nothing asks for a value."""
    make, shape = MODELS[kind]
    model = wk.convert(make())
    wk.set_tokens(model, wk.Tokens(ratio=0.5, pick=pick))
    if kind == "linear":
        wk.set_rows(model, rows)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    for seed in (1, 2):
        x, found = torch.randn(shape), []
        for call in (compiled, model):
            torch.manual_seed(seed)
            found.append(results(model, call, x))
        torch.testing.assert_close(*found, rtol=1e-4, atol=1e-5)
    assert graphs() == 1


def test_inductor_draws_tokens_anew_in_each_backward():
    """It has random numbers of its own: the mean of 400 gradients is near the dense one, each entry within 6 standard errors,
    which a right one misses in less than one of a million choices of the seed."""
    model, x = wk.convert(nn.Sequential(nn.Linear(4, 3))), torch.randn(20, 4)
    dense = results(model, model, x)["0.weight"]
    wk.set_tokens(model, wk.Tokens(ratio=0.4, pick="wta"))
    compiled = torch.compile(model, fullgraph=True)
    found = torch.stack([results(model, compiled, x)["0.weight"] for _ in range(400)])
    assert found.unique(dim=0).shape[0] > 300
    assert ((found.mean(0) - dense).abs() <= 6 * found.std(0) / 20).all()


# ---- how many graphs ------------------------------------------------------------------------------------------------


def count_graphs(model, steps, x):
    """Of a compiled model that takes these steps, each a function that sets flags, several times over."""
    compiled, counts = torch.compile(model, fullgraph=True, backend="aot_eager"), []
    for _ in range(3):
        for step in steps:
            step()
            assert_same(model, compiled, x)
            counts.append(graphs())
    return counts


def test_a_skip_and_a_choice_of_rows_make_one_more_graph_each():
    model = wk.convert(Residual())
    steps = [lambda flag=flag: set_flags(model, flag) for flag in (FLAGS["dense"], FLAGS["skip"], FLAGS["top-k"])]
    assert count_graphs(model, steps, torch.randn(3, 16)) == [1, 2, 3, 3, 3, 3, 3, 3, 3]


@pytest.mark.parametrize("form", [None, True], ids=["dense", "sparse"])
def test_changing_rows_of_one_length_make_no_more_graphs(form):
    model = wk.convert(Residual())

    def change():
        for layer in wk.modules.skippable_layers(model).values():
            layer.rows = wk.Rows(torch.randperm(layer.out_features)[:4], sparse=form)

    assert set(count_graphs(model, [change] * 4, torch.randn(3, 16))) == {1}


def test_policies_of_single_layers_cost_the_kinds_of_steps_of_a_region():
    """Each layer has a flag of its own: a compiled model of n layers would make 2^n graphs, and regions of two layers, which
    share their graphs, make four; and the head two."""
    model = wk.convert(Residual())
    eager = copy.deepcopy(model)
    for region in (*model.blocks, model.head):
        region.compile(fullgraph=True, backend="aot_eager")
    x, counts = torch.randn(3, 16), []
    flags = torch.randint(2, (60, 9), generator=torch.Generator().manual_seed(3)).bool().tolist()
    for step in flags:
        for twin in (model, eager):
            for layer, skip in zip(wk.modules.skippable_layers(twin).values(), step, strict=True):
                layer.skip = skip
        torch.testing.assert_close(results(model, model, x), results(eager, eager, x), rtol=1e-4, atol=1e-5)
        counts.append(graphs())
    assert counts[-1] == counts[30] == 6


# ---- beside other transformations -----------------------------------------------------------------------------------


@pytest.mark.parametrize("flag", FLAGS)
def test_checkpointed_regions_compile(flag):
    model = wk.convert(Residual(depth=2))
    set_flags(model, FLAGS[flag])

    def forward(x):
        for block in model.blocks:
            x = x + checkpoint(block, x, use_reentrant=False)
        return model.head(x)

    assert_same(model, torch.compile(forward, fullgraph=True, backend="aot_eager"), torch.randn(3, 16))


@pytest.mark.parametrize("flag", FLAGS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, pytest.param(torch.float16, marks=pytest.mark.more)], ids=str)
def test_autocast_compiles(flag, dtype):
    model = wk.convert(Residual(depth=1))
    set_flags(model, FLAGS[flag])
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")

    def under_autocast(call):
        def run(x):
            with torch.autocast("cpu", dtype):
                return call(x).float()

        return run

    x = torch.randn(3, 16)
    ours, eager = (results(model, under_autocast(call), x) for call in (compiled, model))
    torch.testing.assert_close(ours, eager, rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize("backend", ["aot_eager", INDUCTOR_TOO])
def test_scores_are_observed(backend):
    model, changes = wk.convert(MODELS["linear"][0]()), 3
    compiled = torch.compile(model, fullgraph=True, backend=backend)
    for _ in range(changes):
        observed, expected = ([wk.Observer("l2"), wk.Observer("l1")] for _ in range(2))
        x = torch.randn(6, 24)
        for call, scores in ((compiled, observed), (model, expected)):
            for layer, of in zip((model[0], model[2]), scores, strict=True):
                layer.plan = wk.Plan(rows=wk.Rows(torch.randperm(8)[:4]), observer=of)
            for _ in range(2):
                call(x).square().sum().backward()
        for ours, eager in zip(observed, expected, strict=True):
            torch.testing.assert_close(ours.total, eager.total, rtol=1e-4, atol=1e-5)
    assert graphs() == 1


@pytest.mark.parametrize("part", ["rows", "columns"])
def test_what_processes_agree_on_within_a_step_stays_eager(part):
    """A collective inside of backward or forward (``prepare(exact=True)``) is no part of a graph."""
    model, calls = wk.convert(MODELS["linear"][0]()), []

    def agree(scores):
        calls.append(scores)
        return scores

    if part == "rows":
        wk.set_plan(model, rows=wk.TopK(k=3), observer=Agreed(None, agree))
    else:
        wk.set_plan(model, columns=wk.TopColumns(k=3), column_observer=AgreedColumns(None, agree))
    assert_same(model, torch.compile(model, backend="aot_eager"), torch.randn(6, 24))
    assert len(calls) == 4
    assert not any(isinstance(scores, torch._subclasses.FakeTensor) for scores in calls)
    torch._dynamo.reset()
    with pytest.raises(torch._dynamo.exc.Unsupported, match="what all processes agree on in the step"):
        torch.compile(model, fullgraph=True, backend="aot_eager")(torch.randn(6, 24))


def test_what_is_delivered_is_a_copy():
    """Compiled code uses its memory again."""

    class Receiver:
        def receive(self, part):
            self.part = part

    receiver, part = Receiver(), torch.ones(3)
    torch.ops.wuskern.deliver(new_key(receiver), None, [part])
    part.zero_()
    assert receiver.part.tolist() == [1, 1, 1]
