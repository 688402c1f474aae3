"""What a set of records says: a row per policy, its control beneath it, and a verdict in words."""

import functools
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from wuskern.train.controls import epochs_in_the_time_of, seconds_per_epoch
from wuskern.train.methods import DENSE, parse
from wuskern.train.records import Epoch, Record

BySeed = dict[int, list[Epoch]]


@dataclass(frozen=True)
class Comparison:
    """A method compared with another training: the mean paired difference of test accuracy in points, and its 95 % interval,
    which one seed does not have."""

    points: float
    low: float | None
    high: float | None
    seeds: int

    @property
    def word(self) -> str:
        if self.low is None or self.high is None:
            return "undecided"
        return "better" if self.low > 0 else "worse" if self.high < 0 else "not measurably different"


@dataclass(frozen=True)
class Row:
    """One policy, or a method's control, over its seeds. Values that do not apply are None.

    ``s``: the share of steps skipped; ``f``: the share of time that a skipped step saves; their product is the reduction to
    expect. ``flops``: the share of dense's FLOPs over the whole training; ``masked``: the share that dense kernels spent on
    weights that a mask keeps zero. ``faster``: the share of time saved, measured against dense over the same epochs;
    ``against_dense``: the accuracy after those. ``loss``: whether the method is not shown to beat its control.
    """

    policy: str
    accuracies: tuple[float, ...]  # at the end, per seed
    test_loss: float | None  # at the end, mean over seeds
    seconds: float  # mean over seeds; of a control: as many as the dense run of its seed took for so many epochs
    phase_seconds: dict[str, float]  # the same by phase, as measured
    seeds: tuple[int, ...]
    epochs: tuple[int, ...]  # per seed
    s: float | None = None
    f: float | None = None
    flops: float | None = None
    faster: float | None = None
    against_dense: Comparison | None = None
    control_of: str | None = None
    against_control: Comparison | None = None
    loss: bool | None = None
    masked: float = 0.0


def control_name(method: str) -> str:
    return f"dense in the time of {method}"


def comparable(records: list[Record]) -> dict[str, BySeed]:
    """The epochs by policy and seed, without controls. After an interruption: the epochs that all policies of a seed have, for
    the seeds with most."""
    records = policy_records(records)
    common: dict[int, int] = {}
    for record in records:
        common[record.seed] = min(common.get(record.seed, len(record.epochs)), len(record.epochs))
    most = max(common.values(), default=0)
    by_policy: dict[str, BySeed] = {}
    for record in records:
        if most and common[record.seed] == most:
            by_policy.setdefault(record.policy, {})[record.seed] = record.epochs[:most]
    return by_policy


def policy_records(records: list[Record]) -> list[Record]:
    """The records that are no controls: controls are planned shorter."""
    planned = max((record.planned for record in records), default=0)
    return [record for record in records if record.planned == planned]


def control(records: list[Record], method: str, seed: int) -> Record | None:
    """The dense run over as many epochs as take the time of the method's run; None: not run. It may be the whole dense run."""
    runs = {record.policy: record for record in policy_records(records) if record.seed == seed and record.complete}
    if method not in runs or DENSE not in runs:
        return None
    planned = epochs_in_the_time_of(runs[method].epochs, runs[DENSE].epochs)
    return next((record for record in records if record.key == (DENSE, seed, planned)), None)


def summarise(records: list[Record], test_labels: int) -> list[Row]:
    """A row per policy, and beneath each method that of its control, over the seeds that have one."""
    by_policy = comparable(records)
    rows = []
    for policy, by_seed in by_policy.items():
        dense = by_policy.get(DENSE, {})
        if policy == DENSE:
            rows.append(Row(policy, **_ends(by_seed)))
            continue
        runs = {seed: control(records, policy, seed) for seed in by_seed}
        controls = {seed: record.epochs for seed, record in runs.items() if record is not None and record.complete}
        rows.append(_method_row(policy, by_seed, dense, controls, 100 / test_labels))
        if controls:
            seconds = statistics.fmean(len(epochs) * seconds_per_epoch(dense[seed]) for seed, epochs in controls.items())
            rows.append(Row(control_name(policy), **_ends(controls) | {"seconds": seconds}, control_of=policy))
    return rows


