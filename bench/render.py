"""Results as Markdown. A number that misses its aim is marked in bold where it stands."""

import statistics
from typing import Any

from bench.compare import by_group
from bench.results import Row, geometric_mean, medians

MIB = 2**20
LARGE = 8 * MIB  # bytes of dY from which bias_grad is held against a copy
ADAMW_ROWS = "AdamW 4096x4096 float32 5%"
SLOW_SUM = "conv 16x256x56x56 NCHW bfloat16"
WHAT = {
    "conv2d": "Backward of one Conv2d, ours bias-only, against the stock layer with its weight frozen and its bias training. "
    "Floor: the library's dgrad alone and one read of dY at the measured bandwidth.",
    "bias_grad": "Against `dY.sum`, and a copy of dY into a preallocated tensor.",
    "row_stats": "Against `dY.sum` and `dY.abs().sum`, and a copy of dY into a preallocated tensor.",
    "gather_rows": "Against `index_select`, made contiguous in the memory format of dY, and a copy of all of dY into a "
    "preallocated tensor.",
    "pack_bits": "Against PyTorch's `x > 0`, and one read of x.",
    "piecewise_": "Against PyTorch's ReLU, which keeps its output, and a copy of x into a preallocated tensor.",
    "scale_by_bits": "Against PyTorch's backward of a ReLU, and a copy of dY into a preallocated tensor.",
    "scale_channels": "Against a product that PyTorch broadcasts, and a copy of dY into a preallocated tensor.",
    "linear": "Forward and backward of one Linear, against the stock layer with its weight frozen. Floor: fprop and "
    "dgrad alone and one read of dY.",
    "host cost": "Forward and backward of a Linear that is all host cost, against `F.linear` of the same parameters.",
    "rowsparse linear": 'Backward of one Linear, TopK, scope "both", the gradient dense or compact, against unified top-k in '
    "plain PyTorch (and that compiled) and the stock layer, dense and with its weight frozen. Ideal: `products`, the library's "
    "two on operands compact already, `gather`, the index_select of dY's rows, and one read of dY at the measured bandwidth.",
    "rowsparse conv2d": "The same of one Conv2d.",
    "rowsparse cost": "Backward against the share of rows, ours and stock; the ideal as above.",
    "columns linear": "Forward and backward of one Linear, Columns, against a slice that is a parameter of its own in plain "
    "PyTorch, and stock, dense and with its weight frozen. Ideal: `products`, the library's three on columns compact already, "
    "`gather`, and one read of dY.",
    "columns conv2d": "The same of one Conv2d.",
    "optim": "A whole `optimizer.step()`: `wk.optim` with the compact gradient of some rows, torch's with a "
    "dense gradient. Over best: the faster of `foreach` and `fused` in each round, over ours.",
    "step": "A training step of VGG-16 on 64 images of 3x32x32: SGD with momentum and weight decay.",
}


def table(header: list[str], body: list[list[str]]) -> str:
    lines = [header, ["---"] * len(header), *body]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def machine(content: dict[str, Any]) -> str:
    e = content["environment"]
    return f"{e['processor']}, {e['threads']} threads, torch {e['torch']}"


def rows_of(content: dict[str, Any], group: str) -> list[Row]:
    """Raises ``ValueError`` where a run was of a part only."""
    rows = [row for row in content["rows"] if row["group"] == group]
    if not rows:
        raise ValueError(f"expected rows of {group}, got none: measure everything with make bench")
    return rows


# ---- one number -----------------------------------------------------------------------------------------------------


def missed(row: Row, name: str) -> str | None:
    """What is wrong with a derived number, or None. Judged as printed: by two decimals."""
    value = round(row["derived"][name]["median"], 2)
    if name == "faster" and row["group"] != "host cost" and value < 1:
        return "slower"
    if name == "over_best" and row["case"] == ADAMW_ROWS and value < 12:
        return "under 12x"
    if name == "over_best" and value < 1:
        return "slower"
    if name == "over_dense" and value < row["least_over_dense"]:
        return "slower" if value < 1 else f"under {row['least_over_dense']}x"
    if name == "of_ideal" and row["group"].startswith("columns") and value > 1.25:
        return "over 1.25"
    if name == "of_floor" and value > 1.1:
        return "over 1.1"
    if name == "of_copy" and row["size"] >= LARGE and value > 0.8:
        return "over 0.8"
    if name == "of_possible" and value < 0.9:
        return "under 90%"
    if name == "extra_microseconds" and value > row["limit_microseconds"]:
        return f"over {row['limit_microseconds']}"
    return None


PERCENT = {"could_save", "saves", "frozen_saves", "of_possible"}


def number(row: Row, name: str) -> str:
    value = row["derived"][name]["median"]
    text = f"{value:.0%}" if name in PERCENT else f"{value:.1f}" if name == "extra_microseconds" else f"{value:.2f}x"
    mark = missed(row, name)
    return f"{text} **{mark}**" if mark else text


