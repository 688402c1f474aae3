"""Writes the README's numbers, between its markers, bench/RESULTS.md and the pictures from bench/results.

python -m bench.tables [--check]    --check only says whether they agree (the pictures apart)
"""

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench import accelerating, ddp, masks, render, render_methods, render_rows, simplify, tokens, whole_step
from bench.picture import draw_cost, draw_methods
from bench.results import FOLDER, ROOT, read
from wuskern.train import pairs
from wuskern.train.files import replacing

README = ROOT / "README.md"
COST = "rowsparse cost"
FULL = ROOT / "bench" / "RESULTS.md"
RACES = {  # section -> the group that it is about, and what renders it; one that was not measured has no section
    "conv2d": ("conv2d", render.conv2d),
    "bias_grad": ("bias_grad", render.bias_grad),
    "step": ("step", render.step),
    "linear": ("linear", render.linear),
    "optim": ("optim", render.optim),
    "rowsparse_linear": ("rowsparse linear", render_rows.linear),
    "rowsparse_conv2d": ("rowsparse conv2d", render_rows.conv2d),
    "rowsparse_cost": (COST, render_rows.cost),
}
SCRIPTS: dict[str, Callable[[dict[str, Any]], str]] = {  # section -> what renders the results of a script of its own
    "regret": render_rows.regret,
    "ddp": lambda content: ddp.table(content["rows"]),
    "whole_step": whole_step.render,
    "masks": masks.render,
    "simplify": simplify.render,
    "tokens": tokens.render,
    "accelerating": accelerating.render,
    "search_vgg11": render_methods.search,
}
# Each a results.json of `wuskern train`; without it: no section.
TRAININGS: dict[str, Callable[[dict[str, Any]], str]] = {
    "demo": render.training,
    **{f"methods-{net}": render_methods.with_claims for net in ("vgg11", "sparse-vgg11")},
    **{f"methods-{net}": render_methods.methods for net in ("mlp", "gpt", "best", "sparse-mlp", "sparse-gpt")},
}
CODE: dict[str, Callable[[], str]] = {"pairs": pairs.table}  # sections that the code itself is the source of


def read_training(path: Path) -> dict[str, Any]:
    content = json.loads(path.read_text())
    if not content.get("summary"):
        raise ValueError(f"{path}: expected results of wuskern train with a summary, got none")
    return content


def groups(races: dict[str, Any]) -> set[str]:
    return {row["group"] for row in races["rows"]}


def sections(folder: Path) -> dict[str, str]:
    """The README's sections by name, rendered."""
    races = read(folder / "cpu.json")
    found = {name: make(races) for name, (group, make) in RACES.items() if group in groups(races)}
    for name, make in TRAININGS.items():
        if (path := folder / f"{name}.json").exists():
            found[name.replace("-", "_")] = make(read_training(path))
    for name, make in SCRIPTS.items():
        if (path := folder / f"{name.replace('_', '-')}.json").exists():
            found[name] = make(json.loads(path.read_text()))
    return found


def filled(text: str, rendered: dict[str, str]) -> str:
    """The README with every section between ``<!-- name -->`` and ``<!-- /name -->`` made anew.

    Raises ``ValueError`` for a section without markers and for markers without a section.
    """
    marked = set(re.findall(r"^<!-- (\w+) -->$", text, re.MULTILINE))
    for name in marked ^ set(rendered):
        wanted, got = ("results", "markers only") if name in marked else ("markers in the README", "results only")
        raise ValueError(f"{name}: expected {wanted}, got {got}")
    for name, section in rendered.items():
        pattern = re.compile(rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)", re.DOTALL)
        text = pattern.sub(lambda m, s=section: f"{m[1]}{s}\n{m[2]}", text)
    return text


def full(folder: Path) -> str:
    again = folder / "cpu-again.json"
    return render.everything(read(folder / "cpu.json"), read(again) if again.exists() else None)


def main(arguments: list[str], readme: Path = README, complete: Path = FULL, folder: Path = FOLDER) -> None:
    try:
        text = readme.read_text()
        of_code = {name: make() for name, make in CODE.items() if f"<!-- {name} -->" in text}
        new = {readme: filled(text, sections(folder) | of_code), complete: full(folder)}
    except (OSError, ValueError) as error:
        raise SystemExit(str(error)) from error
    stale = [path for path, text in new.items() if not path.exists() or path.read_text() != text]
    if "--check" in arguments:
        if stale:
            raise SystemExit(f"{', '.join(p.name for p in stale)}: not what bench/results say: run python -m bench.tables")
        return
    for path in stale:
        with replacing(path) as handle:
            handle.write(new[path].encode())
    if COST in groups(races := read(folder / "cpu.json")):
        draw_cost(folder / "rowsparse-cost.png", races)
    for path in sorted(folder.glob("methods-*.json")):
        draw_methods(path.with_suffix(".png"), read_training(path))


if __name__ == "__main__":
    main(sys.argv[1:])
