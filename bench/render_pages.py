"""docs/methods: a page for each method, from what its class declares and says of itself, and from what was measured of it."""

import inspect
import json
import re
import textwrap
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from bench.render import accuracy, against_control, points, table
from wuskern.train import pairs
from wuskern.train.methods import PARTS, REQUIRED, defaults, parse

NETWORKS = {  # file of results -> what was trained, and the page that has all of it
    "methods-vgg11": ("VGG-11", "training"),
    "methods-mlp": ("MLP", "training"),
    "methods-gpt": ("GPT", "training"),
    "methods-best": ("VGG-11, full width", "training"),
    "methods-sparse-vgg11": ("VGG-11, sparse", "sparse"),
    "methods-sparse-mlp": ("MLP, sparse", "sparse"),
    "methods-sparse-gpt": ("GPT, sparse", "sparse"),
}
INTRODUCTION = """# Methods

Every method of the papers is a policy, one class each. On the command line it has a name, for `--policy`. A policy decides
and remembers; layers compute. Several on one model go into a `wk.policies.Compose`: frozen goes over skip, skip over rows.
[How a loop calls them](../guides/loop.md).
"""


def pages(folder: Path) -> dict[str, str]:
    """The text of each page, by its file's name; ``folder`` has the results."""
    tried = pairs.pairs()
    found = {f"{file_of(name)}.md": page(name, tried, folder) for name in PARTS}
    return found | {"index.md": index()}


def file_of(name: str) -> str:
    return name.replace("+", "-")


def index() -> str:
    body = [[f"[`{kind.__name__}`]({file_of(name)}.md)", f"`{name}`", _first_sentence(kind), _source(kind)]
            for name, kind in PARTS.items()]  # fmt: skip
    lines = [
        table(["class", "`--policy`", "what it does", "after"], body),
        '## Which two go together\n\n"+" where they do; else what only one of them can decide.',
        pairs.table(),
        "```{toctree}\n:hidden:\n\n" + "\n".join(file_of(name) for name in PARTS) + "\n```",
    ]
    return INTRODUCTION + "\n" + "\n\n".join(lines) + "\n"


def page(name: str, tried: Iterable[pairs.Pair], folder: Path) -> str:
    kind = PARTS[name]
    about = inspect.getdoc(inspect.getmodule(kind)) or ""
    parts = [
        f"# {kind.__name__}",
        f"On the command line: `{name}`. {_source(kind)}",
        markdown(inspect.getdoc(kind) or ""),
        "## The method, and what is ours",
        markdown(about),
        "## Defaults\n\nOn the command line, as `name:argument=value`; in Python, by keyword.",
        table(["argument", "default"], [[f"`{key}`", _text(value)] for key, value in defaults(name).items()]),
        "## Together with others",
        _together(name, tried),
        "## Measured",
        _measured(name, folder),
    ]
    return "\n\n".join(parts) + "\n"


# ---- what the code says ---------------------------------------------------------------------------------------------


def markdown(docstring: str) -> str:
    """A docstring as Markdown: sections become headings, their entries items of a list, and roles plain names."""
    text = re.sub(r":\w+:`~?\.?([\w.]+)`", r"`\1`", docstring).replace("``", "`")
    blocks = []
    for block in re.split(r"\n{2,}", text):
        head, _, rest = block.partition("\n")
        if re.fullmatch(r"[A-Z]\w+:", head):
            blocks += [f"**{head[:-1]}**", _items(rest)]
        else:
            blocks.append(block)
    return "\n\n".join(blocks)


def _items(text: str) -> str:
    """Each entry of a section, which begins where others do, on a line of its own, its names as code."""
    entries = re.split(r"\n(?! )", textwrap.dedent(text))
    joined = [re.sub(r"\s*\n\s*", " ", entry) for entry in entries]
    return "\n".join("- " + re.sub(r"^[\w, ]+(?=:)", lambda m: f"`{m[0]}`", entry) for entry in joined)


def _first_sentence(kind: type) -> str:
    text = markdown((inspect.getdoc(kind) or "").split("\n\n")[0]).replace("\n", " ")
    return re.split(r"(?<=\.) ", text)[0].replace("|", r"\|")


def _source(kind: type) -> str:
    return str(getattr(kind, "source", ""))


def _text(value: Any) -> str:
    return "has to be given" if value is REQUIRED else f"`{value!r}`"


# ---- what was tried and measured ------------------------------------------------------------------------------------


def _together(name: str, tried: Iterable[pairs.Pair]) -> str:
    """What it goes with, and why not with others."""
    mine = [pair for pair in tried if name in (pair.first, pair.second)]
    others = {pair.second if pair.first == name else pair.first: pair.refusal for pair in mine}
    fine = ", ".join(f"`{other}`" for other, refusal in others.items() if refusal is None)
    refused = [f"- not with `{other}`: {_reason(refusal)}" for other, refusal in others.items() if refusal is not None]
    return "\n\n".join(part for part in (f"It goes with {fine}." if fine else "", "\n".join(refused)) if part)


def _reason(refusal: str) -> str:
    """Without the argument's name and the value given."""
    return re.sub(r"^\S+: ", "", refusal).split(", got")[0]


def _measured(name: str, folder: Path) -> str:
    body = []
    for file, (network, where) in NETWORKS.items():
        for row in json.loads((folder / f"{file}.json").read_text())["summary"]:
            if row["control_of"] is None and any(part.name == name for part in parse(row["policy"])[0].parts):
                faster = "-" if row["faster"] is None else f"{1 / (1 - row['faster']):.2f}x"
                compared = points(row["against_dense"]), against_control(row)
                body.append([f"[{network}](../results/{where}.md)", f"`{row['policy']}`", accuracy(row), faster, *compared])
    if not body:
        return "Not yet."
    return table(["network", "method", "test accuracy", "times faster", "points against dense", "in the same time"], body)
