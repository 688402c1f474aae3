"""The weight gradient from some of the tokens against the dense one, as one product each.

    python -m bench.tokens [--out bench/results/tokens.json]

Of a Linear ``dY^T X``, of a Conv2d PyTorch's own weight gradient, against the same with ``wk.Tokens``: norms, choice, copies
and the product. Counted: the product takes k/n of the dense one's operations; X and dY are read once more for the norms, and k
tokens of each are copied, read and written. ``floor`` is the product of k tokens that lie side by side, measured, over the
dense one. Verified before it is timed, float32, interleaved, every number the median over rounds of the ratios in a round. Over
1: a loss.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import wuskern as wk
from bench.render import machine
from bench.results import FOLDER, provenance
from wuskern.bench.clocks import settle_allocator
from wuskern.functional import conv2d_backward, linear_backward
from wuskern.train.results import replace

FORMAT = 1
LINEARS = [
    (4096, 2048, 512),
    (2048, 1024, 1024),
    (8192, 256, 256),
    (512, 512, 512),
    (128, 4096, 4096),
    (64, 512, 10),
]  # T, N, K
CONVS = [(64, 64, 64, 32), (64, 256, 256, 8), (64, 512, 512, 4)]  # images, channels in and out, side of a 3x3
RATIOS = (0.1, 0.3, 0.5)
PICKS = ("top", "crs", "wta")
ROUNDS, LEAST = 9, 2e-3  # seconds of a timing
NEEDS = False, True, False

Grad = Callable[[Tensor, Tensor, wk.Tokens | None], Tensor]


def linear(dy: Tensor, x: Tensor, tokens: wk.Tokens | None) -> Tensor:
    weight = x.new_empty(dy.shape[1], x.shape[1])
    found = linear_backward(dy, x, weight, needs=NEEDS, tokens=tokens).weight
    assert isinstance(found, Tensor)
    return found


def conv2d(dy: Tensor, x: Tensor, tokens: wk.Tokens | None) -> Tensor:
    weight = x.new_empty(dy.shape[1], x.shape[1], 3, 3)
    found = conv2d_backward(dy, x, weight, padding=(1, 1), needs=NEEDS, tokens=tokens).weight
    assert isinstance(found, Tensor)
    return found


def verify(grad: Grad, dy: Tensor, x: Tensor) -> None:
    """All tokens: the dense gradient. The others' mean, on tokens that are all alike, is exact in each draw."""
    dense = grad(dy, x, None)
    assert torch.equal(grad(dy, x, wk.Tokens(ratio=1)), dense)
    alike, same = dy[:1].expand_as(dy).contiguous(), x[:1].expand_as(x).contiguous()
    exact = grad(alike.double(), same.double(), None)
    for pick in ("crs", "wta"):
        found = grad(alike, same, wk.Tokens(ratio=0.3, pick=pick))
        assert (found - exact).abs().max() < 1e-5 * exact.abs().max()


def seconds(call: Callable[[], object], repeat: int) -> float:
    start = time.perf_counter()
    for _ in range(repeat):
        call()
    return (time.perf_counter() - start) / repeat


def race(grad: Grad, dy: Tensor, x: Tensor) -> list[dict[str, Any]]:
    verify(grad, dy, x)
    n = len(dy)
    calls: dict[tuple[float, str], Callable[[], object]] = {(1.0, "dense"): partial(grad, dy, x, None)}
    for ratio in RATIOS:
        k = wk.Tokens(ratio=ratio).count(n)
        calls[ratio, "floor"] = partial(grad, dy[:k], x[:k], None)
        for pick in PICKS:
            calls[ratio, pick] = partial(grad, dy, x, wk.Tokens(ratio=ratio, pick=pick))
    repeats = {key: max(1, int(LEAST / seconds(call, 3))) for key, call in calls.items()}
    rounds = [{key: seconds(call, repeats[key]) for key, call in calls.items()} for _ in range(ROUNDS)]
    dense_ms = 1e3 * statistics.median(r[1.0, "dense"] for r in rounds)
    of_dense = {key: statistics.median(r[key] / r[1.0, "dense"] for r in rounds) for key in calls}
    return [
        {"ratio": ratio, "dense_ms": round(dense_ms, 4)} | {kind: round(of_dense[ratio, kind], 3) for kind in ("floor", *PICKS)}
        for ratio in RATIOS
    ]


def measure() -> list[dict[str, Any]]:
    rows = []
    for t, n, k in LINEARS:
        rows += [{"case": f"linear {t}x{n}x{k}"} | row for row in race(linear, torch.randn(t, n), torch.randn(t, k))]
    for images, channels, out, side in CONVS:
        dy, x = torch.randn(images, out, side, side), torch.randn(images, channels, side, side)
        rows += [{"case": f"conv2d {images}x{channels}x{out}x{side}"} | row for row in race(conv2d, dy, x)]
    return rows


def render(content: dict[str, Any]) -> str:
    """Times over the dense weight gradient's."""
    lines = ["| weight gradient | tokens | dense ms | " + " | ".join(("floor", *PICKS)) + " |", "| --- " * 7 + "|"]
    for row in content["rows"]:
        cells = (f"{row[kind]:.2f}" + (" **loss**" if kind != "floor" and row[kind] > 1 else "") for kind in ("floor", *PICKS))
        lines.append(f"| {row['case']} | {row['ratio']:.0%} | {row['dense_ms']:.3g} | {' | '.join(cells)} |")
    return "\n".join(lines) + f"\n\n{machine(content)}, float32."


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=FOLDER / "tokens.json", help="where results go")
    asked = parser.parse_args()
    settle_allocator()
    torch.manual_seed(0)
    content = {"format": FORMAT, "environment": provenance("cpu"), "rows": measure()}
    replace(asked.out, json.dumps(content, indent=1))
    print(render(content))


if __name__ == "__main__":
    main()
