"""Shares, savings, controls, intervals and the verdict, on records written by hand."""

import math
from dataclasses import replace

import pytest

from wuskern.train import picture, summary
from wuskern.train.controls import epochs_in_the_time_of
from wuskern.train.records import Epoch, Record

IMAGES = 100


def record(policy, seed, epochs, planned=4):
    """epochs: (mode, seconds, test accuracy)"""
    records, total = [], 0.0
    for number, (mode, seconds, accuracy) in enumerate(epochs, 1):
        total += seconds
        records.append(Epoch(number, mode, math.nan, accuracy, accuracy, 10, seconds, total, lr=0.1))
    return Record(policy, seed, planned, records)


DENSE = [("full", 2.0, 0.5), ("full", 2.0, 0.7), ("full", 2.0, 0.9), ("full", 2.0, 0.95)]
WUS = [("full", 2.0, 0.5), ("full", 2.0, 0.7), ("skip", 1.0, 0.8), ("skip", 1.0, 0.85)]
CONTROL = [("full", 2.1, 0.6), ("full", 2.0, 0.8), ("full", 2.1, 0.92)]


def seed_of(seed, wus=WUS, control=CONTROL):
    return [record("dense", seed, DENSE), record("wus", seed, wus), record("dense", seed, control, planned=3)]


def rows_of(records):
    return {row.policy: row for row in summary.summarise(records, IMAGES)}


@pytest.mark.parametrize(
    ("seconds", "epochs"),
    [(8.0, 4), (6.0, 3), (6.9, 3), (7.1, 4), (5.1, 3), (4.9, 2), (0.1, 1), (100.0, 4)],
)
def test_epochs_in_the_time_of_a_method(seconds, epochs):
    """Dense takes 2 seconds an epoch, 8 in all."""
    dense = record("dense", 0, DENSE).epochs
    assert epochs_in_the_time_of(record("wus", 0, [("full", seconds, 0.5)]).epochs, dense) == epochs


def test_summary_worked_by_hand():
    rows = rows_of(seed_of(0))
    wus = rows["wus"]
    assert (wus.s, wus.f, wus.faster, wus.seconds) == (0.5, 0.5, 0.25, 6.0)
    assert rows["dense"].s is None
    # dense does 3 epochs in the 6 seconds of WUS
    control = rows["dense in the time of wus"]
    assert (control.accuracies, control.epochs, control.control_of) == ((0.92,), (3,), "wus")
    assert control.seconds == 6.0  # 3 epochs of the dense run; what it took itself, later, is another time's
    assert wus.against_control.points == pytest.approx(-7)
    assert wus.against_control.low is None
    assert wus.loss is True


def test_each_method_stands_above_its_own_control():
    lr = [("full", 2.0, 0.5), ("skip", 0.5, 0.7), ("skip", 0.5, 0.8), ("skip", 0.5, 0.97)]
    records = [*seed_of(0), record("wus+lr", 0, lr), record("frozen", 0, DENSE), record("dense", 0, DENSE[:2], planned=2)]
    rows = summary.summarise(records, IMAGES)
    assert [row.policy for row in rows] == [
        "dense", "wus", "dense in the time of wus", "wus+lr", "dense in the time of wus+lr", "frozen",
        "dense in the time of frozen",
    ]  # fmt: skip
    assert [row.epochs[0] for row in rows] == [4, 4, 3, 4, 2, 4, 4]
    assert rows[3].against_control.points == pytest.approx(100 * (0.97 - 0.7))
    assert rows[5].against_control.points == 0  # as slow as dense: the control is the dense run


def test_without_dense_nothing_is_compared():
    rows = rows_of([record("wus", 0, WUS)])
    assert list(rows) == ["wus"]
    assert rows["wus"].loss is None
    assert summary.verdict(list(rows.values()), IMAGES) == ""