def worst(rows: list[Row], name: str) -> str:
    """The worst of a group: the lowest ``faster`` or ``over_``, the highest of everything else."""
    rows = [row for row in rows if name in row["derived"]]
    low = name == "faster" or name.startswith("over_")
    return number((min if low else max)(rows, key=lambda row: row["derived"][name]["median"]), name)


def mean(rows: list[Row], name: str) -> str:
    return f"{geometric_mean(medians(rows, name)):.2f}x"


def count_missed(rows: list[Row], name: str) -> str:
    return f"{sum(missed(row, name) is not None for row in rows)} of {len(rows)}"


# ---- sections of the README and of docs/ ----------------------------------------------------------------------------


def conv2d(content: dict[str, Any]) -> str:
    rows, body = rows_of(content, "conv2d"), []
    for dtype in dict.fromkeys(row["dtype_name"] for row in rows):
        of_dtype = [row for row in rows if row["dtype_name"] == dtype]
        for layout in (*dict.fromkeys(row["layout"] for row in rows), "both"):
            some = [row for row in of_dtype if layout in (row["layout"], "both")]
            cells = [mean(some, "faster"), worst(some, "faster"), mean(some, "of_floor"), worst(some, "of_floor")]
            body.append([dtype, layout, *cells, count_missed(some, "of_floor")])
    header = ["dtype", "layout", "faster: geometric mean", "worst", "of the floor: geometric mean", "worst", "over 1.1"]
    slower = [row["case"] for row in rows if missed(row, "faster")]
    return (
        f"{table(header, body)}\n\n{len(rows)} cases, each among [all cases](all.md); slower than stock: "
        f"{', '.join(slower) or 'none'}; {machine(content)}, {min(row['rounds'] for row in rows)} rounds."
    )


def bias_grad(content: dict[str, Any]) -> str:
    rows, body = rows_of(content, "bias_grad"), []
    for dtype in dict.fromkeys(row["dtype_name"] for row in rows):
        for size, large in (("from 8 MiB", True), ("smaller", False)):
            some = [row for row in rows if row["dtype_name"] == dtype and (row["size"] >= LARGE) == large]
            if some:
                copies = mean(some, "of_copy"), worst(some, "of_copy")
                slower = count_missed(some, "faster")
                body.append([dtype, size, mean(some, "faster"), worst(some, "faster"), slower, *copies])
    header = [
        "dtype",
        "dY",
        "faster than `dY.sum`: geometric mean",
        "worst",
        "slower",
        "of a copy's time: geometric mean",
        "worst",
    ]
    slow_sum = ", ".join(number(row, "faster") for row in rows if row["case"] == SLOW_SUM)
    return (
        f"{table(header, body)}\n\nWhere torch's sum is slow ({SLOW_SUM}): {slow_sum or '-'} faster. "
        f"All {len(rows)} cases are among [all cases](all.md)."
    )


def optim(content: dict[str, Any]) -> str:
    body = [
        [
            row["case"],
            *(f"{row['milliseconds'][name]:.3f}" for name in ("ours", "fused", "foreach")),
            number(row, "over_best"),
        ]
        for row in rows_of(content, "optim")
    ]
    return table(["optimizer, weight, rows", "ours ms", "torch's fused ms", "foreach ms", "faster than the best"], body)


def step(content: dict[str, Any]) -> str:
    names = ("could_save", "saves", "of_possible", "frozen_saves")
    body = [
        [row["case"], f"{row['milliseconds']['dense']:.0f}", *(number(row, name) for name in names)]
        for row in rows_of(content, "step")
    ]
    header = [
        "step",
        "dense ms",
        "wgrad and weight update",
        "a skipped step saves",
        "of what is possible",
        "stock freezing saves",
    ]
    return table(header, body)


def linear(content: dict[str, Any]) -> str:
    body = []
    for row in rows_of(content, "linear"):
        times = [f"{row['milliseconds'][name]:.3f}" for name in ("ours", "frozen", "dense")]
        body.append([row["case"], *times, number(row, "faster"), number(row, "of_floor")])
    costs = [
        [row["case"], *(f"{1e3 * row['milliseconds'][n]:.1f}" for n in ("ours", "frozen")), number(row, "extra_microseconds")]
        for row in rows_of(content, "host cost")
    ]
    layers = table(["layer", "skipped ms", "frozen ms", "dense ms", "faster than frozen", "of the floor"], body)
    return f"{layers}\n\n{table(['host cost', 'skipped us', '`F.linear` us', 'more us'], costs)}"


# ---- time to accuracy: results.json of `wuskern train` ---------------------------------------------------------------


