"""The sections about row-sparse layers: means over layers by share of the rows and dtype, and the cost against that share."""

import itertools
import math
import statistics
from typing import Any

from bench.render import machine, mean, missed, rows_of, table, worst
from bench.results import Row, geometric_mean, medians

OVER_PLAIN = "faster"  # the peer of these groups
# The least that ours is faster than plain top-k, by group, share of the rows and dtype: a geometric mean.
LINEAR_OVER_PLAIN = {0.05: 2.2, 0.2: 1.35}
CONV2D_OVER_PLAIN = {  # without the best layer
    (0.05, "float32"): 1.25,
    (0.2, "float32"): 1.1,
    (0.05, "bfloat16"): 1.5,
    (0.2, "bfloat16"): 1.35,
}
OF_IDEAL, COMPACT_OF_IDEAL = 1.25, 1.15  # at most, geometric means


def linear(content: dict[str, Any]) -> str:
    return _layers(rows_of(content, "rowsparse linear"), content)


def conv2d(content: dict[str, Any]) -> str:
    return _layers(rows_of(content, "rowsparse conv2d"), content)


def _layers(rows: list[Row], content: dict[str, Any]) -> str:
    body = []
    for ratio in dict.fromkeys(row["ratio"] for row in rows):
        for dtype in (*dict.fromkeys(row["dtype_name"] for row in rows), "both"):
            some = [row for row in rows if row["ratio"] == ratio and dtype in (row["dtype_name"], "both")]
            if some:
                body.append([f"{ratio:.0%}", dtype, *_over_plain(some, ratio, dtype), *_others(some)])
    header = [
        "rows trained",
        "dtype",
        "over plain top-k: geometric mean",
        "without its best layer",
        "worst",
        "over compiled",
        "over frozen",
        "over dense",
        "worst",
        "of the ideal",
        "compact",
    ]
    short = [row["case"] for row in rows if missed(row, "over_dense")]
    return (
        f"{table(header, body)}\n\n{len(rows)} cases, each among [all cases](all.md); under their aim over "
        f"dense: {', '.join(short) or 'none'}; {machine(content)}, {min(row['rounds'] for row in rows)} rounds."
    )


def _over_plain(rows: list[Row], ratio: float, dtype: str) -> list[str]:
    """Mean, mean without the best layer, worst. The aim is of the first for a Linear, of the second for a Conv2d."""
    whole, rest = (geometric_mean(medians(some, OVER_PLAIN)) for some in (rows, without_best(rows, OVER_PLAIN)))
    if rows[0]["group"] == "rowsparse linear":
        return [_at_least(whole, LINEAR_OVER_PLAIN.get(ratio)), _at_least(rest, None), worst(rows, OVER_PLAIN)]
    return [_at_least(whole, None), _at_least(rest, CONV2D_OVER_PLAIN.get((ratio, dtype))), worst(rows, OVER_PLAIN)]


def _others(rows: list[Row]) -> list[str]:
    over = [mean(rows, f"over_{peer}") for peer in ("compiled", "frozen", "dense")]
    ideal = [
        _at_most(geometric_mean(medians(rows, name)), most)
        for name, most in (("of_ideal", OF_IDEAL), ("compact_of_ideal", COMPACT_OF_IDEAL))
    ]
    return [*over, worst(rows, "over_dense"), *ideal]


def without_best(rows: list[Row], name: str) -> list[Row]:
    """Without the layer, in all its layouts and dtypes, whose geometric mean is the largest; all where there is one alone."""
    of_layer = {use: [row for row in rows if row["use"] == use] for use in dict.fromkeys(row["use"] for row in rows)}
    best = max(of_layer, key=lambda use: geometric_mean(medians(of_layer[use], name)))
    return [row for row in rows if row["use"] != best] or rows


def _at_least(value: float, least: float | None) -> str:
    """Judged as printed: by two decimals."""
    short = least is not None and round(value, 2) < least
    return f"{value:.2f}x" + (f" **under {least}**" if short else "")


def _at_most(value: float, most: float) -> str:
    return f"{value:.2f}x" + (f" **over {most}**" if round(value, 2) > most else "")


# ---- cost against the share of the rows -----------------------------------------------------------------------------


def cost(content: dict[str, Any]) -> str:
    """Each cell: ours over dense, and in brackets the ideal over dense."""
    problems = cost_by_problem(content)
    ratios = sorted({row["ratio"] for rows in problems.values() for row in rows})
    body = []
    for use, rows in problems.items():
        cells = {row["ratio"]: f"{ours_of_dense(row):.2f} ({ideal_of_dense(row):.2f})" for row in rows}
        dense = f"{rows[-1]['milliseconds']['dense']:.2f}"
        body.append([use, dense, *(cells.get(ratio, "-") for ratio in ratios), _percent(crossing(rows))])
    return table(["backward of", "dense ms", *(f"{ratio:.0%}" for ratio in ratios), "as slow as dense from"], body)


def cost_by_problem(content: dict[str, Any]) -> dict[str, list[Row]]:
    """The rows of each problem, by ascending share."""
    rows = sorted(rows_of(content, "rowsparse cost"), key=lambda row: row["ratio"])
    uses = dict.fromkeys(row["use"] for row in content["rows"] if row["group"] == "rowsparse cost")
    return {use: [row for row in rows if row["use"] == use] for use in uses}


def ours_of_dense(row: Row) -> float:
    return 1 / row["derived"]["faster"]["median"]


def ideal_of_dense(row: Row) -> float:
    return row["derived"]["ideal_of_dense"]["median"]


def crossing(rows: list[Row]) -> float | None:
    """The share from which ours is as slow as dense, on a line between those measured (of logarithms); None: nowhere."""
    points = [(math.log(row["ratio"]), math.log(ours_of_dense(row))) for row in rows]
    if points[0][1] >= 0:
        return rows[0]["ratio"]
    for (x0, y0), (x1, y1) in itertools.pairwise(points):
        if y0 < 0 <= y1:
            return math.exp(x0 - y0 * (x1 - x0) / (y1 - y0))
    return None


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{share:.0%}"


# ---- the choice of paths: bench/regret.py ------------------------------------------------------------------------------


def regret(content: dict[str, Any]) -> str:
    """By kind of product; over 10 % at the median or 25 % at worst is marked."""
    kinds: dict[str, list[float]] = {}
    for row in content["rows"]:
        kind = "Linear" if row["problem"].startswith("Linear") else f"Conv2d {row['problem'][-2:]}"
        for name in (kind, "all"):
            kinds.setdefault(name, []).append(row["regret"])
    body = []
    for name in [*(kind for kind in kinds if kind != "all"), "all"]:
        median, most = statistics.median(kinds[name]), max(kinds[name])
        body.append([name, f"{len(kinds[name])}", f"{median:.1%}{_over(median, 0.1)}", f"{most:.1%}{_over(most, 0.25)}"])
    return table(["", "problems", "regret: median", "worst"], body)


def _over(value: float, limit: float) -> str:
    return f" **over {limit:.0%}**" if value > limit else ""