def _ends(by_seed: BySeed) -> dict[str, Any]:
    all_epochs = [epoch for epochs in by_seed.values() for epoch in epochs]
    test_loss = statistics.fmean(epochs[-1].test_loss for epochs in by_seed.values())
    phases = {
        phase: sum(epoch.phase_seconds[phase] for epoch in all_epochs) / len(by_seed) for phase in all_epochs[0].phase_seconds
    }
    return {
        "accuracies": tuple(epochs[-1].test_accuracy for epochs in by_seed.values()),
        "test_loss": test_loss if math.isfinite(test_loss) else None,
        "phase_seconds": phases,
        "seconds": statistics.fmean(epochs[-1].total_seconds for epochs in by_seed.values()),
        "seeds": tuple(by_seed),
        "epochs": tuple(map(len, by_seed.values())),
    }


def _method_row(policy: str, by_seed: BySeed, dense: BySeed, controls: BySeed, step: float) -> Row:
    """The row of one policy. ``step``: the points of accuracy that one test label makes."""
    all_epochs = [epoch for epochs in by_seed.values() for epoch in epochs]
    ratios = [epochs[-1].total_seconds / dense[seed][-1].total_seconds for seed, epochs in by_seed.items() if seed in dense]
    faster = 1 - statistics.fmean(ratios) if ratios else None
    against = compare(by_seed, controls, step) if controls else None
    return Row(
        policy,
        **_ends(by_seed),
        s=skipped(all_epochs) if parse(policy)[0].skips else None,
        f=saving(all_epochs),
        flops=computed(all_epochs),
        faster=faster,
        against_dense=compare(by_seed, dense, step) if dense else None,
        against_control=against,
        loss=against.word != "better" if against else None,
        masked=statistics.fmean((epoch.saved or {}).get("masked", 0.0) for epoch in all_epochs),
    )


def skipped(epochs: list[Epoch]) -> float:
    """The share of steps that were skipped."""
    return sum(e.steps for e in epochs if e.mode == "skip") / sum(e.steps for e in epochs)


def computed(epochs: list[Epoch]) -> float | None:
    """The share of dense's FLOPs in as many epochs, or None where that is not counted."""
    saved = [epoch.saved["total"] for epoch in epochs if epoch.saved is not None]
    return 1 - statistics.fmean(saved) if saved else None


def saving(epochs: list[Epoch]) -> float | None:
    """The share of time that a skipped step saves of a full one, by medians; None where there is none of one kind."""
    per_step = {mode: [e.seconds / e.steps for e in epochs if e.mode == mode] for mode in ("full", "skip")}
    if not per_step["full"] or not per_step["skip"]:
        return None
    return 1 - statistics.median(per_step["skip"]) / statistics.median(per_step["full"])


def compare(method: BySeed, others: BySeed, step: float) -> Comparison:
    """The comparison at the end of training, over the seeds that both have. ``step``: the points that one test label makes."""
    ends = [(method[seed][-1].test_accuracy, others[seed][-1].test_accuracy) for seed in method if seed in others]
    differences = [round(100 * (a - b), 9) for a, b in ends]  # a difference of one label is one, not a bit more
    mean, half = interval(differences, step)
    if math.isinf(half):
        return Comparison(mean, None, None, len(differences))
    return Comparison(mean, mean - half, mean + half, len(differences))


def interval(differences: Sequence[float], step: float) -> tuple[float, float]:
    """The mean of paired differences and the half-width of its 95 % interval (Student's t; infinite for a single pair).

    ``step``: the smallest difference that can be seen, one test label. The half-width is never less, since a few seeds can
    agree to the image by chance.
    """
    mean = statistics.fmean(differences)
    if len(differences) < 2:
        return mean, math.inf
    return mean, max(step, t95(len(differences) - 1) * statistics.stdev(differences) / math.sqrt(len(differences)))


@functools.cache
def t95(freedom: int) -> float:
    """The two-sided 95 % quantile of Student's t for so many degrees of freedom."""
    from scipy import stats  # scikit-learn brings it; a second to import

    return float(stats.t.ppf(0.975, freedom))


