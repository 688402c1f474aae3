"""convert and revert: only the class of a layer changes."""

import copy
import logging
import pickle

import pytest
import torch
import torch.nn as nn
import torch.nn.utils.parametrizations
import torch.nn.utils.parametrize
import torch.nn.utils.prune

import wuskern as wk


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(9, 6)
        self.body = nn.Sequential(nn.Linear(6, 6), nn.ReLU())
        self.head = nn.Linear(6, 9, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.head(self.body(self.embedding(tokens)))


def test_round_trip_keeps_everything_but_the_class():
    model = Tied()
    calls = []
    model.body[0].register_forward_hook(lambda *_: calls.append(1))
    modules, parameters = [id(m) for m in model.modules()], [(n, id(p)) for n, p in model.named_parameters()]
    state, classes = copy.deepcopy(model.state_dict()), [type(m) for m in model.modules()]
    tokens = torch.tensor([1, 2, 8])
    expected = model(tokens)

    assert wk.convert(model) is model
    assert type(model.head) is wk.SkippableLinear
    assert type(model.body[0]) is wk.SkippableLinear
    assert torch.equal(model(tokens), expected)
    assert model.head.weight is model.embedding.weight
    assert len(calls) == 2
    assert wk.convert(model) is model  # once more changes nothing

    wk.set_skip(model, True)
    assert wk.revert(model) is model
    assert [type(m) for m in model.modules()] == classes
    assert [id(m) for m in model.modules()] == modules
    assert [(n, id(p)) for n, p in model.named_parameters()] == parameters
    assert all("skip" not in m.__dict__ for m in model.modules())
    for name, value in model.state_dict().items():
        assert torch.equal(value, state[name])


def test_the_root_itself():
    layer = nn.Conv2d(1, 2, 3)
    assert wk.convert(layer) is layer
    assert type(layer) is wk.SkippableConv2d
    assert type(wk.revert(layer)) is nn.Conv2d


def test_filter_fn_is_asked_once_about_what_could_be_converted():
    shared, asked = nn.Linear(3, 4), []
    model = nn.ModuleDict({"a": shared, "b": shared, "c": nn.Linear(3, 3), "d": nn.Conv1d(1, 1, 1), "e": nn.Linear(2, 2)})
    model["e"].forward = lambda x: x

    def only_c(module: nn.Module, name: str) -> bool:
        asked.append((module, name))
        return name == "c"

    wk.convert(model, only_c)
    assert asked == [(shared, "a"), (model["c"], "c")]
    assert [type(model[name]) for name in "abce"] == [nn.Linear, nn.Linear, wk.SkippableLinear, nn.Linear]
    wk.convert(model, lambda module, name: name == "a")  # once more widens the choice
    assert type(model["b"]) is type(model["c"]) is wk.SkippableLinear
    assert wk.survey(model, lambda *_: False)[0].obstacle is None  # what is converted stays so


def test_a_filter_fn_that_raises_changes_nothing():
    model = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 4))
    with pytest.raises(ZeroDivisionError):
        wk.convert(model, lambda module, name: 1 / (1 - int(name)))
    assert [type(m) for m in model] == [nn.Linear, nn.Linear]
    with pytest.raises(TypeError, match=r"filter_fn: expected a function of \(module, name\), got 'head'"):
        wk.convert(model, "head")


class Special(nn.Linear):
    pass


class Wrapped(torch.Tensor):
    """A weight that something else keeps in its own format."""