def test_an_interruption_leaves_what_is_comparable():
    """Seed 1 is in its second epoch: seed 0 alone counts. Within seed 0, dense is one epoch ahead: the first three count."""
    records = [record("dense", 0, DENSE), record("wus", 0, WUS[:3]), record("dense", 1, DENSE[:2]), record("wus", 1, WUS[:1])]
    rows = rows_of(records)
    assert rows["dense"].accuracies == (0.9,)
    assert rows["wus"].accuracies == (0.8,)
    assert rows["wus"].faster == pytest.approx(1 - 5 / 6)
    assert list(rows) == ["dense", "wus"]
    assert summary.summarise([record("dense", 0, [])], IMAGES) == []


def test_a_control_that_was_interrupted_does_not_count():
    records = [*seed_of(0), *seed_of(1, control=CONTROL[:2])]
    rows = rows_of(records)
    assert rows["wus"].seeds == (0, 1)
    assert rows["dense in the time of wus"].seeds == (0,)
    assert rows["wus"].against_control.seeds == 1
    assert rows_of(seed_of(0, control=CONTROL[:2]))["wus"].against_control is None
    verdict = summary.verdict(summary.summarise(seed_of(0, control=CONTROL[:2]), IMAGES), IMAGES)
    assert verdict == "wus took 25% less time than dense over the same epochs. Dense in the same time was not run."


def test_a_run_without_both_modes_has_no_saving():
    rows = summary.summarise([record("dense", 0, DENSE), record("wus", 0, DENSE)], IMAGES)
    assert rows[1].s == 0
    assert rows[1].f is None
    rows = [replace(row, flops=1.0) for row in rows]
    assert summary.verdict(rows, IMAGES) == "wus found nothing to leave out: it trained as dense does."


def saving_half(policy, mode="rows"):
    """Half the seconds, and of the FLOPs a quarter, then three quarters."""
    made = record(policy, 0, [(mode, 1.0, accuracy) for accuracy in (0.4, 0.6, 0.8, 0.9)])
    shares = (0.25, 0.25, 0.75, 0.75)
    made.epochs = [replace(epoch, saved={"total": share}) for epoch, share in zip(made.epochs, shares, strict=True)]
    return made


def test_flops_of_zeros_that_dense_kernels_compute_are_said_apart():
    made = record("mest", 0, DENSE)
    shares = (0.5, 0.5, 0.75, 0.75)
    made.epochs = [replace(e, saved={"total": 0.0, "masked": share}) for e, share in zip(made.epochs, shares, strict=True)]
    rows = summary.summarise([record("dense", 0, DENSE), made], IMAGES)
    assert (rows[1].flops, rows[1].masked) == (1.0, 0.625)
    assert summary.verdict(rows, IMAGES).startswith(
        "mest computed 100% of dense's FLOPs, 62% with weights that are kept zero. "
    )


def test_a_method_that_skips_nothing_says_what_it_computes():
    records = [saving_half("meprop:k=5"), record("dense", 0, DENSE), record("dense", 0, CONTROL[:2], planned=2)]
    rows = summary.summarise([records[1], records[0], records[2]], IMAGES)
    meprop = rows[1]
    assert (meprop.s, meprop.f, meprop.flops, meprop.faster) == (None, None, 0.5, 0.5)
    assert meprop.against_control.points == pytest.approx(10)
    assert meprop.against_dense.points == pytest.approx(-5)
    assert rows[2].policy == "dense in the time of meprop:k=5"
    assert summary.verdict(rows, IMAGES) == (
        "meprop:k=5 computed 50% of dense's FLOPs. It took 50% less time than dense over the same epochs. "
        "Against dense in the same time it ends at +10.00 points, but one seed decides nothing."
    )
    line = summary.table(rows).splitlines()[2].split()
    assert line[:8] == ["meprop:k=5", "90.00", "%", "-", "4", "4.0", "-", "-"]
    assert line[8:] == ["50.0", "%", "50.0", "%", "-5.00", "(one", "seed)", "+10.00", "(one", "seed)", "LOSS"]


