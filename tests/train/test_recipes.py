"""Recipes: every one of the package can be read as a command line, and one that is wrong says what is."""

import pytest
import torch

import wuskern as wk
from wuskern import cli
from wuskern.train import methods, recipes
from wuskern.train.models.gpt import gpt


@pytest.mark.parametrize("recipe", recipes.shipped(), ids=lambda recipe: recipe.name)
@pytest.mark.parametrize("on_cifar", [False, True])
def test_a_shipped_recipe_is_a_command_line(recipe, on_cifar):
    given = cli._parser().parse_args(["train", *recipe.arguments(on_cifar)])
    parsed = methods.parse(given.policy)
    assert parsed[0].label == "dense"
    assert len(parsed) > 1
    assert given.data.startswith("cifar") == (on_cifar and bool(recipe.cifar))


FINE_TUNING = {"bitfit": (16, 0, 0), "paca": (0, 16, 0), "s2ft": (8, 16, 0), "lisa": (8, 0, 0), "badam": (12, 0, 0)}


@pytest.mark.parametrize("name", [*FINE_TUNING, "prefix-cache", "head-first"])
def test_the_recipes_of_fine_tuning_leave_out_what_they_say(name):
    """Of the 17 layers of the GPT, by hand: four blocks of four, and the head. Skips, columns and frozen layers of step one."""
    recipe = recipes.load(name)
    model = wk.convert(gpt(16, (), 20, 0.25))
    optimizer = torch.optim.AdamW(model.parameters())
    given = methods.Given(model, optimizer, torch.zeros(2, 16, dtype=torch.int64), 64, 0)
    method = methods.parse(",".join(recipe.train["policy"]))[1]
    policy = methods.build(method, given, 4).policy
    wants = [policy.wants(layer) for layer in policy.layers]
    found = [sum(bool(w.get(part)) for w in wants) for part in ("skip", "columns", "frozen")]
    assert len(wants) == 17
    assert tuple(found) == FINE_TUNING.get(name, (0, 0, {"prefix-cache": 10, "head-first": 16}.get(name)))


def test_values_become_arguments():
    train = {"model": "mlp", "weight_decay": 1e-4, "channels_last": True, "host": False, "policy": ["dense", "wus:window=3"]}
    recipe = recipes.Recipe("a", "A", "somewhere", train, {"data": "cifar10", "model": "vgg11"})
    assert recipe.arguments(False) == ["--model=mlp", "--weight-decay=0.0001", "--channels-last", "--policy=dense,wus:window=3"]
    assert recipe.arguments(True)[0] == "--model=vgg11"
    assert recipe.arguments(True)[-1] == "--data=cifar10"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "--recipe: expected a file that can be read, got "),
        ("title = ", "--recipe: expected TOML in 'a', got "),
        ('title = "a"\nsource = "b"\n', "--recipe: expected a table train, .* in 'a', got no train"),
        ('title = "a"\nsource = "b"\ntrain = 3\n', "got something else as train"),
        (f"train = {10**4 * '['}", "--recipe: expected TOML in 'a', got .*(recursion|nested)"),
        ('title = "a"\nsource = "b"\nmodel = "mlp"\n[train]\n', "got something else as model"),
    ],
)
def test_a_wrong_file_is_refused(tmp_path, text, message):
    path = tmp_path / "a.toml"
    if text is not None:
        path.write_text(text)
    with pytest.raises(ValueError, match=message):
        recipes.load(str(path))


def test_one_of_ones_own_needs_a_table_alone(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text('[train]\nmodel = "mlp"\n')
    assert recipes.load(str(path)).arguments(True) == ["--model=mlp"]


def test_an_argument_that_there_is_not_is_named(tmp_path, capsys):
    path = tmp_path / "a.toml"
    path.write_text('title = "a"\nsource = "b"\n[train]\nspeed = 3\n')
    assert cli.main(["train", "--recipe", str(path)]) == 2
    assert "unrecognized arguments: --speed=3" in capsys.readouterr().err