class Conv1D(nn.Module):
    """A transposed Linear with the name of that of transformers, and not that."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(4, 4)), nn.Parameter(torch.ones(4))


def altered(layer: nn.Linear, **attributes: object) -> nn.Linear:
    for name, value in attributes.items():
        setattr(layer, name, value)
    return layer


def test_what_is_left_alone_says_why(caplog):
    model = nn.ModuleDict(
        {
            "plain": nn.Linear(4, 4),
            "special": Special(4, 4),
            "lazy": nn.LazyLinear(4),
            "lazy norm": nn.LazyBatchNorm2d(),
            "conv1d": nn.Conv1d(2, 2, 1),
            "attention": nn.MultiheadAttention(4, 2),
            "normed": torch.nn.utils.parametrizations.weight_norm(nn.Linear(4, 4)),
            "pruned": torch.nn.utils.prune.identity(nn.Linear(4, 4), "weight"),
            "patched": altered(nn.Linear(4, 4), forward=lambda x: x),
            "own skip": altered(nn.Linear(4, 4), skip=lambda x: x),
            "own rows": altered(nn.Linear(4, 4), rows=4),
            "subclass": altered(nn.Linear(4, 4), weight=nn.Parameter(torch.ones(4, 4).as_subclass(Wrapped))),
            "fp8": altered(nn.Linear(4, 4), weight=nn.Parameter(torch.ones(4, 4).to(torch.float8_e4m3fn), False)),
            "transposed": Conv1D(),
            "lstm": nn.LSTM(4, 4),
            "embedding": nn.Embedding(4, 4),
            "norm": nn.LayerNorm((4, 4)),
        }
    )
    reasons = {f.name: f.obstacle for f in wk.survey(model)}
    assert reasons == {
        "plain": None,
        "special": "Special is a subclass with a behaviour of its own",
        "lazy": "it is lazy: run the model once before converting",
        "conv1d": "there is no skipping Conv1d",
        "attention": "MultiheadAttention computes with its own in_proj_weight",
        "attention.out_proj": "MultiheadAttention reads its weight and never calls it",
        "normed": "its weight is parametrized",
        "pruned": "its weight is computed from other parameters",
        "patched": "its forward was replaced on the object",
        "own skip": "it has an attribute skip of its own",
        "own rows": "it has an attribute rows of its own",
        "subclass": "its weight is a Wrapped, a subclass of Tensor",
        "fp8": "its weight is torch.float8_e4m3fn",
        "transposed": "Conv1D computes with its own weight",
        "lstm": "LSTM computes with its own weight_ih_l0, weight_hh_l0",
        "embedding": "embeddings are converted on request: convert(model, embeddings=True)",
    }
    classes = [type(m) for m in model.values()]
    with caplog.at_level(logging.INFO, logger="wuskern"):
        wk.convert(model)
    assert "left alone: conv1d: there is no skipping Conv1d" in caplog.messages
    assert "left alone: 95 % of the weights, in layers of type Special, LazyLinear, Conv1d, MultiheadAttention" in caplog.text
    assert caplog.messages[-2] == "converted: 1 of 15 layers, with 5 % of the weights"
    assert len(caplog.messages) == len(reasons) + 1
    assert [type(m) for m in model.values()] == [wk.SkippableLinear, *classes[1:]]


def test_most_weights_left_alone_are_a_warning_and_few_are_none(caplog):
    few = nn.Sequential(nn.Linear(8, 8), nn.Conv1d(2, 2, 1), nn.Embedding(100, 8))
    wk.convert(few)
    wk.convert(
        nn.Sequential(nn.Linear(8, 8), nn.Linear(80, 80)), filter_fn=lambda module, name: name == "0"
    )  # as was asked for
    assert caplog.messages == []
    wk.convert(nn.Sequential(nn.Linear(8, 8), Conv1D(), nn.LSTM(8, 8)))
    assert caplog.messages == ["left alone: 89 % of the weights, in layers of type Conv1D, LSTM"]


@pytest.mark.filterwarnings(
    "ignore::DeprecationWarning", "ignore:.*reduce_range.*:UserWarning", "ignore:.*are deprecated:UserWarning"
)
@pytest.mark.parametrize("qat", [False, True])
def test_quantisation_says_that_it_passes_converted_layers_over(qat):
    """It goes by exact type."""

    def quantised(model):
        if not qat:
            return torch.ao.quantization.quantize_dynamic(model, {nn.Linear})
        model.qconfig = torch.ao.quantization.get_default_qat_qconfig("fbgemm")
        return torch.ao.quantization.prepare_qat(model.train())

    def model():
        return wk.convert(nn.Sequential(nn.Linear(6, 8), nn.ReLU()))

    with pytest.warns(UserWarning, match=r"passes a SkippableLinear over: call wuskern.revert\(model\) first"):
        passed_over = quantised(model())
    assert type(passed_over[0]) is wk.SkippableLinear
    assert type(quantised(wk.revert(model()))[0]) not in (nn.Linear, wk.SkippableLinear)
    assert type(quantised(wk.revert(passed_over))[0]) not in (nn.Linear, wk.SkippableLinear)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
def test_quantised_layers_are_left_alone():
    import torch.ao.quantization as quantization

    net = nn.Sequential(nn.Linear(4, 4), nn.Conv2d(2, 2, 1)).train()
    net.qconfig = quantization.get_default_qat_qconfig("x86")
    prepared = quantization.prepare_qat(net)
    quantised = quantization.convert(copy.deepcopy(prepared).eval())
    dynamic = quantization.quantize_dynamic(nn.Sequential(nn.Linear(4, 4)), {nn.Linear})
    for model in (prepared, quantised, dynamic):
        found = wk.survey(model)
        assert len(found) == len(model)
        assert all(f.obstacle.startswith("it is quantised: torch.ao.nn.") for f in found)
    with pytest.raises(ValueError, match="it is quantised"):
        wk.convert(quantised)


def test_a_lazy_layer_is_converted_once_it_has_run():
    model = nn.Sequential(nn.LazyConv2d(3, 1), nn.Flatten(), nn.LazyLinear(2))
    with pytest.raises(ValueError, match="it is lazy"):
        wk.convert(model)
    model(torch.zeros(1, 2, 4, 4))
    wk.convert(model)
    assert [type(model[i]) for i in (0, 2)] == [wk.SkippableConv2d, wk.SkippableLinear]


def test_nothing_to_convert_is_an_error():
    with pytest.raises(ValueError, match=r"got Sequential: 0: there is no skipping Conv1d$"):
        wk.convert(nn.Sequential(nn.Conv1d(2, 2, 1)))
    with pytest.raises(ValueError, match=r"got ReLU: it has no layer with a weight matrix"):
        wk.convert(nn.ReLU())
    with pytest.raises(ValueError, match="filter_fn left it out"):
        wk.convert(nn.Linear(2, 2), filter_fn=lambda *_: False)
    with pytest.raises(TypeError, match=r"model: expected a torch.nn.Module, got str"):
        wk.convert("model")


# ---- revert ----------------------------------------------------------------------------------------------------------


def deep_copied(model: nn.Module) -> nn.Module:
    return copy.deepcopy(model)


def pickled(model: nn.Module) -> nn.Module:
    return pickle.loads(pickle.dumps(model))


def converted_twice(model: nn.Module) -> nn.Module:
    return wk.convert(model)


def under_a_policy(model: nn.Module) -> nn.Module:
    """A window of skipped steps, under way."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0, momentum=0.9)
    policy = wk.policies.WUS(model, warmup=0)
    policy.attach(optimizer)
    for _ in range(9):
        policy.step(0.5)
    model(torch.tensor([1, 2])).sum().backward()
    optimizer.step()
    optimizer.zero_grad()
    return model


