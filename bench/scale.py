"""On paper: bytes and seconds of a step on 8 to 4,096 GPUs, by what layers cost here and the alpha-beta model of a ring.

    python -m bench.scale [--out bench/results/scale.json]

Nothing is measured here. What a method's step takes of a dense one's comes from bench/results/finetune-step.json, and what
backward takes of a step from whole-step.json, both of a CPU; the model, its GPU and its links are assumed (``ASSUMED``).

A ring all-reduce of S bytes among n processes takes ``2 (n - 1) alpha + 2 (n - 1) / n * S / beta``; in a tree, ``2 log2(n)
alpha`` in place of the hops. Messages are DDP's buckets; they go while backward computes, and what is left of them after it, at
least the last message, is waited for. A method of ours compares plans first: an all-gather of eight bytes, ``(n - 1) alpha``.
"""

import argparse
import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bench.render import table
from bench.results import FOLDER
from wuskern.distributed.hook import FIRST
from wuskern.train.results import replace

FORMAT = 1
GPUS = (8, 16, 64, 256, 1024, 4096)
BUCKET = 25 * 2**20
STOCK = ("dense", "LoRA")
WORTH = 1.1  # a step that is less than so many times faster does not pay for what it leaves out


@dataclass(frozen=True)
class Assumed:
    """What no machine here can check. ``rate``: FLOP/s of a GPU in a whole training step."""

    width: int = 2048
    blocks: int = 24
    vocabulary: int = 50257
    tokens: int = 16384  # of a GPU and step
    rate: float = 400e12
    gradient_bytes: int = 4
    ratio: float = 0.05  # of rows, of columns
    rank: int = 8
    trained_blocks: float = 1 / 3  # behind a frozen prefix


@dataclass(frozen=True)
class Link:
    """Of each GPU: seconds that a message takes by itself, and bytes per second."""

    name: str
    alpha: float
    beta: float
    tree: bool = False  # whether hops are as many as in a tree

    def hops(self, n: int) -> float:
        """Messages one after another in which n processes hear of one another."""
        return math.log2(n) if self.tree else n - 1


ASSUMED = Assumed()
LINKS = (
    Link("400 Gbit/s for each GPU", 5e-6, 50e9),
    Link("100 Gbit/s for each node of 8 GPUs", 2e-5, 100e9 / 8 / 8),
    Link("400 Gbit/s for each GPU, in a tree", 5e-6, 50e9, tree=True),
)


@dataclass(frozen=True)
class Costs:
    """Of a dense step: the shares that backward, and a step of another method, take of it."""

    backward: float
    of_step: dict[str, float]


def costs(folder: Path) -> Costs:
    """From what was measured; a prefix whose outputs are kept costs nothing, so that its step is that of the other blocks."""
    of_gpt = [row for row in _rows(folder, "whole-step") if row["model"].startswith("GPT")]
    (dense,) = (row for row in of_gpt if (row["call"], row["mode"]) == ("eager", "dense"))
    backward = sum(dense["milliseconds"][part] for part in ("dgrad", "bias", "wgrad")) / dense["step"]
    steps = {row["method"]: row["step_ms"] for row in _rows(folder, "finetune-step") if row["dtype"].startswith("bfloat16")}
    named = {"LoRA": "LoRA r8, all Linears", "skip": "skip", "rows": "rows 5 %", "columns": "columns 5 %"}
    of_step = {"dense": 1.0} | {name: steps[measured] / steps["dense"] for name, measured in named.items()}
    return Costs(backward, of_step | {"prefix+cache": ASSUMED.trained_blocks})


def _rows(folder: Path, name: str) -> list[dict[str, Any]]:
    return list(json.loads((folder / f"{name}.json").read_text())["rows"])


# ---- bytes -------------------------------------------------------------------------------------------------------------


def trained(a: Assumed) -> dict[str, int]:
    """The numbers that a step sends by method: those that train, and of rows the scores that choose the next ones."""
    d, weights, outputs = a.width, 12 * a.width**2, 9 * a.width  # of a block: attention 4 d^2, MLP 8 d^2; output units
    others = outputs + 4 * d  # biases and norms
    of_block = {
        "dense": weights + others,
        "LoRA": a.rank * (4 * 2 * d + 2 * 5 * d),
        "skip": others,
        "rows": round(a.ratio * weights) + outputs,
        "columns": round(a.ratio * weights),
    }
    sent = {name: a.blocks * count for name, count in of_block.items()}
    sent["prefix+cache"] = round(a.trained_blocks * sent["dense"])
    sent["dense"] += a.vocabulary * d
    return sent


# ---- seconds -----------------------------------------------------------------------------------------------------------


def all_reduce(bytes_: float, n: int, link: Link) -> float:
    return 2 * link.hops(n) * link.alpha + 2 * (n - 1) / n * bytes_ / link.beta


def messages(bytes_: int) -> list[float]:
    """The bytes of each message: DDP's buckets, and as much where a method leaves something out."""
    first = min(bytes_, FIRST)
    count = math.ceil((bytes_ - first) / BUCKET)
    return [float(first), *[(bytes_ - first) / max(count, 1)] * count]


