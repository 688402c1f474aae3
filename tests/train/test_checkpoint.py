"""An interrupted experiment that continues is the uninterrupted one, bit for bit; other files are refused."""

import os
import zipfile
from dataclasses import fields, replace

import pytest
import torch

from tests.train.test_loop import WINDOWS, WUS, Run, settings
from wuskern.train import checkpoint, data, files, loop
from wuskern.train.experiment import Experiment
from wuskern.train.methods import parse
from wuskern.train.phases import PHASES

RANDOM = "meprop:ratio=.3:score=random"  # draws in each backward
WUSLR = f"wus+lr{WINDOWS}"
TOGETHER = f"{WUS}+memory:ratio=.3+sieve:keep=.6:interval=1"
SMALLER = "mesimp:ratio=.3:per=batch:prune=.5:cycle=2:simplify=true"
SPARSE = "spfde:sparsity=.5:interval=1:sieve_interval=1:keep=.6+crs:ratio=.5"
METHODS = parse(f"dense,{WUS},{WUSLR},{RANDOM},{TOGETHER},{SMALLER},{SPARSE},frozen")


class Killed(Exception):
    """Stands for the end of the process after a checkpoint was written."""


@pytest.fixture(scope="module")
def digits():
    loaded = data.load("digits")
    return replace(loaded, x_train=loaded.x_train[:160], y_train=loaded.y_train[:160])


def experiment(path, images, **changes):
    changes = dict(model="mlp", epochs=6) | changes
    out = path.with_suffix("")
    out.mkdir(exist_ok=True)
    return Experiment(settings(**changes), METHODS, 2, images, out, {"seeds": 2}, path, say=lambda _: None)


def numbers(records):
    """All that is not time."""
    names = [f.name for f in fields(records[0].epochs[0]) if "seconds" not in f.name]
    return [(r.key, [[getattr(epoch, name) for name in names] for epoch in r.epochs]) for r in records]


def finished(made):
    """Trains to the end; the numbers of the policies' runs (controls depend on seconds), and the weights of each."""
    weights = {}
    start = made._start

    def remembered(group):
        runs = start(group)
        weights.update({run.record.key: run.model for run in runs})
        return runs

    made._start = remembered
    weights.update({run.record.key: run.model for run in made.runs})
    assert made.run()
    records = [r for r in made.records if r.planned == made.settings.epochs]
    return numbers(records), {key: model.state_dict() for key, model in weights.items()}


def killed_after(made, rounds, monkeypatch):
    """Runs until so many checkpoints are written."""
    save, left = checkpoint.save, [rounds]

    def counted(*args, **kwargs):
        save(*args, **kwargs)
        left[0] -= 1
        if left[0] == 0:
            raise Killed

    monkeypatch.setattr(checkpoint, "save", counted)
    with pytest.raises(Killed):
        made.run()
    monkeypatch.setattr(checkpoint, "save", save)


@pytest.fixture(autouse=True)
def _no_picture(monkeypatch):
    for name in ("draw", "draw_front"):
        monkeypatch.setattr(f"wuskern.train.experiment.{name}", lambda *_: None)


@pytest.mark.parametrize(
    ("schedule", "optimizer"),
    [("cosine", "adamw"), *(pytest.param(schedule, "sgd", marks=pytest.mark.more) for schedule in ("constant", "cosine"))],
)
def test_it_continues_bit_for_bit_from_every_round(tmp_path, digits, monkeypatch, schedule, optimizer):
    """Rounds 3 and 4 end inside a window of every method, 6 at a seed's end, 10 in the middle of the next seed."""
    changes = dict(schedule=schedule, optimizer=optimizer, lr=0.01)
    expected, weights = finished(experiment(tmp_path / "whole.pt", digits, **changes))
    assert [row[1] for row in expected[2][1]] == ["full", "full", "skip", "skip", "full", "skip"]
    for rounds in (3, 4, 6, 10):
        path = tmp_path / f"{rounds}.pt"
        killed_after(experiment(path, digits, **changes), rounds, monkeypatch)
        second = experiment(path, digits, **changes)
        second.resume(checkpoint.load(path))
        seen, seen_weights = finished(second)
        assert seen == expected
        ours = {key: value for key, value in seen_weights.items() if key[2] == 6}
        assert {(method.label, 1, 6) for method in METHODS} <= set(ours)
        for key, state in ours.items():
            assert all(torch.equal(value, weights[key][name]) for name, value in state.items()), key