def test_without_dense_a_method_says_what_it_computes():
    rows = summary.summarise([saving_half("sieve:keep=.5", "full")], IMAGES)
    assert summary.verdict(rows, IMAGES) == "sieve:keep=.5 computed 50% of dense's FLOPs."


def test_phases_are_means_over_seeds():
    records = [record("dense", seed, DENSE) for seed in (0, 1)]
    for seed, made in enumerate(records):
        made.epochs = [replace(epoch, phase_seconds={"data": 1.0, "fprop": seed}, test_loss=seed) for epoch in made.epochs]
    row = summary.summarise(records, IMAGES)[0]
    assert (row.phase_seconds, row.test_loss) == ({"data": 4.0, "fprop": 2.0}, 0.5)


@pytest.mark.parametrize(
    ("points", "best"),
    [
        ([(1, 5), (2, 4), (3, 6)], [(1, 5), (3, 6)]),
        ([(2, 6), (1, 5), (2, 7)], [(1, 5), (2, 7)]),
        ([(2, 7), (3, 7)], [(2, 7)]),
        ([(1, 1)], [(1, 1)]),
    ],
)
def test_the_front_is_what_nothing_beats_in_both(points, best):
    assert picture.front(points) == best


@pytest.mark.parametrize(
    ("freedom", "expected"), [(1, 12.706), (15, 2.131), (16, 2.120), (19, 2.093), (30, 2.042), (120, 1.980), (10**9, 1.960)]
)
def test_quantiles_are_those_of_tables(freedom, expected):
    assert summary.t95(freedom) == pytest.approx(expected, abs=5.1e-4)


def test_interval_is_students():
    mean, half = summary.interval([0.01, 0.02, 0.03], step=0.001)
    assert mean == pytest.approx(0.02)
    assert half == pytest.approx(4.303 * 0.01 / math.sqrt(3), rel=1e-4)  # t(.975, 2) from a printed table
    assert summary.interval([0.01, 0.01, 0.01], step=0.01) == (pytest.approx(0.01), 0.01)
    assert summary.interval([0.01], step=0.01)[1] == math.inf


@pytest.mark.parametrize(
    ("finals", "word", "loss"),
    [
        ((0.96, 0.97, 0.965), "It is better than dense in the same time: +4.50 points (95 % interval", False),
        ((0.80, 0.81, 0.805), "It is worse than dense in the same time: -11.50 points", True),
        ((0.7, 0.9, 1.0), "It is not measurably different from dense in the same time: -5.33 points", True),
        # one image more than the control each time: no more than can be seen
        ((0.93, 0.93, 0.93), "It is not measurably different from", True),
    ],
)
def test_verdict_says_which_is_better_and_all_else_is_a_loss(finals, word, loss):
    records = []
    for seed, final in enumerate(finals):
        records += seed_of(seed, wus=[*WUS[:3], ("skip", 1.0, final)])
    rows = summary.summarise(records, IMAGES)
    assert word in summary.verdict(rows, IMAGES)
    assert rows[1].loss is loss
    assert ("LOSS" in summary.table(rows)) is loss


def test_verdict_of_one_seed_decides_nothing():
    rows = summary.summarise(seed_of(0), IMAGES)
    assert summary.verdict(rows, IMAGES).endswith("ends at -7.00 points, but one seed decides nothing.")


def test_a_method_that_takes_longer_is_said_to():
    slow = [("full", 2.0, 0.5), ("skip", 4.0, 0.5), ("skip", 4.0, 0.5), ("skip", 2.0, 0.5)]
    rows = summary.summarise([record("dense", 0, DENSE), record("wus", 0, slow)], IMAGES)
    assert summary.verdict(rows, IMAGES).startswith("wus took 50% more time than dense over the same epochs.")
