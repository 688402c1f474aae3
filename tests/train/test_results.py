"""Shares, savings, the control and the verdict, on records written by hand."""

import json
import math
from types import SimpleNamespace

import pytest

from wuskern.train import results
from wuskern.train.loop import Epoch


def run(policy, seed, epochs):
    """epochs: (mode, seconds, test accuracy)"""
    records, total = [], 0.0
    for number, (mode, seconds, accuracy) in enumerate(epochs, 1):
        total += seconds
        records.append(Epoch(number, mode, math.nan, accuracy, accuracy, 10, seconds, total))
    return SimpleNamespace(
        policy_name=policy,
        seed=seed,
        epochs=records,
        data=SimpleNamespace(x_test=range(100)),
        settings=SimpleNamespace(device="cpu"),
    )


DENSE = [("full", 2.0, 0.5), ("full", 2.0, 0.7), ("full", 2.0, 0.9), ("full", 2.0, 0.95)]
WUS = [("full", 2.0, 0.5), ("full", 2.0, 0.7), ("skip", 1.0, 0.8), ("skip", 1.0, 0.85)]


def test_summary_worked_by_hand():
    rows = {r.policy: r for r in results.summarise([run("dense", 0, DENSE), run("wus", 0, WUS)])}
    wus = rows["wus"]
    assert (wus.s, wus.f, wus.faster, wus.seconds) == (0.5, 0.5, 0.25, 6.0)
    assert rows["dense"].s is None
    # dense had finished its third epoch when WUS was through, after 6 seconds
    assert rows[results.CONTROL].accuracies == (0.9,)
    assert rows[results.CONTROL].seconds == 6.0


def test_an_interruption_leaves_what_is_comparable():
    """Seed 1 is in its second epoch: seed 0 alone counts. Within seed 0, dense is one epoch ahead: the first three count."""
    runs = [run("dense", 0, DENSE), run("wus", 0, WUS[:3]), run("dense", 1, DENSE[:2]), run("wus", 1, WUS[:1])]
    rows = {r.policy: r for r in results.summarise(runs)}
    assert rows["dense"].accuracies == (0.9,)
    assert rows["wus"].accuracies == (0.8,)
    assert rows["wus"].faster == pytest.approx(1 - 5 / 6)
    assert results.summarise([run("dense", 0, [])]) == []


def test_a_run_without_both_modes_has_no_saving():
    rows = results.summarise([run("wus", 0, DENSE)])
    assert rows[0].s == 0
    assert rows[0].f is None
    assert results.verdict(rows, 100) == ""


def test_interval_is_students():
    mean, half = results.interval([0.01, 0.02, 0.03], step=0.001)
    assert mean == pytest.approx(0.02)
    assert half == pytest.approx(4.303 * 0.01 / math.sqrt(3))  # t(.975, 2) from a printed table
    assert results.interval([0.01, 0.01, 0.01], step=0.01) == (pytest.approx(0.01), 0.01)
    assert results.interval([0.01], step=0.01)[1] == math.inf


@pytest.mark.parametrize(
    ("finals", "word"),
    [
        ((0.96, 0.97, 0.965), "It is better than"),
        ((0.80, 0.81, 0.805), "It is worse than"),
        ((0.7, 0.9, 1.0), "not measurably"),
    ],
)
def test_verdict_says_which_is_better(finals, word):
    runs = []
    for seed, final in enumerate(finals):
        runs += [run("dense", seed, DENSE), run("wus", seed, [*WUS[:3], ("skip", 1.0, final)])]
    assert word in results.verdict(results.summarise(runs), 100)


def test_verdict_of_one_seed_decides_nothing():
    rows = results.summarise([run("dense", 0, DENSE), run("wus", 0, WUS)])
    assert results.verdict(rows, 100).endswith("ends at -5.00 points, but one seed decides nothing.")


def test_file_is_whole_or_absent(tmp_path, monkeypatch):
    path = tmp_path / "results.json"
    results.save(path, {"epochs": 4}, [run("dense", 0, DENSE)], complete=False)
    before = path.read_text()
    assert "NaN" not in before
    assert json.loads(before)["runs"][0]["epochs"][3]["test_accuracy"] == 0.95

    monkeypatch.setattr(results.os, "replace", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        results.save(path, {}, [], complete=True)
    assert path.read_text() == before