@pytest.mark.parametrize("model", [pytest.param("vgg11", marks=pytest.mark.more), "alexnet"])
def test_batch_norm_and_dropout_continue_too(tmp_path, digits, monkeypatch, model):
    changes = dict(model=model, width=0.03, epochs=3, channels_last=model == "vgg11")
    expected, weights = finished(experiment(tmp_path / "whole.pt", digits, **changes))
    path = tmp_path / "cut.pt"
    killed_after(experiment(path, digits, **changes), 2, monkeypatch)
    second = experiment(path, digits, **changes)
    second.resume(checkpoint.load(path))
    torch.rand(3)  # whatever else the process draws
    seen, seen_weights = finished(second)
    assert seen == expected
    for key in ((WUSLR, 0, 3), (RANDOM, 0, 3), (TOGETHER, 0, 3)):
        assert all(torch.equal(value, weights[key][name]) for name, value in seen_weights[key].items())


@pytest.mark.gpu
def test_dropout_on_a_gpu_continues_too(tmp_path, digits, monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", True)
    images = digits.to("cuda", torch.contiguous_format)
    changes = dict(model="alexnet", width=0.03, epochs=3, device="cuda")
    expected, _ = finished(experiment(tmp_path / "whole.pt", images, **changes))
    path = tmp_path / "cut.pt"
    killed_after(experiment(path, images, **changes), 2, monkeypatch)
    second = experiment(path, images, **changes)
    second.resume(checkpoint.load(path))
    torch.rand(3, device="cuda")
    assert finished(second)[0] == expected


def test_a_control_continues_too(tmp_path, digits, monkeypatch):
    """The clock is replaced: a skipped epoch takes half as long, so that controls have 4 of 6 epochs."""
    monkeypatch.setattr(loop.Run, "_train", timed(loop.Run._train))
    changes = dict(schedule="cosine")
    whole = experiment(tmp_path / "whole.pt", digits, **changes)
    whole.run()
    expected = numbers(whole.records)
    assert [key for key, _ in expected if key[1] == 0] == [*((m.label, 0, 6) for m in METHODS), ("dense", 0, 4)]
    for rounds in (8, 10):  # in the middle of a control, and at its end
        path = tmp_path / f"{rounds}.pt"
        killed_after(experiment(path, digits, **changes), rounds, monkeypatch)
        second = experiment(path, digits, **changes)
        second.resume(checkpoint.load(path))
        assert second.run()
        assert numbers(second.records) == expected


def timed(train):
    def by_mode(self, bar):
        *found, _ = train(self, bar)
        return *found, dict.fromkeys(PHASES, 0.0) | {"fprop": 0.5 if self.mode == "skip" else 1.0}

    return by_mode


def test_a_constant_rate_makes_the_control_the_start_of_the_dense_run(tmp_path, digits, monkeypatch):
    monkeypatch.setattr(loop.Run, "_train", timed(loop.Run._train))
    made = experiment(tmp_path / "a.pt", digits, schedule="constant")
    start, started = made._start, []
    made._start = lambda group: (started.append(group.epochs), start(group))[1]
    made.run()
    assert started == [6, 6]  # nothing but the policies of two seeds was trained
    dense, control = (next(r for r in made.records if r.key == ("dense", 0, n)) for n in (6, 4))
    assert control.epochs == dense.epochs[:4]
    trained = Run("dense", replace(made.settings, epochs=4), digits, seed=0)
    for _ in range(4):
        trained.epoch()
    assert numbers([trained.record]) == numbers([control])


# ---- files -----------------------------------------------------------------------------------------------------------


CONTENT = {"experiment": "0", "arguments": {"lr": 0.1}, "files": {}, "data": 7, "finished": [], "runs": []}


@pytest.fixture
def good(tmp_path):
    path = tmp_path / "good.pt"
    checkpoint.save(path, **CONTENT | {"runs": [{"weight": torch.arange(500.0)}]})
    return path


def test_round_trip(good):
    content = checkpoint.load(good)
    assert content["arguments"] == {"lr": 0.1}
    assert torch.equal(content["runs"][0]["weight"], torch.arange(500.0))


def test_a_write_that_fails_leaves_the_file_before_it(good, monkeypatch):
    before = good.read_bytes()
    monkeypatch.setattr(files.os, "fsync", lambda _: (_ for _ in ()).throw(OSError("no space")))
    with pytest.raises(OSError, match="no space"):
        checkpoint.save(good, **CONTENT)
    assert good.read_bytes() == before
    assert os.listdir(good.parent) == [good.name]


def test_it_is_on_disk_before_it_takes_the_name(good, monkeypatch):
    """os.replace is atomic, but a file that is not flushed can be empty after a power cut."""
    calls = []
    fsync, move = os.fsync, os.replace
    monkeypatch.setattr(files.os, "fsync", lambda handle: (calls.append("fsync"), fsync(handle)))
    monkeypatch.setattr(files.os, "replace", lambda *names: (calls.append("replace"), move(*names)))
    checkpoint.save(good, **CONTENT)
    assert calls == ["fsync", "replace"]


def test_damaged_files_are_refused(good):
    whole = good.read_bytes()
    for length in (0, 1, len(whole) // 2, len(whole) - 1):
        good.write_bytes(whole[:length])
        with pytest.raises(ValueError, match="--resume: expected a checkpoint that can be read, got"):
            checkpoint.load(good)
    middle = whole.index(torch.arange(500.0).numpy().tobytes()) + 999  # a weight, which torch.load would take
    good.write_bytes(whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :])
    with pytest.raises(ValueError, match="damaged"):
        checkpoint.load(good)


class Sly:
    """Unpickling it runs code."""

    def __reduce__(self):
        return os.mkdir, ("sly",)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"weight": torch.zeros(2)}, "expected a checkpoint of wuskern train, got .*something else"),
        ([1, 2], "expected a checkpoint of wuskern train"),
        (
            Sly(),
            r"expected a checkpoint that can be read, got '.*a.pt' \(it holds more than tensors and plain data: loading that",
        ),
        ({"format": "wuskern train", "layout": 1, "torch": torch.__version__[:]}, "expected a checkpoint of layout 5, got 1"),
        ({"format": "wuskern train", "layout": 5, "torch": "1.13.1"}, "expected a checkpoint of torch 2, got 1.13.1"),
        (
            {"format": "wuskern train", "layout": 5, "torch": "2.13.0", "runs": []},
            "expected a checkpoint with experiment, arguments, files, data",
        ),
    ],
)
def test_foreign_files_are_refused(tmp_path, monkeypatch, content, message):
    monkeypatch.chdir(tmp_path)
    torch.save(content, "a.pt")
    with pytest.raises(ValueError, match=f"--resume: {message}"):
        checkpoint.load(tmp_path / "a.pt")
    assert not os.path.exists("sly")


