"""One run: the same start for every policy, windows that train biases only, records that add up."""

import math
from dataclasses import replace

import pytest
import torch

from wuskern.train import data, loop
from wuskern.train.methods import parse
from wuskern.train.settings import Settings

# A window of two epochs after each second one.
WINDOWS = ":threshold=1:window=1:patience=2:cooldown=1:warmup=1:guard=1"
WUS = f"wus{WINDOWS}"


def settings(**changes) -> Settings:
    base = dict(
        model="mlp", width=0.05, epochs=4, batch=64, optimizer="sgd", lr=0.05, momentum=0.9, weight_decay=1e-3,
        channels_last=False, device="cpu",
    )  # fmt: skip
    return Settings(**(base | changes))


@pytest.fixture(scope="module")
def digits():
    return data.load("digits")


def Run(policy: str, settings: Settings, data, seed: int, leader: loop.Run | None = None) -> loop.Run:
    return loop.Run(parse(policy)[0], settings, data, seed, leader)


def weights(run: loop.Run) -> dict[str, torch.Tensor]:
    return {n: p.detach().clone() for n, p in run.model.named_parameters()}


def test_every_policy_starts_alike_and_sees_the_same_batches(digits):
    runs = [Run(policy, settings(), digits, seed=3) for policy in ("dense", WUS, "frozen", "meprop:ratio=1")]
    first = [run.epoch() for run in runs]  # full for all of them
    assert len({(e.loss, e.train_accuracy, e.test_accuracy) for e in first}) == 1
    other = Run("dense", settings(), digits, seed=4)
    assert other.epoch().loss != first[0].loss


@pytest.mark.parametrize("model", ["mlp", "alexnet"])
def test_what_runs_beside_a_run_changes_none_of_its_numbers(digits, model):
    """alexnet draws its dropout masks from a random state of its own, and leaves the global one alone."""
    few = replace(digits, x_train=digits.x_train[:200], y_train=digits.y_train[:200])
    alone = Run(WUS, settings(model=model), few, seed=1)
    before = torch.get_rng_state()
    expected = [alone.epoch().loss for _ in range(2)]
    assert torch.equal(torch.get_rng_state(), before)

    torch.manual_seed(99)
    runs = [Run(policy, settings(model=model), few, seed=1) for policy in ("dense", WUS, "frozen")]
    seen = []
    for _ in range(2):
        torch.rand(7)
        seen.append([run.epoch().loss for run in runs])
    assert [losses[1] for losses in seen] == expected
    assert seen[0][0] == seen[0][1]  # dense meets the same masks


def test_dropout_changes_from_epoch_to_epoch(digits):
    """Without training, the same images give another loss."""
    run = Run("dense", settings(model="alexnet", lr=1e-30, weight_decay=0.0), digits, seed=1)
    assert run.epoch().loss != pytest.approx(run.epoch().loss, rel=1e-7)


def test_cosine_runs_over_all_epochs(digits):
    run = Run("dense", settings(schedule="cosine", epochs=4), digits, seed=0)
    rates = [run.epoch().lr for _ in range(4)]
    assert rates == pytest.approx([0.05 * (1 + math.cos(math.pi * epoch / 4)) / 2 for epoch in range(4)])


@pytest.mark.parametrize("schedule", ["constant", "cosine"])
def test_wus_lr_reduces_on_top_of_the_schedule(digits, schedule):
    plain = Run(WUS, settings(schedule=schedule, epochs=9), digits, seed=0)
    reduced = Run(f"wus+lr{WINDOWS}:factor=.25", settings(schedule=schedule, epochs=9), digits, seed=0)
    for _ in range(6):
        plain.epoch()
        reduced.epoch()
    assert [e.mode for e in reduced.epochs] == ["full", "full", "skip", "skip", "full", "skip"]
    ratios = [b.lr / a.lr for a, b in zip(plain.epochs, reduced.epochs, strict=True)]
    assert ratios == pytest.approx([1, 1, 1 / 4, 1 / 4, 1 / 4, 1 / 16])


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_a_skip_window_moves_biases_only(digits, optimizer):
    run = Run(WUS, settings(optimizer=optimizer, lr=0.01), digits, seed=0)
    modes = []
    for _ in range(6):
        before = weights(run)
        epoch = run.epoch()
        modes.append(epoch.mode)
        moved = {n for n, p in weights(run).items() if not torch.equal(p, before[n])}
        assert moved == ({n for n in before if n.endswith("bias")} if epoch.mode == "skip" else set(before))
    # warmup and one change pass, then two skipped and one full epoch take turns
    assert modes == ["full", "full", "skip", "skip", "full", "skip"]


def test_frozen_repeats_the_leaders_windows_and_trains_the_same_parameters(digits):
    wus = Run(WUS, settings(), digits, seed=0)
    frozen = Run("frozen", settings(), digits, seed=0, leader=wus)
    for _ in range(5):
        ours, stock = wus.epoch(), frozen.epoch()
        assert ours.mode == stock.mode
    assert "skip" in {e.mode for e in wus.epochs}
    for name, value in weights(wus).items():
        torch.testing.assert_close(value, weights(frozen)[name], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("per", ["batch", "example"])
def test_meprop_trains_and_moves_no_row_without_a_gradient(digits, per):
    """Without momentum and decay: after one step, of each hidden layer's 25 rows five at most have moved for a batch."""
    few = replace(digits, x_train=digits.x_train[:64], y_train=digits.y_train[:64])
    plain = settings(lr=0.1, momentum=0.0, weight_decay=0.0)
    run = Run(f"meprop:ratio=.2:per={per}", plain, few, seed=0)
    before = weights(run)
    epoch = run.epoch()
    assert (epoch.mode, epoch.steps) == ("rows", 1)
    moved = {n: int((p != before[n]).flatten(1).any(1).sum()) for n, p in weights(run).items() if p.ndim == 2}
    assert moved["5.weight"] == 10  # the output layer
    assert (moved["1.weight"], moved["3.weight"]) == (5, 5) if per == "batch" else moved["1.weight"] > 5
    assert run.epoch().loss < epoch.loss


def test_records_add_up(digits):
    run = Run("dense", settings(batch=100), digits, seed=0)
    epochs = [run.epoch() for _ in range(3)]
    assert [e.number for e in epochs] == [1, 2, 3]
    assert all(e.steps == 15 for e in epochs)
    assert epochs[2].total_seconds == pytest.approx(sum(e.seconds for e in epochs))
    assert epochs[2].test_accuracy > 0.5


@pytest.mark.parametrize("model", ["vgg11", "resnet18"])
def test_channels_last_trains(digits, model):
    """Of 16 channels on: of fewer, oneDNN for AVX2 writes the gradient of a strided 1x1 kernel beyond its memory."""
    few = replace(digits, x_train=digits.x_train[:256], y_train=digits.y_train[:256])
    run = Run(WUS, settings(model=model, channels_last=True, width=0.25), few, seed=0)
    assert run.epoch().loss < 3


def test_a_bar_counts_the_steps_of_each_epoch(digits):
    class Bar:
        def __init__(self):
            self.totals, self.steps = [], 0

        def reset(self, total):
            self.totals.append(total)

        def update(self):
            self.steps += 1

    few, bar = replace(digits, x_train=digits.x_train[:200], y_train=digits.y_train[:200]), Bar()
    run = Run("dense", settings(), few, seed=0)
    for _ in range(2):
        run.epoch(bar)
    assert (bar.totals, bar.steps) == ([4, 4], 8)  # 200 samples, 64 in a step
    assert len(run.losses) == 4
