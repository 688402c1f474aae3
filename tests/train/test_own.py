"""Models and data of the user's own files: what functions are given, and what they may give."""

import random
from collections import UserDict

import numpy as np
import pytest
import torch

from wuskern.common.example import Samples
from wuskern.train import data, inputs, own
from wuskern.train.loop import Run
from wuskern.train.methods import parse
from wuskern.train.models import model_for
from wuskern.train.settings import Settings

HEAD = "import random\nimport numpy as np\nimport torch\nimport torch.nn as nn\n"
MLP = """
def make(classes, shape):
    features = shape[0] if isinstance(shape, tuple) else shape["features"][0]
    return Net(features, classes)

class Net(nn.Module):
    def __init__(self, inputs, classes):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(inputs, 25), nn.ReLU(), nn.Linear(25, 25), nn.ReLU(), nn.Linear(25, classes))

    def forward(self, features):
        return self.layers(features)
"""


@pytest.fixture
def file(tmp_path):
    """Writes a file of its own name; ``FILE.py:function``."""

    def write(code, function="make"):
        path = tmp_path / f"own{len(list(tmp_path.iterdir()))}.py"
        path.write_text(HEAD + code)
        return f"{path}:{function}"

    return write


def table(samples=40, features=6):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(samples, features)).astype(np.float32)
    return x, (x[:, 0] > 0).astype(int) + (x[:, 1] > 0)


def of(x, y, **changes):
    return data.Data("mine", x, y, x, y, int(y.max()) + 1, **changes)


def trained(model, samples, policy="dense", epochs=2, **changes):
    arguments = dict(
        width=0.05 if model == "mlp" else 1.0, epochs=epochs, batch=8, optimizer="sgd", lr=0.05, momentum=0.9,
        weight_decay=1e-3, channels_last=False, device="cpu",
    )  # fmt: skip
    run = Run(parse(policy)[0], Settings(model, **arguments | changes), samples, seed=0)
    epochs = [run.epoch() for _ in range(epochs)]
    run.close()
    return [(epoch.loss, epoch.train_accuracy, epoch.test_loss, epoch.test_accuracy) for epoch in epochs]


@pytest.mark.parametrize("policy", ["dense", "meprop:ratio=.3", "freeze:start=0:end=2:saving=.1", "mesimp:ratio=.5:per=batch"])
def test_ones_own_trains_as_the_same_model_of_wuskerns_does(file, policy):
    """Bit for bit, with one input and with the same one by name, in the process or fetched by a loader."""
    x, y = map(torch.from_numpy, table())
    expected = trained("mlp", of(x.view(40, 1, 1, 6), y), policy)
    name = file(MLP)
    assert trained(name, of(x, y), policy) == expected
    by_name = of(Samples({"features": x}), y)
    assert trained(name, by_name, policy) == expected
    assert trained(name, by_name, policy, host=True) == expected


def test_labels_of_each_token(file):
    code = "def make(classes):\n    return nn.Sequential(nn.Embedding(9, 8), nn.Linear(8, classes))\n"
    ids = torch.arange(72).view(12, 6) % 9
    ends = trained(file(code), of(ids, (ids + 1) % 9), lr=1.0, epochs=12)
    assert ends[-1][3] == 1.0  # each token decides of the next


def test_the_same_seed_gives_the_same_model_whoever_draws(file):
    code = (
        "def make():\n    net = nn.Linear(2, 2)\n"
        "    with torch.no_grad():\n        net.bias[:] = torch.tensor([random.random(), np.random.rand()])\n    return net\n"
    )
    name, states = file(code), (random.getstate(), np.random.get_state()[1].tolist())  # noqa: NPY002
    made = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        made.append(own.model(name, torch.zeros(1, 2), 2).bias.tolist())
    assert made[0] == made[1]
    assert all(a != b for a, b in zip(made[0], made[2], strict=True))
    assert (random.getstate(), np.random.get_state()[1].tolist()) == states  # noqa: NPY002


