"""docs/methods: a page for each method, from what its class declares and says of itself, and from what was measured of it."""

import dataclasses
import inspect
import json
import re
import types
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

from bench import docstrings
from bench.render import accuracy, against_control, points, table
from wuskern.policies import Policy
from wuskern.policies.base import CLAIMS
from wuskern.policies.calls import CALLS
from wuskern.train import pairs
from wuskern.train.methods import PARTS, defaults, parse

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

Where to begin: of what was measured here, freezing front layers saved most time for what it cost in accuracy, with
[a cache](../guides/freezing.md) most of all; rows pay where [layers are large](../results/rows.md); masks of zeros save no time
in training. Whether a method beats [dense training in the same time](../results/training.md) is another question.
"""


def pages(folder: Path) -> dict[str, str]:
    """The text of each page, by its file's name; ``folder`` has the results."""
    tried = pairs.pairs()
    found = {f"{file_of(name)}.md": page(name, tried, folder) for name in PARTS}
    return found | {"index.md": index()}


def file_of(name: str) -> str:
    return name.replace("+", "-")


def index() -> str:
    body = [[f"[`{kind.__name__}`]({file_of(name)}.md)", f"`{name}`", _first_sentence(kind), kind.source]
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
    parts = [
        f"# {kind.__name__}",
        f"On the command line: `{name}`. Source: {kind.source}.",
        _about(kind),
        f"## Calls\n\n{_needs(kind)}",
        "## The method, and what is ours",
        docstrings.markdown(inspect.getdoc(inspect.getmodule(kind)) or ""),
        f"## Arguments and defaults\n\nOn the command line `{name}:argument=value`; in Python by keyword.",
        table(["argument", "default", "values"], [_argument(name, field) for field in dataclasses.fields(kind)]),
        "## Together with others",
        _together(name, tried),
        "## Measured",
        kind.reported,
        _measured(name, folder),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


# ---- what the code says ---------------------------------------------------------------------------------------------


def _about(kind: type) -> str:
    """Its docstring, and those of the classes that it shares arguments with and that are no methods themselves."""
    shared = [base for base in kind.__mro__[1:] if issubclass(base, Policy) and base is not Policy and not base.name]
    texts = [docstrings.markdown(inspect.getdoc(kind) or "")]
    texts += [f"## Shared: {base.__name__}\n\n{docstrings.markdown(inspect.getdoc(base) or '')}" for base in shared]
    return "\n\n".join(texts)


def _first_sentence(kind: type) -> str:
    text = docstrings.markdown((inspect.getdoc(kind) or "").split("\n\n")[0]).replace("\n", " ")
    return re.split(r"(?<=\.) ", text)[0].replace("|", r"\|")


def _needs(kind: Any) -> str:
    """The calls without which it has no effect; a sampler says so itself."""
    if not kind.needs or not issubclass(kind, Policy):
        return "It needs no calls beyond those that its text names."
    return "It needs these calls:\n\n" + "\n".join(f"- `{call}`, {CALLS[call]}" for call in kind.needs)


def _argument(name: str, field: dataclasses.Field[Any]) -> list[str]:
    required = field.default is dataclasses.MISSING
    default = "has to be given" if required else f"`{field.default!r}`"
    if field.name not in defaults(name):
        default += "; in Python alone" if field.metadata.get("from_python") else "; on the command line the run gives it"
    return [f"`{field.name}`", default, _values(field.type).replace("|", r"\|")]


def _values(annotation: Any) -> str:
    if get_origin(annotation) is Literal:
        return ", ".join(f'"{value}"' for value in get_args(annotation))
    if get_origin(annotation) in (Union, types.UnionType):
        return " or ".join(_values(part) for part in get_args(annotation))
    name = getattr(annotation, "__name__", str(annotation))
    return {"NoneType": "None", "Any": "anything"}.get(name, name)


# ---- what was tried and measured ------------------------------------------------------------------------------------


def _together(name: str, tried: Iterable[pairs.Pair]) -> str:
    """What it goes with; and of the others, by the reason, what only one of the two can decide."""
    others: dict[str | None, list[str]] = {}
    for pair in tried:
        if name in (pair.first, pair.second):
            others.setdefault(_reason(pair), []).append(f"`{pair.second if pair.first == name else pair.first}`")
    fine = others.pop(None, [])
    refused = [f"- Not with {', '.join(names)}: {reason}." for reason, names in others.items()]
    return "\n\n".join(part for part in (f"It goes with {', '.join(fine)}." if fine else "", "\n".join(refused)) if part)


def _reason(pair: pairs.Pair) -> str | None:
    if pair.refusal is None:
        return None
    if pair.reason in CLAIMS:
        return f"only one can decide of a layer {CLAIMS[pair.reason]}"
    return re.sub(r"^\S+: ", "", pair.refusal).split(", got")[0]


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