def step(method: str, n: int, link: Link, a: Assumed, of: Costs) -> dict[str, float]:
    """The bytes and seconds of a step of one GPU."""
    sent = trained(a)[method] * a.gradient_bytes
    each = [all_reduce(size, n, link) for size in messages(sent)]
    dense = 6 * 12 * a.width**2 * a.blocks * a.tokens / a.rate
    compute = dense * of.of_step[method]
    # What a method saves it saves in backward, but for a prefix, of whose blocks nothing is left.
    backward = compute * of.backward if method == "prefix+cache" else max(dense * of.backward - (dense - compute), 0.0)
    waited = max(sum(each) - backward, each[-1])
    compared = 0.0 if method in STOCK else link.hops(n) * link.alpha
    return {
        "bytes": sent, "messages": len(each), "compute": compute, "network": sum(each), "seconds": compute + waited + compared,
    }  # fmt: skip


def computed(folder: Path = FOLDER) -> dict[str, Any]:
    """All of the results."""
    of = costs(folder)
    rows = [
        {"link": link.name, "gpus": n, "method": method} | step(method, n, link, ASSUMED, of)
        for link in LINKS
        for n in GPUS
        for method in of.of_step
    ]
    for row in rows:
        (dense,) = (r for r in rows if (r["link"], r["gpus"], r["method"]) == (row["link"], row["gpus"], "dense"))
        row["faster"] = dense["seconds"] / row["seconds"]
    return {"format": FORMAT, "assumed": asdict(ASSUMED), "links": list(map(asdict, LINKS)), "costs": asdict(of), "rows": rows}


def first_not_worth(content: dict[str, Any], link: str, method: str) -> int | None:
    """The smallest number of GPUs from which on the method's step is not ``WORTH`` it any more; None: of none."""
    faster = {row["gpus"]: row["faster"] for row in content["rows"] if (row["link"], row["method"]) == (link, method)}
    not_worth = [n for n in sorted(faster) if all(faster[m] < WORTH for m in faster if m >= n)]
    return not_worth[0] if not_worth else None


# ---- the page ----------------------------------------------------------------------------------------------------------


def render(content: dict[str, Any]) -> str:
    """Markdown: what is sent, then a table for each link, then where skipping stops to pay."""
    rows, methods = content["rows"], list(content["costs"]["of_step"])
    first = {row["method"]: row for row in rows[: len(methods)]}
    sent = [[m, f"{of['bytes'] / 1e6:,.1f}", f"{of['messages']:,}", f"{1e3 * of['compute']:,.0f}"] for m, of in first.items()]
    parts = [_assumed(Assumed(**content["assumed"])), table(["step", "MB sent", "messages", "computing, ms"], sent)]
    for link in content["links"]:
        of_link = {(row["gpus"], row["method"]): row for row in rows if row["link"] == link["name"]}
        gpus = sorted({n for n, _ in of_link})
        body = [[f"{n:,}", *(_cell(of_link[n, m]) for m in methods)] for n in gpus]
        said = f"**{link['name']}** (alpha {1e6 * link['alpha']:g} us, beta {link['beta'] / 1e9:.3g} GB/s), ms of a step:"
        parts += [said, table(["GPUs", *methods], body), _worth(content, link["name"], methods)]
    return "\n\n".join(parts)


def _assumed(a: Assumed) -> str:
    return (
        f"A transformer of {a.blocks} blocks of {a.width}, {a.tokens:,} tokens of each GPU in a step, {a.rate / 1e12:g} "
        f"TFLOP/s of a GPU in a whole step, gradients of {a.gradient_bytes} bytes; {a.ratio:.0%} of the rows or columns, "
        f"LoRA of rank {a.rank}, {a.trained_blocks:.0%} of the blocks behind a prefix."
    )


def _cell(row: dict[str, Any]) -> str:
    faster = "" if row["method"] == "dense" else f" ({row['faster']:.2f}x)"
    return f"{1e3 * row['seconds']:,.0f}{faster}"


def _worth(content: dict[str, Any], link: str, methods: list[str]) -> str:
    dense = {row["gpus"]: row for row in content["rows"] if (row["link"], row["method"]) == (link, "dense")}
    fast = [n for n, row in dense.items() if row["seconds"] < WORTH * row["compute"]]
    waits = (
        f"Dense takes less than {WORTH} times what it computes up to {max(fast):,} GPUs: there a method saves what it does not "
        "compute, and no more."
        if fast
        else f"Dense takes more than {WORTH} times what it computes everywhere."
    )
    found = {m: first_not_worth(content, link, m) for m in methods if m != "dense"}
    stops = [f"{m} from {n:,} GPUs on" for m, n in found.items() if n is not None] or ["none"]
    return f"{waits} Less than {WORTH}x as fast as dense: {', '.join(stops)}."


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.scale", description="a step on many GPUs, on paper")
    parser.add_argument("--out", type=Path, default=FOLDER / "scale.json")
    given = parser.parse_args()
    content = computed()
    replace(given.out, json.dumps(content, indent=1))
    print(render(content))


if __name__ == "__main__":
    main()
