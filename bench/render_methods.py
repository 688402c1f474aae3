"""The tables over all methods, as Markdown: what each saved and what it cost, and beside it the claim of its paper."""

import statistics
from typing import Any

from bench.render import MIB, accuracy, against_control, machine, points, table
from wuskern.train.methods import DENSE, PARTS, parse
from wuskern.train.phases import PHASES


def methods(content: dict[str, Any]) -> str:
    """Which methods beat dense training in the same time first, then a row per method with its control."""
    rows = [row for row in content["summary"] if row["control_of"] is None]
    own = {row["control_of"]: row for row in content["summary"] if row["control_of"] is not None}
    header = [
        "method", "test accuracy", "test loss", "epochs", "seconds", *(f"{phase} s" for phase in PHASES), "FLOPs of dense's",
        "step's peak MiB", "times faster", "points against dense", "dense in the same time", "points against that",
    ]  # fmt: skip
    body = [_row(row, own.get(row["policy"]), content["peak_bytes"]) for row in rows]
    said = f"{len(rows[0]['accuracies'])} paired seeds, 95 % intervals; {machine(content)}."
    return "\n\n".join([_verdict(rows), table(header, body), said])


def with_claims(content: dict[str, Any]) -> str:
    """The same, and below it what each method's source claims."""
    labels = [row["policy"] for row in content["summary"] if row["control_of"] is None]
    parts = dict.fromkeys(part.name for label in labels for part in parse(label)[0].parts)
    claims = "\n".join(f"- {PARTS[name].reported}" for name in parts if PARTS[name].reported)
    return f"{methods(content)}\n\nWhat the sources claim, and why a small network on two cores may differ:\n\n{claims}"


def search(content: dict[str, Any]) -> str:
    """The rounds of the search, one table."""
    body = []
    for number, rows in enumerate(content["rounds"], 1):
        for row in rows:
            mean = f"{100 * statistics.fmean(row['accuracies']):.2f} %"
            measured = (f"{row['times_faster']:.2f}x", f"{row['flops']:.0%}")
            body.append([str(number), f"`{row['method']}`", mean, str(len(row["accuracies"])), *measured])
    return table(["round", "method", "test accuracy", "seeds", "times faster", "FLOPs of dense's"], body)


def _verdict(rows: list[dict[str, Any]]) -> str:
    compared = [row for row in rows if row["against_control"] is not None]
    better = [f"`{row['policy']}`" for row in compared if not row["loss"]]
    if not better:
        return f"**None of {len(compared)} methods is shown to beat dense training in the same time.**"
    chance = f"of {len(compared)} comparisons, {len(compared) / 40:.1g} come out so by chance"
    return f"{len(better)} of {len(compared)} methods beat dense training in the same time: {', '.join(better)} ({chance})."


def _flops(row: dict[str, Any]) -> str:
    if row["flops"] is None:
        return "-"
    masked = row.get("masked", 0.0)  # older results have none
    return f"{row['flops']:.0%}" + (f", {row['flops'] - masked:.0%} without zeros" if masked else "")


def _row(row: dict[str, Any], control: dict[str, Any] | None, peaks: dict[str, int]) -> list[str]:
    peak = peaks.get(row["policy"])
    return [
        "dense" if row["policy"] == DENSE else f"`{row['policy']}`",
        accuracy(row),
        "-" if row["test_loss"] is None else f"{row['test_loss']:.3f}",
        f"{statistics.fmean(row['epochs']):.3g}",
        f"{row['seconds']:.2f}",
        *(f"{row['phase_seconds'][phase]:.2f}" for phase in PHASES),
        _flops(row),
        "-" if peak is None else f"{peak / MIB:.1f}",
        "-" if row["faster"] is None else f"{1 / (1 - row['faster']):.2f}x",
        points(row["against_dense"]),
        "-" if control is None else accuracy(control),
        against_control(row),
    ]