def verdict(rows: list[Row], test_labels: int) -> str:
    """A line per method: what it computed and saved, and whether it is better than dense training in the same time."""
    said = [(row.policy, _sentences(row, test_labels)) for row in rows if row.policy != DENSE and row.control_of is None]
    return "\n".join(f"{policy} {' It '.join(sentences)}" for policy, sentences in said if sentences)


def _sentences(row: Row, test_labels: int) -> list[str]:
    """The sentences of a row's verdict, each without its subject."""
    if row.faster is not None and row.flops == 1 and not row.masked:
        return ["found nothing to leave out: it trained as dense does."]
    zeros = f", {row.masked:.0%} with weights that are kept zero" if row.masked else ""
    computed = [] if row.flops is None else [f"computed {row.flops:.0%} of dense's FLOPs{zeros}."]
    return computed if row.faster is None else [*computed, _in_the_same_time(row, test_labels)]


def _in_the_same_time(row: Row, test_labels: int) -> str:
    time = f"took {abs(row.faster or 0):.0%} {'less' if (row.faster or 0) >= 0 else 'more'} time than dense"
    time += " over the same epochs."
    against = row.against_control
    if against is None:
        return f"{time} Dense in the same time was not run."
    if against.low is None:
        return f"{time} Against dense in the same time it ends at {against.points:+.2f} points, but one seed decides nothing."
    evidence = (
        f"95 % interval {against.low:+.2f} to {against.high:+.2f}, n = {against.seeds}, "
        f"one test label is {100 / test_labels:.2g}"
    )
    preposition = "from" if against.word == "not measurably different" else "than"
    return f"{time} It is {against.word} {preposition} dense in the same time: {against.points:+.2f} points ({evidence})."


def legend(rows: list[Row]) -> str:
    """What the table's columns mean, and its verdicts where something was compared."""
    lines = ["s: share of steps skipped; f: time a skipped step saves; FLOPs: share of dense's, training"]
    if any(row.against_dense for row in rows):
        lines.append("less time: than dense over the same epochs; against dense: points of accuracy after those")
    if any(row.against_control for row in rows):
        lines.append(
            "against control: points of accuracy against the line beneath, dense training in the same time with its schedule "
            "rescaled\nLOSS: not shown to be better than its control"
        )
    return "\n".join(lines)


def table(rows: list[Row]) -> str:
    """The summary as aligned text."""
    lines = cells(rows)
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    return "\n".join("  ".join(cell.ljust(w) for cell, w in zip(line, widths, strict=True)).rstrip() for line in lines)


def cells(rows: list[Row]) -> list[tuple[str, ...]]:
    """The summary's lines, cell by cell; the first one says what each column is. A control's name is set in."""

    def percent(x: float | None) -> str:
        return "-" if x is None else f"{100 * x:.1f} %"

    header = (
        "policy", "test accuracy", "loss", "epochs", "seconds", "s", "f", "FLOPs", "less time", "against dense",
        "against control",
    )  # fmt: skip
    lines: list[tuple[str, ...]] = [header]
    for r in rows:
        spread = f" +- {100 * statistics.stdev(r.accuracies):.2f}" if len(r.accuracies) > 1 else ""
        accuracy = f"{100 * statistics.fmean(r.accuracies):.2f} %{spread}"
        name = f"  {r.policy}" if r.control_of else r.policy
        loss = "-" if r.test_loss is None else f"{r.test_loss:.3f}"
        shares = (percent(v) for v in (r.s, r.f, r.flops, r.faster))
        against = _points(r.against_dense), _points(r.against_control) + (" LOSS" if r.loss else "")
        lines.append((name, accuracy, loss, f"{statistics.fmean(r.epochs):.4g}", f"{r.seconds:.1f}", *shares, *against))
    return lines


def _points(c: Comparison | None) -> str:
    if c is None:
        return "-"
    bounds = "one seed" if c.low is None else f"{c.low:+.2f} to {c.high:+.2f}"
    return f"{c.points:+.2f} ({bounds})"
