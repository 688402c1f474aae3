"""What a profile says: numbers that can be worked out by hand, models of all kinds, and what is refused."""

import contextlib
import json
from collections import UserDict
from types import SimpleNamespace

import pytest
import torch
import torch.nn as nn
import torch.nn.functional as F

import wuskern as wk
from wuskern.policies import SingleShotFreezing
from wuskern.profile import race, variants

N, INPUTS, HIDDEN, OUT = 32, 128, 256, 10
WAYS = ["dense", "skip", "columns 5%", "rows 5%", "rows 20%", "1 of 2 layers frozen"]


def mlp(bias: bool = True) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(INPUTS, HIDDEN, bias), nn.ReLU(), nn.Linear(HIDDEN, OUT, bias))


@pytest.fixture(scope="module")
def of_mlp():
    return wk.profile(mlp(), torch.randn(N, INPUTS), seconds=30)


def test_what_forward_keeps_is_what_can_be_counted_by_hand(of_mlp):
    """Inputs of layers whose weights train, the output of ReLU, and the last output, for its square; of rows as of dense."""
    x, hidden, y = (4 * N * size for size in (INPUTS, HIDDEN, OUT))
    few, some = (4 * N * max(1, size // 20) for size in (INPUTS, HIDDEN))
    index = 8 * (INPUTS // 20 + HIDDEN // 20)
    assert [way.name for way in of_mlp.ways] == WAYS
    assert [way.kept for way in of_mlp.ways[:2]] == [x + hidden + y, hidden + y]
    assert of_mlp["rows 5%"].kept == of_mlp["rows 20%"].kept == x + hidden + y
    assert few + some + hidden + y <= of_mlp["columns 5%"].kept <= few + some + hidden + y + index
    assert of_mlp["1 of 2 layers frozen"].kept == hidden + y


def test_flops_are_those_of_the_products(of_mlp):
    first, second = 2 * N * INPUTS * HIDDEN, 2 * N * HIDDEN * OUT
    assert of_mlp["dense"].flops == 2 * first + 3 * second
    assert of_mlp["1 of 2 layers frozen"].flops == first + 2 * second
    sums = (N - 1) * (HIDDEN + OUT)
    assert first + 2 * second <= of_mlp["skip"].flops <= first + 2 * second + sums


def test_the_peak_has_the_gradients_in_it(of_mlp):
    weights = 4 * (INPUTS * HIDDEN + HIDDEN * OUT)
    assert of_mlp["dense"].peak > weights
    assert of_mlp["skip"].peak < weights
    assert of_mlp["rows 5%"].peak > weights  # its gradient is dense
    assert of_mlp["1 of 2 layers frozen"].peak < of_mlp["skip"].peak


def test_layers_and_coverage(of_mlp):
    assert (of_mlp.share, of_mlp.covered, of_mlp.left_alone) == (1.0, ("0", "2"), ())
    assert [(layer.name, layer.shape, layer.weights) for layer in of_mlp.layers] == [
        ("0", "Linear 128 -> 256", 128 * 256),
        ("2", "Linear 256 -> 10", 2560),
    ]
    saved = sum(layer.saved for layer in of_mlp.layers)
    assert of_mlp.composed == pytest.approx(saved / of_mlp["dense"].seconds)
    assert of_mlp.measured == 1 - of_mlp["skip"].of_dense
    assert all(layer.forward > 0 and layer.dgrad > 0 for layer in of_mlp.layers)
    assert of_mlp.loss == "the mean square of the outputs"


def test_it_prints_within_100_columns_and_is_written_as_json(of_mlp):
    lines = str(of_mlp).splitlines()
    assert max(map(len, lines)) <= 100
    assert lines[0].startswith(of_mlp.verdict[:40])
    assert repr(of_mlp) == str(of_mlp)
    content = json.loads(of_mlp.to_json())
    assert [way["name"] for way in content["ways"]] == WAYS
    assert content["verdict"] == of_mlp.verdict
    assert content["environment"]["threads"] == torch.get_num_threads()
    with pytest.raises(KeyError, match=r"expected one of dense, skip, .* got 'half'"):
        of_mlp["half"]


# ---- models and batches of all kinds ---------------------------------------------------------------------------------


class Tied(nn.Module):
    """A little language model; the head reads the embedding's weight. Gives what transformers' models give."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.body, self.head = nn.Embedding(20, 16), nn.Linear(16, 16), nn.Linear(16, 20, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, ids, labels=None):
        scores = self.head(torch.relu(self.body(self.embedding(ids))))
        loss = None if labels is None else F.cross_entropy(scores.flatten(0, 1), labels.flatten())
        return SimpleNamespace(loss=loss, scores=scores)


def conv_net() -> nn.Sequential:
    torch.manual_seed(0)
    first, depthwise = nn.Conv2d(3, 8, 3, bias=False), nn.Conv2d(8, 8, 3, groups=8)
    return nn.Sequential(first, nn.BatchNorm2d(8), nn.ReLU(), depthwise, nn.Conv2d(8, 4, 1, groups=2), nn.Flatten())


IDS = torch.arange(12).reshape(3, 4) % 20


@pytest.mark.usefixtures("quick")
class TestModels:
    def test_a_model_with_a_loss_of_its_own_and_a_tied_weight(self):
        found = wk.profile(Tied(), UserDict(ids=IDS, labels=IDS))
        assert found.loss == "the model's own"
        assert {"skip", "columns 5%", "rows 5%"} <= {way.name for way in found.ways}, found
        assert [(left.name, left.weights) for left in found.left_alone] == [("embedding", 320)]

    def test_a_given_loss(self):
        found = wk.profile(Tied(), {"ids": IDS}, loss=lambda output: output.scores.sum())
        assert found.loss == "the given function"
        assert "skip" in {way.name for way in found.ways}, found

    def test_a_batch_of_transformers(self):
        transformers = pytest.importorskip("transformers", reason="transformers is not installed: see .ci/requirements.txt")
        assert len(wk.profile(Tied(), transformers.BatchEncoding({"ids": IDS, "labels": IDS})).ways) >= 4

    def test_convolutions_of_all_kinds(self):
        found = wk.profile(conv_net(), torch.randn(2, 3, 8, 8))
        assert {way.name: way.left_dense for way in found.ways}["columns 5%"] == 1
        assert [layer.shape for layer in found.layers] == [
            "Conv2d 3 -> 8, 3x3",
            "Conv2d 8 -> 8, 3x3, 8 groups",
            "Conv2d 8 -> 4, 1x1, 2 groups",
        ]
        assert "* up to 1 layers cannot" in str(found)

    def test_a_convolution_with_strides(self):
        found = wk.profile(nn.Sequential(nn.Conv2d(3, 4, (1, 3), (1, 2)), nn.Conv2d(4, 4, 3, 2)), torch.randn(2, 3, 8, 12))
        assert [layer.shape for layer in found.layers] == ["Conv2d 3 -> 4, 1x3, stride 1x2", "Conv2d 4 -> 4, 3x3, stride 2"]

    def test_a_parametrized_layer_and_one_that_runs_twice(self):
        net = nn.Sequential(nn.Linear(6, 6), nn.Tanh(), nn.utils.parametrizations.orthogonal(nn.Linear(6, 6)))
        found = wk.profile(nn.Sequential(net, net[0], nn.Linear(6, 2)), torch.randn(4, 6))
        assert [(left.name, left.reason) for left in found.left_alone] == [("0.2", "its weight is parametrized")]
        assert "skip" in {way.name for way in found.ways}, found

    def test_layers_that_were_converted_count_alone(self):
        model = wk.convert(mlp(), lambda module, name: name == "0")
        found = wk.profile(model, torch.randn(N, INPUTS))
        assert found.covered == ("0",)
        assert [(left.name, left.reason) for left in found.left_alone] == [("2", "not converted, as the others are")]
        assert found.share == pytest.approx(INPUTS * HIDDEN / (INPUTS * HIDDEN + HIDDEN * OUT))
        of_filter = wk.profile(mlp(), torch.randn(N, INPUTS), filter_fn=lambda module, name: name == "0")
        assert of_filter.covered == ("0",)

    def test_autocast(self):
        found = wk.profile(mlp(), torch.randn(N, INPUTS), autocast=torch.bfloat16)
        assert found.environment["dtype"] == "float32 with bfloat16 autocast"
        assert [way.name for way in found.ways] == WAYS

    def test_a_model_that_is_not_the_same_twice(self):
        class Random(nn.Linear):
            steps = 0

            def forward(self, x):
                Random.steps += 1
                return super().forward(x) * Random.steps

        found = wk.profile(nn.Sequential(nn.Linear(6, 4), Random(4, 2)), torch.randn(3, 6))
        assert "Two steps from the same random numbers gave different gradients" in str(found)
        assert "skip" in {way.name for way in found.ways}

    def test_nothing_to_convert(self):
        found = wk.profile(nn.Sequential(nn.Conv1d(3, 4, 2), nn.Flatten()), torch.randn(2, 3, 6))
        assert found.verdict == "do not bother: no layer can be converted (there is no skipping Conv1d)"
        assert (found.share, found.composed, len(found.ways)) == (0.0, None, 1)

    def test_nothing_left_to_train(self):
        found = wk.profile(mlp(bias=False), torch.randn(N, INPUTS))
        assert "skip: leaves nothing to train" in str(found)
        assert "skip" not in {way.name for way in found.ways}
        assert found.layers == ()

    def test_a_model_without_a_prefix(self):
        found = wk.profile(nn.Sequential(nn.Linear(6, 2)), torch.randn(4, 6))
        assert "frozen prefix: there is no depth" in str(found)


# ---- the time, and what is wrong -------------------------------------------------------------------------------------


def test_what_does_not_fit_is_said(monkeypatch):
    monkeypatch.setattr(race, "recorded", lambda step: race.Recorded(1, 1, 1))
    monkeypatch.setattr(race, "peak_bytes", lambda function, device: 0)
    found = wk.profile(mlp(), torch.randn(N, INPUTS), seconds=1e-6)
    assert [way.name for way in found.ways] == ["dense"]
    assert found.rounds == 1
    assert found.did_not_fit == ("skip", "columns 5%", "frozen prefix", "rows 5%", "rows 20%")
    assert found.verdict == "no verdict: there was time for dense steps alone"
    assert "Did not fit into the time: skip, columns 5%, frozen prefix, rows 5%, rows 20%." in str(found)


@pytest.mark.usefixtures("quick")
def test_a_way_with_wrong_gradients_is_not_timed(monkeypatch):
    """Here none of them leaves anything out."""
    monkeypatch.setattr(variants.Way, "on", lambda way, layers, zeros=None: contextlib.nullcontext())
    found = wk.profile(mlp(), torch.randn(N, INPUTS))
    assert [way.name for way in found.ways] == ["dense"]
    wrong = [note.removesuffix(".").split(": ", 1) for note in found.notes if "not timed, its gradients are wrong" in note]
    assert [name for name, _ in wrong] == ["skip", "columns 5%", "1 of 2 layers frozen", "rows 5%", "rows 20%"]
    assert wrong[0][1].endswith("please report it: 0.weight: expected no gradient, got one")
    assert "0.weight: expected a gradient of at most 4.69% of the weights, got" in wrong[1][1]
    assert "0.weight: expected a gradient of at most 4.69% of the weights, got" in wrong[3][1]


REFUSED = {
    "no module": (lambda: (torch.relu, torch.ones(2)), {}, TypeError, "model: expected a torch.nn.Module"),
    "compiled": (lambda: (torch.compile(mlp(), backend="eager"), 1), {}, ValueError, "model: expected the one inside"),
    "nothing trains": (lambda: (mlp().requires_grad_(False), torch.ones(2, INPUTS)), {}, ValueError, "a parameter that trains"),
    "no batch": (lambda: (mlp(), 3), {}, TypeError, "batch: expected a tensor, a sequence of positional inputs"),
    "no time": (lambda: (mlp(), torch.ones(2, INPUTS)), {"seconds": 0}, ValueError, "seconds: expected a positive number"),
    "no dtype": (lambda: (mlp(), torch.ones(2, INPUTS)), {"autocast": "bf16"}, ValueError, "autocast: expected torch.bfloat16"),
    "no filter": (lambda: (mlp(), torch.ones(2, INPUTS)), {"filter_fn": "0"}, TypeError, "filter_fn: expected a function"),
    "no number": (
        lambda: (mlp(), torch.ones(2, INPUTS)),
        {"loss": lambda y: y},
        ValueError,
        "one floating-point number, got a",
    ),
    "no loss": (lambda: (mlp(), torch.ones(2, INPUTS)), {"loss": lambda y: 3.0}, ValueError, "number, got float"),
    "detached": (lambda: (mlp(), torch.ones(2, INPUTS)), {"loss": lambda y: y.detach().sum()}, ValueError, "gets a gradient"),
}


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize(("make", "arguments", "error", "message"), REFUSED.values(), ids=REFUSED)
def test_what_is_refused(make, arguments, error, message):
    model, batch = make()
    with pytest.raises(error, match=message):
        wk.profile(model, batch, **arguments)


def test_a_model_that_a_policy_freezes_is_refused():
    model = wk.convert(mlp())
    policy = SingleShotFreezing(model, torch.randn(N, INPUTS), at=0, share=0.5)
    policy.apply()
    assert policy.depth == 1
    with pytest.raises(ValueError, match="model: expected one without frozen layers, got one that another policy freezes"):
        wk.profile(model, torch.randn(N, INPUTS))
    assert policy.depth == 1
