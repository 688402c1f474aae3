"""Recipes, which are whole experiments written down: arguments of ``wuskern train`` in a TOML file, one for each paper.

title = "what it is"                        # a recipe of one's own needs none
source = "which paper, and what it reports"  # nor this
[train]             # by the names of the arguments; policy may be a list
model = "vgg11"
policy = ["dense", "wus"]
[cifar]             # in place of those, where --data-dir is given
data = "cifar10"
"""

import sys
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

from wuskern.train.files import opened

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # type: ignore[import-not-found,unused-ignore]

KEYS = {"title": str, "source": str, "train": dict, "cifar": dict}
FLAGS = ("channels_last", "host", "memory")
# Arguments that decide which files are replaced: only the command line gives them.
NOT_HERE = ("overwrite", "checkpoint", "resume", "go_on", "recipe")


@dataclass(frozen=True)
class Recipe:
    """What a file says. ``cifar`` is empty where it says nothing about real CIFAR. ``shipped``: it came with the package."""

    name: str
    title: str
    source: str
    train: dict[str, Any]
    cifar: dict[str, Any] = field(default_factory=dict)
    shipped: bool = False

    def arguments(self, on_cifar: bool) -> list[str]:
        """The words that give the recipe's arguments on a command line."""
        words = []
        for key, value in (self.train | (self.cifar if on_cifar else {})).items():
            flag = f"--{key.replace('_', '-')}"
            if isinstance(value, bool):
                words += [flag] if value else []
            else:
                words.append(f"{flag}={','.join(value) if isinstance(value, list) else value}")
        return words

    def describe(self) -> str:
        what = f"{self.train.get('model', 'vgg11')} on {self.train.get('data', 'digits')}"
        cifar = f"; {self.cifar['data']} with --data-dir DIR" if "data" in self.cifar else ""
        return f"{self.name}: {self.title}\n  {self.source}\n  {what}{cifar}\n  wuskern train --recipe {self.name}"


def shipped() -> list[Recipe]:
    """The recipes that come with the package, in the order of their names."""
    folder = resources.files("wuskern.train.recipes")
    files = sorted((file for file in folder.iterdir() if file.name.endswith(".toml")), key=lambda file: file.name)
    return [_recipe(Path(file.name).stem, file.read_bytes(), shipped=True) for file in files]


def load(name: str) -> Recipe:
    """A recipe of the package by its name, or one of a user by its path, which ends with ``.toml``.

    Raises:
        ValueError: there is no such recipe, or the file is none.
    """
    if name.endswith(".toml"):
        try:
            with opened(Path(name)) as handle:
                text = handle.read()
        except OSError as error:
            raise ValueError(f"--recipe: expected a file that can be read, got {name!r} ({error})") from error
        return _recipe(Path(name).stem, text)
    by_name = {recipe.name: recipe for recipe in shipped()}
    if name not in by_name:
        raise ValueError(f"--recipe: expected one of {', '.join(by_name)}, or a path that ends with .toml, got {name!r}")
    return by_name[name]


def _recipe(name: str, text: bytes, shipped: bool = False) -> Recipe:
    try:
        content = tomllib.loads(text.decode())
    except (ValueError, RecursionError) as error:  # no UTF-8, no TOML, or too deep
        raise ValueError(f"--recipe: expected TOML in {name!r}, got {error}") from error
    wrong = [key for key, value in content.items() if not isinstance(value, KEYS.get(key, ()))]
    if "train" not in content or wrong:
        raise ValueError(
            f"--recipe: expected a table train, and of title, source and a table cifar what there is to say, in {name!r}, got "
            f"{'something else as ' + ', '.join(wrong) if wrong else 'no train'}"
        )
    for table in ("train", "cifar"):
        _check_table(name, content.get(table, {}))
    return Recipe(name, **{"title": name, "source": "", **content}, shipped=shipped)


def _check_table(name: str, table: dict[str, Any]) -> None:
    seen: set[str] = set()
    for key, value in table.items():
        plain = key.replace("-", "_")
        if plain in NOT_HERE:
            raise ValueError(f"--recipe: expected nothing of what is written over in {name!r}, got {key}")
        if plain in seen:
            raise ValueError(f"--recipe: expected each argument once in {name!r}, got {key} twice")
        seen.add(plain)
        several = plain == "policy" and isinstance(value, list) and all(isinstance(item, str) for item in value)
        if not (several or isinstance(value, str | int | float)) or isinstance(value, bool) != (plain in FLAGS):
            kind = "true or false" if plain in FLAGS else "a number or text"
            raise ValueError(f"--recipe: expected {kind} as {key} in {name!r}, got {value!r}")