def test_a_function_is_given_what_it_names(file):
    name = file(
        "def make(shape, classes=3, width=7):\n"
        "    net = nn.Linear(1, 1)\n    net.given = shape, classes, width\n    return net\n"
    )
    assert model_for(name, torch.zeros(5, 2, 3), 10, 1.0).given == ((2, 3), 10, 7)
    several = Samples({"a": torch.zeros(5, 2), "b": torch.zeros(5)})
    assert model_for(name, several, 10, 1.0).given == ({"a": (2,), "b": ()}, 10, 7)
    with pytest.raises(ValueError, match="--data: expected one input for mlp, got several: a model of your own takes them"):
        model_for("mlp", several, 10, 1.0)


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("def make():\n    return 3\n", "--model: expected .*:make to give a torch.nn.Module, got int"),
        (
            "def make():\n    return nn.ReLU()\n",
            "--model: expected .*:make to give a model with parameters that train, got none",
        ),
        (
            "net = nn.Linear(1, 1)\ndef make():\n    return net\n",
            "to give a new model in each call, got parts of an earlier one",
        ),
        ("net = nn.Linear(1, 1)\ndef make():\n    return nn.Sequential(net)\n", "to give a new model in each call"),
        ("def make():\n    raise RuntimeError('a\\nb')\n", r"--model: .*own0.py, line 6: RuntimeError: a$"),
        ("def make(size):\n    return nn.Linear(size, 1)\n", r"--model: .*own0.py.*: TypeError: make\(\) missing .* 'size'"),
    ],
)
def test_what_is_no_new_model_is_one_line(file, code, message):
    name = file(code)
    with pytest.raises(ValueError, match=message) as caught:
        [own.model(name, torch.zeros(1, 1), 2) for _ in range(2)]
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize(
    "result",
    [
        "x, y, x, y",
        "[x, y, x, y]",
        "dict(x_train=x, y_train=y, x_test=x, y_test=y, more=3)",
        "collections.UserDict(x_train=x, y_train=y, x_test=x, y_test=y)",
    ],
)
def test_data_come_in_a_row_or_by_name(file, result):
    name = file(f"import collections\ndef load():\n    x, y = np.eye(3), torch.arange(3)\n    return {result}\n", "load")
    loaded = data.load(name, own_model=True)
    assert (loaded.name, loaded.classes, loaded.x_test.tolist()) == (name, 3, np.eye(3).tolist())
    assert data.load(name).x_train.shape == (3, 1, 1, 3)


@pytest.mark.parametrize(
    ("code", "message"),
    [
        (
            "return np.eye(2), [0, 1]",
            "--data: expected x_train, y_train, x_test, y_test from .*:load, as four values .* got 2 things",
        ),
        ("return {'x': 1}", "as four values or a mapping, got a mapping of x"),
        ("return None", "got NoneType"),
        ("return 1 / 0", r"--data: .*own0.py, line 6: ZeroDivisionError: division by zero"),
        ("return np.eye(2), [0, 1], np.eye(2), [0, 1]", "y_train: expected an array or a tensor, got list"),
        ("return np.eye(2), np.arange(3), np.eye(2), np.arange(2)", "y_train: expected 2 labels, one for each sample, got 3"),
    ],
)
def test_what_is_no_data_is_one_line(file, code, message):
    with pytest.raises(ValueError, match=message):
        data.load(file(f"def load():\n    {code}\n", "load"), own_model=True)


@pytest.mark.parametrize(
    ("output", "message"),
    [
        (torch.zeros(4, 2), r"--model: expected scores \[4, 3 or more\], got \[4, 2\]"),
        (torch.zeros(4), r"--model: expected scores \[4, 3 or more\], got \[4\]"),
        (torch.zeros(4, 1, 3), r"--model: expected scores \[4, 3 or more\], got \[4, 1, 3\]"),
        ((torch.zeros(4, 3),), "--model: expected a tensor of scores, or an output with logits, got tuple"),
        ({"scores": torch.zeros(4, 3)}, "--model: expected a tensor of scores, or an output with logits, got dict"),
    ],
)
def test_an_output_that_is_no_scores_is_refused(output, message):
    with pytest.raises((TypeError, ValueError), match=message):
        inputs.logits(output, torch.zeros(4, dtype=torch.long), 3)


def test_outputs_of_the_package_transformers_have_logits():
    scores, y = torch.zeros(4, 3), torch.zeros(4, dtype=torch.long)
    for output in (scores, {"logits": scores, "loss": None}, UserDict(logits=scores), type("Output", (), {"logits": scores})()):
        assert inputs.logits(output, y, 3) is scores


def test_the_checksum_sees_names_and_values():
    x, y = map(torch.from_numpy, table(4))
    numbers = {of(Samples(names), y).checksum() for names in ({"a": x}, {"b": x}, {"a": x, "b": x}, {"a": x + 1})}
    assert len(numbers) == 4
