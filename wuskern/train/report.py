"""``wuskern report``: one page, for any browser and without any network, of what ``wuskern train`` wrote."""

import argparse
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wuskern.train import output, page
from wuskern.train.command import path_of
from wuskern.train.files import opened, replacing
from wuskern.train.output import RESULTS
from wuskern.train.summary import Comparison, Row

REPORT = "report.html"
WHOLE, SHARES = ("epochs", "seeds"), ("s", "f", "flops", "faster", "test_loss")


@dataclass(frozen=True)
class Curve:
    """The epochs of a run. ``seconds`` and ``losses`` are empty where the file keeps accuracies alone; a loss that is not
    finite is None."""

    policy: str
    seed: int
    accuracies: tuple[float, ...]
    seconds: tuple[float, ...] = ()
    losses: tuple[float | None, ...] = ()


@dataclass(frozen=True)
class Results:
    """What a file of results says, checked."""

    path: Path
    complete: bool
    verdict: str
    rows: list[Row]
    curves: list[Curve]
    peaks: dict[str, float]
    environment: dict[str, Any]
    arguments: dict[str, Any]

    @property
    def title(self) -> str:
        return f"{self.arguments.get('model', 'a model')} on {self.arguments.get('data', 'data')}"


def add_arguments(report: argparse.ArgumentParser) -> None:
    results = "results.json of wuskern train, or its folder"
    results = "results.json of wuskern train, or its folder"
    report.add_argument("results", nargs="+", type=path_of, metavar="RESULTS", help=results)
    report.add_argument("--out", type=path_of, metavar="PATH", help=f"the page (default: {REPORT} beside the first results)")
    report.add_argument("--overwrite", action="store_true", help="replace a page that is there")


def of_arguments(a: argparse.Namespace) -> tuple[Path, str]:
    """The page of what :func:`add_arguments` parsed, and where it is to go. Nothing is written.

    Raises:
        ValueError: a file is none of ``wuskern train``'s, or something is in the way.
    """
    paths = [path / RESULTS if path.is_dir() else path for path in a.results]
    out = a.out if a.out is not None else paths[0].parent / REPORT
    _check_out(out, paths, a.overwrite)
    return out, page.html_of([read(path) for path in paths])


def save(path: Path, text: str) -> None:
    """Replaces the file in one step. Raises ``NotWritten`` where it cannot be written."""
    with replacing(path) as handle:
        handle.write(text.encode(errors="replace"))


def _check_out(out: Path, paths: Sequence[Path], overwrite: bool) -> None:
    try:
        output.check_file(out)
        if not out.parent.is_dir():
            raise ValueError(f"expected a path in a folder that is there, got {out}")
        for path in paths:
            if output.same(out, path):
                raise ValueError(f"expected another file than the results, got {out}")
        if out.exists() and not overwrite:
            raise ValueError(f"expected a new file (or --overwrite), got {out}")
    except (OSError, ValueError) as error:
        raise ValueError(f"--out: {error}") from error


# ---- what a file says -----------------------------------------------------------------------------------------------


def read(path: Path) -> Results:
    """The file's results. Those that ``bench.condense`` made are read as well: they keep accuracies alone.

    Raises ``ValueError`` for any other file, with what is wrong in it.
    """
    try:
        with opened(path) as handle:
            content = json.load(handle)
        return _results(path, content)
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError, OverflowError) as error:
        reason = f"no {error}" if isinstance(error, KeyError) else (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(f"RESULTS: expected results.json of wuskern train, got {path} ({reason})") from error


def _results(path: Path, content: Any) -> Results:
    content = _of_kind("content", content, dict)
    rows = [_row(_of_kind("summary", row, dict)) for row in _of_kind("summary", content["summary"], list)]
    curves = [_curve(_of_kind("runs", run, dict)) for run in _of_kind("runs", content["runs"], list)]
    peaks = _of_kind("peak_bytes", content.get("peak_bytes", {}), dict)
    return Results(
        path,
        _of_kind("complete", content["complete"], bool),
        _of_kind("verdict", content["verdict"], str),
        rows,
        [curve for curve in curves if curve.accuracies],
        {name: _number("peak_bytes", value) for name, value in peaks.items()},
        _of_kind("environment", content["environment"], dict),
        _of_kind("arguments", content["arguments"], dict),
    )


def _row(row: dict[str, Any]) -> Row:
    accuracies = tuple(_share("accuracies", value) for value in _of_kind("accuracies", row["accuracies"], list))
    if not accuracies:
        raise ValueError("accuracies: expected those of some seeds, got none")
    whole = {name: tuple(int(_number(name, value)) for value in _of_kind(name, row[name], list)) for name in WHOLE}
    if not whole["epochs"]:
        raise ValueError("epochs: expected those of some seeds, got none")
    shares = {name: None if row.get(name) is None else _number(name, row[name]) for name in SHARES}
    control = row.get("control_of")
    return Row(
        policy=_of_kind("policy", row["policy"], str),
        accuracies=accuracies,
        seconds=_number("seconds", row["seconds"]),
        phase_seconds={},
        **whole,  # type: ignore[arg-type]
        **shares,  # type: ignore[arg-type]
        control_of=None if control is None else _of_kind("control_of", control, str),
        against_dense=_comparison(row.get("against_dense")),
        against_control=_comparison(row.get("against_control")),
        loss=bool(row.get("loss")),
        masked=_number("masked", row.get("masked", 0.0)),
    )


def _comparison(value: Any) -> Comparison | None:
    if value is None:
        return None
    points, low, high = (value[name] for name in ("points", "low", "high"))
    low, high = (None if bound is None else _number("interval", bound) for bound in (low, high))
    return Comparison(_number("points", points), low, high, int(_number("seeds", value["seeds"])))


def _curve(run: dict[str, Any]) -> Curve:
    policy, seed = _of_kind("policy", run["policy"], str), int(_number("seed", run["seed"]))
    if "test_accuracy" in run:
        accuracies = _of_kind("test_accuracy", run["test_accuracy"], list)
        return Curve(policy, seed, tuple(_share("test_accuracy", value) for value in accuracies))
    epochs = [_of_kind("epochs", epoch, dict) for epoch in _of_kind("epochs", run["epochs"], list)]
    losses = [epoch.get("test_loss") for epoch in epochs]
    return Curve(
        policy,
        seed,
        tuple(_share("test_accuracy", epoch["test_accuracy"]) for epoch in epochs),
        tuple(_number("total_seconds", epoch["total_seconds"]) for epoch in epochs),
        tuple(None if loss is None or loss != loss else _number("test_loss", loss) for loss in losses),
    )


def _of_kind(name: str, value: Any, kind: type) -> Any:
    if not isinstance(value, kind):
        raise ValueError(f"{name}: expected {kind.__name__}, got {type(value).__name__}")
    return value


def _number(name: str, value: Any) -> float:
    if not isinstance(value, int | float) or isinstance(value, bool) or not math.isfinite(value) or abs(value) > 1e15:
        raise ValueError(f"{name}: expected a number, got {str(value)[:40]!r}")
    return float(value)


def _share(name: str, value: Any) -> float:
    if not 0 <= _number(name, value) <= 1:
        raise ValueError(f"{name}: expected a number from 0 to 1, got {value}")
    return float(value)