@pytest.mark.parametrize("change", [deep_copied, pickled, converted_twice, under_a_policy], ids=lambda change: change.__name__)
def test_revert_is_exact_after(change):
    stock = Tied()
    model = change(wk.convert(copy.deepcopy(stock)))
    if change is under_a_policy:
        assert model.head.skip is True
    wk.set_skip(model, True)
    wk.revert(model)
    tokens = torch.tensor([1, 2, 8])
    assert [(type(m), sorted(m.__dict__)) for m in model.modules()] == [(type(m), sorted(m.__dict__)) for m in stock.modules()]
    assert model.head.weight is model.embedding.weight
    for m in (model, stock):
        m(tokens).pow(2).sum().backward()
    for ours, theirs in zip(model.parameters(), stock.parameters(), strict=True):
        assert torch.equal(ours, theirs)
        assert torch.equal(ours.grad, theirs.grad)
    assert type(wk.convert(model).head) is wk.SkippableLinear


def test_revert_of_a_stock_model_changes_nothing():
    model = nn.Sequential(nn.Linear(2, 2), Special(2, 2))
    assert wk.revert(model) is model
    assert [type(m) for m in model] == [nn.Linear, Special]


def test_revert_keeps_a_parametrization_registered_since():
    model = wk.convert(nn.Sequential(nn.Linear(3, 3), nn.Conv2d(1, 2, 3)))
    for layer in model:
        torch.nn.utils.parametrizations.weight_norm(layer)
    assert all(f.obstacle is None for f in wk.survey(model))
    wk.convert(model)  # nothing left to do, and no error
    wk.set_skip(model, True)
    twin = copy.deepcopy(model)
    expected = model[0](torch.ones(3))
    wk.revert(model)
    assert not any(isinstance(m, wk.SkippableLinear | wk.SkippableConv2d) for m in model)
    assert torch.equal(model[0](torch.ones(3)), expected)
    for layer, stock in zip(model, (nn.Linear, nn.Conv2d), strict=True):
        assert isinstance(layer, stock)
        assert torch.nn.utils.parametrize.is_parametrized(layer, "weight")
        torch.nn.utils.parametrize.remove_parametrizations(layer, "weight")
        assert type(layer) is stock
    assert isinstance(twin[0], wk.SkippableLinear)  # a copy is not reverted with it
    assert twin[0].skip is True


def test_removing_a_parametrization_makes_a_layer_convertible():
    model = torch.nn.utils.parametrizations.spectral_norm(nn.Linear(3, 3))
    with pytest.raises(ValueError, match="its weight is parametrized"):
        wk.convert(model)
    assert type(wk.convert(torch.nn.utils.parametrize.remove_parametrizations(model, "weight"))) is wk.SkippableLinear
