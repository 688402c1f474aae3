"""Writes what the README and docs/ take from bench/results and from the code: tables between their markers, a page for each
method, bench/RESULTS.md and the pictures.

python -m bench.tables [--check]    --check only says whether they agree (the pictures apart)
"""

import json
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from bench import (
    accelerating,
    ddp,
    finetune_step,
    masks,
    profile,
    render,
    render_columns,
    render_curve,
    render_embedding,
    render_finetune,
    render_methods,
    render_pages,
    render_rows,
    render_summary,
    scale,
    simplify,
    tokens,
    whole_step,
)
from bench.memory import tables as memory_tables
from bench.picture import draw_cost, draw_methods
from bench.results import FOLDER, ROOT, read
from wuskern.train.files import replacing

METHODS = ROOT / "docs" / "methods"  # all of it is written here
PAGES = (ROOT / "README.md", *sorted(page for page in (ROOT / "docs").rglob("*.md") if page.parent != METHODS))
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
    "columns": render_columns.columns,
    "optim_part": render_columns.optim_part,
    "finetune_step": finetune_step.render,
    "finetune": render_finetune.render,
    "finetune_curve": render_curve.render,
    "finetune_long": render_curve.render,
    "profile": profile.render,
    "embedding": render_embedding.render,
    "ddp": lambda content: ddp.table(content["rows"]),
    "scale": scale.render,
    "whole_step": whole_step.render,
    "masks": masks.render,
    "memory": memory_tables.render,
    "simplify": simplify.render,
    "tokens": tokens.render,
    "accelerating": accelerating.render,
    "search_vgg11": render_methods.search,
    "wheel": render.wheel,
}
# Each a results.json of `wuskern train`; without it: no section.
TRAININGS: dict[str, Callable[[dict[str, Any]], str]] = {
    "demo": render.training,
    **{f"methods-{net}": render_methods.with_claims for net in ("vgg11", "sparse-vgg11")},
    **{f"methods-{net}": render_methods.methods for net in ("mlp", "gpt", "best", "sparse-mlp", "sparse-gpt")},
}
WHOLE = {"summary": render_summary.summary}  # sections of several files, made only where a page has a place for them


def read_training(path: Path) -> dict[str, Any]:
    content = json.loads(path.read_text())
    if not content.get("summary"):
        raise ValueError(f"{path}: expected results of wuskern train with a summary, got none")
    return content


def groups(races: dict[str, Any]) -> set[str]:
    return {row["group"] for row in races["rows"]}


def sections(folder: Path) -> dict[str, str]:
    """What was measured, by the name of its section, rendered."""
    races = read(folder / "cpu.json")
    found = {name: make(races) for name, (group, make) in RACES.items() if group in groups(races)}
    for name, make in TRAININGS.items():
        if (path := folder / f"{name}.json").exists():
            found[name.replace("-", "_")] = make(read_training(path))
    for name, make in SCRIPTS.items():
        if (path := folder / f"{name.replace('_', '-')}.json").exists():
            found[name] = make(json.loads(path.read_text()))
    return found


def marked(text: str) -> set[str]:
    """The sections that a page has a place for: the text between ``<!-- name -->`` and ``<!-- /name -->``."""
    return set(re.findall(r"^<!-- (\w+) -->$(?=.*^<!-- /\1 -->$)", text, re.MULTILINE | re.DOTALL))


def filled(text: str, rendered: dict[str, str]) -> str:
    """A page with each of its sections made anew."""
    for name in marked(text):
        pattern = re.compile(rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)", re.DOTALL)
        text = pattern.sub(lambda m, s=rendered[name]: f"{m[1]}{s}\n{m[2]}", text)
    return text


def check_places(texts: Iterable[str], rendered: Iterable[str]) -> None:
    """Raises ``ValueError`` for a section that no page has a place for, and for a place without a section."""
    places = set().union(*map(marked, texts))
    for name in places ^ set(rendered):
        wanted, got = ("results", "markers only") if name in places else ("markers in a page", "results only")
        raise ValueError(f"{name}: expected {wanted}, got {got}")


def full(folder: Path) -> str:
    again = folder / "cpu-again.json"
    return render.everything(read(folder / "cpu.json"), read(again) if again.exists() else None)


def written(pages: Sequence[Path], complete: Path, folder: Path) -> dict[Path, str]:
    """The new text of the pages with places, and of the list of everything. Raises ``OSError`` or ``ValueError``."""
    texts = {page: page.read_text() for page in pages}
    places = set().union(*map(marked, texts.values()))
    rendered = sections(folder) | {name: make(folder) for name, make in WHOLE.items() if name in places}
    check_places(texts.values(), rendered)
    return {page: filled(text, rendered) for page, text in texts.items()} | {complete: full(folder)}


def main(
    arguments: list[str],
    pages: Sequence[Path] = PAGES,
    complete: Path = FULL,
    folder: Path = FOLDER,
    methods: Path | None = METHODS,
) -> None:
    try:
        new = written(pages, complete, folder)
        if methods is not None:
            new |= {methods / name: text for name, text in render_pages.pages(folder).items()}
    except (OSError, ValueError) as error:
        raise SystemExit(str(error)) from error
    old = [] if methods is None else [page for page in methods.glob("*.md") if page not in new]
    stale = [path for path, text in new.items() if not path.exists() or path.read_text() != text]
    if "--check" in arguments:
        if stale or old:
            names = ", ".join(path.name for path in stale + old)
            raise SystemExit(f"{names}: not what bench/results say: run python -m bench.tables")
        return
    for path in old:
        path.unlink()
    for path in stale:
        with replacing(path) as handle:
            handle.write(new[path].encode())
    if COST in groups(races := read(folder / "cpu.json")):
        draw_cost(folder / "rowsparse-cost.png", races)
    for path in sorted(folder.glob("methods-*.json")):
        draw_methods(path.with_suffix(".png"), read_training(path))


if __name__ == "__main__":
    main(sys.argv[1:])
