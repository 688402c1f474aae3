"""Whole experiments, written down: arguments of ``wuskern train`` in a TOML file. One per paper comes with the package.

title = "what it is"
source = "which paper, and what it reports"
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

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # type: ignore[import-not-found,unused-ignore]

KEYS = {"title": str, "source": str, "train": dict, "cifar": dict}


@dataclass(frozen=True)
class Recipe:
    """What a file says. ``cifar`` is empty where it has nothing to say of real CIFAR."""

    name: str
    title: str
    source: str
    train: dict[str, Any]
    cifar: dict[str, Any] = field(default_factory=dict)

    def arguments(self, on_cifar: bool) -> list[str]:
        """As on a command line."""
        found = []
        for key, value in (self.train | (self.cifar if on_cifar else {})).items():
            flag = f"--{key.replace('_', '-')}"
            if isinstance(value, bool):
                found += [flag] if value else []
            else:
                found.append(f"{flag}={','.join(value) if isinstance(value, list) else value}")
        return found

    def describe(self) -> str:
        what = f"{self.train.get('model', 'vgg11')} on {self.train.get('data', 'digits')}"
        cifar = f"; {self.cifar['data']} with --data-dir DIR" if "data" in self.cifar else ""
        return f"{self.name}: {self.title}\n  {self.source}\n  {what}{cifar}\n  wuskern train --recipe {self.name}"


def shipped() -> list[Recipe]:
    """Those that come with the package, by name."""
    folder = resources.files("wuskern.train.recipes")
    files = sorted((file for file in folder.iterdir() if file.name.endswith(".toml")), key=lambda file: file.name)
    return [_recipe(Path(file.name).stem, file.read_text()) for file in files]


def load(name: str) -> Recipe:
    """A recipe of the package by its name, or one of a user by its path, which ends with ``.toml``.

    Raises:
        ValueError: there is no such recipe, or the file is none.
    """
    if name.endswith(".toml"):
        try:
            return _recipe(Path(name).stem, Path(name).read_text())
        except (OSError, UnicodeDecodeError) as error:
            raise ValueError(f"--recipe: expected a file that can be read, got {name!r} ({error})") from error
    found = {recipe.name: recipe for recipe in shipped()}
    if name not in found:
        raise ValueError(f"--recipe: expected one of {', '.join(found)}, or a path that ends with .toml, got {name!r}")
    return found[name]


def _recipe(name: str, text: str) -> Recipe:
    try:
        content = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"--recipe: expected TOML in {name!r}, got {error}") from error
    missing = KEYS.keys() - content.keys() - {"cifar"}
    wrong = [key for key, value in content.items() if not isinstance(value, KEYS.get(key, ()))]
    if missing or wrong:
        raise ValueError(
            f"--recipe: expected title and source, and tables train and cifar, in {name!r}, got "
            f"{'no ' + ', '.join(sorted(missing)) if missing else 'something else as ' + ', '.join(wrong)}"
        )
    return Recipe(name, **content)
