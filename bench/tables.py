"""Writes the README's numbers from bench/results, between its markers; ``--check`` only says whether they agree.

python -m bench.tables [--check]
"""

import json
import math
import re
import statistics
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
RESULTS = ROOT / "bench" / "results"
Rows = list[dict[str, Any]]


def rows_of(content: dict[str, Any], group: str) -> Rows:
    return [row for row in content["rows"] if row["group"] == group]


def table(header: list[str], body: list[list[str]]) -> str:
    lines = [header, ["---"] * len(header), *body]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def machine(content: dict[str, Any]) -> str:
    e = content["environment"]
    return f"{e['processor']}, {e['threads']} threads, torch {e['torch']}"


def conv2d(content: dict[str, Any]) -> str:
    """A line per shape and layout: fp32 and bf16 side by side; then geometric mean and worst."""
    rows = rows_of(content, "conv2d bias-only backward")
    by_case: dict[str, Rows] = {}
    for row in rows:
        by_case.setdefault(row["case"].rsplit(" ", 1)[0], []).append(row)
    body = []
    for case, pair in by_case.items():
        cells = [case]
        for row in pair:
            ms = row["milliseconds"]
            cells += [
                f"{ms['ours']:.1f}",
                f"{ms['frozen']:.1f}",
                f"{row['peer_over_ours']:.2f}x",
                f"{ms['ours'] / ms['dgrad']:.2f}x",
            ]
        body.append(cells)
    ratios = [row["peer_over_ours"] for row in rows]
    mean = math.exp(statistics.fmean(map(math.log, ratios)))
    columns = [
        f"{name}, {dtype}" for dtype in ("fp32", "bf16") for name in ("ours ms", "frozen ms", "faster", "of dgrad alone")
    ]
    return f"{table(['case', *columns], body)}\n\nGeometric mean {mean:.2f}x, worst {min(ratios):.2f}x; {machine(content)}."


def bias_grad(content: dict[str, Any]) -> str:
    body = []
    for row in rows_of(content, "bias_grad"):
        ms = row["milliseconds"]
        speed = row["bytes"] / ms["ours"] / 1e6
        body.append(
            [
                row["case"],
                f"{ms['ours']:.3f}",
                f"{ms['sum']:.3f}",
                f"{ms['copy']:.3f}",
                f"{row['peer_over_ours']:.2f}x",
                f"{speed:.1f}",
            ]
        )
    return table(["dY", "ours ms", "`dY.sum` ms", "copy ms", "faster than sum", "GB/s read"], body)


def step(content: dict[str, Any]) -> str:
    body = []
    for row in rows_of(content, "step"):
        ms = row["milliseconds"]
        could = (ms["wgrad"] + ms["weight update"]) / ms["dense"]
        saved, frozen = 1 - ms["ours"] / ms["dense"], 1 - ms["frozen"] / ms["dense"]
        body.append([row["case"], f"{ms['dense']:.1f}", f"{could:.0%}", f"{saved:.0%}", f"{frozen:.0%}"])
    return table(["step", "dense ms", "wgrad and weight update", "a skipped step saves", "stock freezing saves"], body)


def linear(content: dict[str, Any]) -> str:
    body = []
    for row in rows_of(content, "linear"):
        ms = row["milliseconds"]
        times = [f"{ms[name]:.3f}" for name in ("ours", "frozen", "dense")]
        body.append([row["case"], *times, f"{ms['ours'] / ms['frozen']:.2f}x"])
    return table(["layer", "skipped ms", "frozen ms", "dense ms", "skipped / frozen"], body)


def demo(content: dict[str, Any]) -> str:
    body = []
    for row in content["summary"]:
        accuracy = 100 * statistics.fmean(row["accuracies"])
        shares = ["-" if row[k] is None else f"{row[k]:.0%}" for k in ("s", "f", "faster")]
        body.append([row["policy"], f"{accuracy:.2f} %", f"{row['seconds']:.1f}", *shares])
    header = ["policy", "test accuracy", "seconds", "steps skipped", "a skipped step saves", "less time than dense"]
    return (
        f"{table(header, body)}\n\n{content['verdict']} ({len(content['summary'][0]['accuracies'])} seeds; {machine(content)}.)"
    )


SECTIONS = {
    "conv2d": ("cpu", conv2d),
    "bias_grad": ("cpu", bias_grad),
    "step": ("cpu", step),
    "linear": ("cpu", linear),
    "demo": ("demo", demo),
}


def filled(text: str) -> str:
    """The README with every section between ``<!-- name -->`` and ``<!-- /name -->`` made anew."""
    for name, (file, render) in SECTIONS.items():
        content = json.loads((RESULTS / f"{file}.json").read_text())
        pattern = re.compile(rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)", re.DOTALL)
        if not pattern.search(text):
            raise SystemExit(f"{README.name}: expected the markers of {name}, got none")
        rendered = render(content)
        text = pattern.sub(lambda m, r=rendered: f"{m[1]}{r}\n{m[2]}", text)
    return text


def main() -> None:
    text = README.read_text()
    new = filled(text)
    if "--check" in sys.argv[1:]:
        if new != text:
            raise SystemExit("README.md differs from bench/results: run python -m bench.tables")
    else:
        README.write_text(new)


if __name__ == "__main__":
    main()