def training(content: dict[str, Any]) -> str:
    rows = content["summary"]
    header = [
        "policy",
        "test accuracy",
        "epochs",
        "seconds",
        "steps skipped",
        "a skipped step saves",
        "less time than dense",
        "points against dense in the same time",
    ]
    verdict = "\n".join(f"- {line}" for line in content["verdict"].splitlines())
    seeds = len(rows[0]["accuracies"])
    return f"{table(header, [_policy(row) for row in rows])}\n\n{verdict}\n\n{seeds} seeds; {machine(content)}."


def _policy(row: dict[str, Any]) -> list[str]:
    shares = ["-" if row[name] is None else f"{row[name]:.0%}" for name in ("s", "f", "faster")]
    return [
        row["policy"],
        accuracy(row),
        f"{statistics.fmean(row['epochs']):.3g}",
        f"{row['seconds']:.1f}",
        *shares,
        against_control(row),
    ]


def accuracy(row: dict[str, Any]) -> str:
    accuracies = [100 * accuracy for accuracy in row["accuracies"]]
    spread = f" +- {statistics.stdev(accuracies):.2f}" if len(accuracies) > 1 else ""
    return f"{statistics.fmean(accuracies):.2f} %{spread}"


def against_control(row: dict[str, Any]) -> str:
    return points(row["against_control"]) + (" **loss**" if row["loss"] else "")


def points(comparison: dict[str, Any] | None) -> str:
    if comparison is None:
        return "-"
    bounds = "one seed" if comparison["low"] is None else f"{comparison['low']:+.2f} to {comparison['high']:+.2f}"
    return f"{comparison['points']:+.2f} ({bounds})"


# ---- the wheel ------------------------------------------------------------------------------------------------------


def wheel(content: dict[str, Any]) -> str:
    libraries = ", ".join(f"{name} {size / 1e6:.1f} MB" for name, size in content["libraries"].items())
    glibc = max(content["glibc"].values(), key=lambda version: tuple(map(int, version.split("."))))
    return (
        f"`{content['wheel']}`: {content['bytes'] / 1e6:.1f} MB (unpacked: {libraries}), for {content['architectures']}, by "
        f"nvcc {content['nvcc']}, in {content['seconds'] / 60:.0f} minutes ({content['of_that']}). It needs glibc "
        f"{glibc} or newer."
    )


# ---- bench/RESULTS.md: everything -----------------------------------------------------------------------------------


def everything(content: dict[str, Any], again: dict[str, Any] | None = None) -> str:
    """Every row of a run, and how a second one compares with it."""
    versions = "; ".join(f"{name} {value}" for name, value in content["environment"].items() if value is not None)
    ceilings = "; ".join(f"{name} {value}" for name, value in content["ceilings"].items())
    parts = [
        "# Measured\n",
        "Written by `python -m bench.tables` from `bench/results/`. Times are medians in milliseconds, +- their interquartile",
        "range over the median; ratios are medians over rounds, +- their interquartile range. `of_ceiling`: share of the rate",
        "that a copy, a read or a matrix product of the same dtype reaches. Peak: MiB handed out at once in one call.\n",
        f"Environment: {versions}.\n",
        f"Ceilings: {ceilings}. Rounds: {min(row['rounds'] for row in content['rows'])} or more.",
    ]
    groups = dict.fromkeys(row["group"] for row in content["rows"])
    parts += [f"\n## {group}\n\n{WHAT[group]}\n\n{_full(rows_of(content, group))}" for group in groups]
    if again is not None:
        parts.append(f"\n## A second run\n\nOf commit {again['environment']['commit']}.\n")
        for group, statement, lines in by_group(content, again):
            parts.append("\n".join([f"- {group}: {statement}", *(f"  - {line}" for line in lines)]))
    return "\n".join(parts) + "\n"


def _full(rows: list[Row]) -> str:
    first = rows[0]
    variants, derived = list(first["milliseconds"]), list(first["derived"])
    peaks = ["ours", first["peer"]]
    rates = [name for name in ("GB/s", "GFLOP/s", "of_ceiling") if any(row[name] for row in rows)]
    body = []
    for row in rows:
        cells = [f"{row['milliseconds'][v]:.4g} +- {row['spread'][v]:.0%}" for v in variants]
        cells += [f"{number(row, name)} +- {row['derived'][name]['iqr']:.2g}" for name in derived]
        cells += [f"{row[name]:.0%}" if name == "of_ceiling" else f"{row[name]:.4g}" for name in rates]
        body.append([_case(row), *cells, *(f"{row['peak_bytes'][v] / MIB:.3g}" for v in peaks)])
    header = ["case", *(f"{v} ms" for v in variants), *(name.replace("_", " ") for name in derived)]
    return table([*header, *(name.replace("_", " ") for name in rates), *(f"{v} peak" for v in peaks)], body)


def _case(row: Row) -> str:
    """With the numbers of a convolution: N, C, O, H, k, stride, groups."""
    return f"{row['case']} ({', '.join(map(str, row['problem']))})" if "problem" in row else row["case"]