def test_what_says_that_it_holds_more_than_it_does_is_not_unpacked(good):
    """64 MiB of zeros in some KiB."""
    with zipfile.ZipFile(good, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data/0", bytes(2**26))
    assert good.stat().st_size < 2**17
    with pytest.raises(ValueError, match="damaged: it says that it holds more than it does"):
        checkpoint.load(good)


def test_its_size_is_known_before_it_is_written(good):
    content = CONTENT | {"runs": [{"weight": torch.arange(500.0)}]}
    assert 500 * 4 < checkpoint.size(**content) == pytest.approx(good.stat().st_size, abs=500)


def test_other_data_are_refused(tmp_path, digits, monkeypatch):
    path = tmp_path / "a.pt"
    killed_after(experiment(path, digits), 1, monkeypatch)
    y = digits.y_train.clone()
    y[-1] += 1
    with pytest.raises(ValueError, match="expected the data of the interrupted run, got others from digits"):
        experiment(path, replace(digits, y_train=y)).resume(checkpoint.load(path))


def test_the_state_of_another_run_is_refused(digits):
    run = Run("wus", settings(), digits, seed=0)
    with pytest.raises(ValueError, match=r"state: expected that of the run \('wus', 1, 4\), got \('wus', 0, 4\)"):
        Run("wus", settings(), digits, seed=1).load_state_dict(run.state_dict())
