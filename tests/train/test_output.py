"""Where results go: nothing is in the way, nothing that is somebody's is lost, and all of that shows before training."""

import json
import os
import shutil
from pathlib import Path

import pytest

from wuskern.train import files
from wuskern.train.output import FRONT, PICTURE, RESULTS, Output

TAKEN = "which is .* too"


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def made(path: str, text: str = "mine") -> Path:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_text(text)
    return Path(path)


def entered(output: Output, epochs: int = 1, state_bytes: int = 0) -> None:
    with output.claimed(epochs, state_bytes):
        assert files.lock_of(output.out / RESULTS).exists()


def test_a_new_place_is_made_and_left_as_it_was():
    entered(Output(Path("a/b"), Path("a/b/c.pt")))
    assert not list(Path().iterdir())
    with Output(Path("a/b")).claimed(1, 0):
        made("a/b/results.json")
    assert [path.name for path in Path("a/b").iterdir()] == [RESULTS]


@pytest.mark.parametrize("name", [RESULTS, PICTURE, FRONT])
def test_results_that_are_there_stay(name):
    made(f"out/{name}")
    with pytest.raises(ValueError, match=rf"--out: expected a directory without {name} \(or --overwrite\), got out"):
        Output(Path("out")).check()
    Output(Path("out"), overwrite=True).check()


def test_a_link_that_leads_nowhere_is_there_too():
    Path("out").mkdir()
    Path("out", PICTURE).symlink_to("absent")
    Path("c.pt").symlink_to("absent")
    with pytest.raises(ValueError, match="--out: expected a directory without"):
        Output(Path("out")).check()
    with pytest.raises(ValueError, match="--checkpoint: expected a new file"):
        Output(Path("other"), Path("c.pt")).check()


@pytest.mark.parametrize("kind", [os.mkdir, os.mkfifo])
@pytest.mark.parametrize("name", [RESULTS, PICTURE, FRONT, "c.pt"])
def test_what_cannot_be_replaced_is_in_the_way(kind, name):
    Path("out").mkdir()
    kind(f"out/{name}")
    argument = "--checkpoint" if name == "c.pt" else "--out"
    with pytest.raises(ValueError, match=f"{argument}: expected a file that can be replaced, got out/{name}, which is none"):
        Output(Path("out"), Path("out/c.pt"), overwrite=True).check()


@pytest.mark.parametrize(
    "path",
    [
        "out",
        f"out/{RESULTS}",
        f"out/../out/{PICTURE}",
        f"link/{FRONT}",
        f"out/.{RESULTS}.lock",
        "data.npz",
        "hard.npz",
        "a.toml",
    ],
)
def test_a_checkpoint_is_no_other_file_of_the_experiment(path):
    Path("link").symlink_to("out")
    os.link(made("data.npz"), "hard.npz")
    Path("out").mkdir()
    output = Output(Path("out"), Path(path), overwrite=True, read=(Path("data.npz"), Path("a.toml")))
    with pytest.raises(ValueError, match=f"--checkpoint: expected a file of its own, got .*, {TAKEN}"):
        output.check()


def test_results_do_not_replace_what_is_read():
    made(f"out/{RESULTS}")
    with pytest.raises(ValueError, match=r"--out: expected a directory whose results.json is nothing that is read"):
        Output(Path("out"), Path("c.pt"), overwrite=True, continued=Path("out", RESULTS)).check()


@pytest.mark.parametrize("text", ['{"experiment": "ours"}', '{"experiment": "other"}', "{}", "[]", "mine", 9**5 * "["])
def test_an_experiment_that_goes_on_replaces_its_own_results_alone(text):
    made(f"out/{RESULTS}", text)
    made(f"out/{PICTURE}")
    path = made("c.pt")
    output = Output(Path("out"), path, continued=path, written=path.stat().st_mtime_ns, experiment="ours")
    if "ours" in text:
        return output.check()
    with pytest.raises(ValueError, match=f"--out: expected a directory without {RESULTS} of another experiment"):
        output.check()


def test_pictures_without_results_are_anothers():
    made(f"out/{PICTURE}")
    path = made("c.pt")
    with pytest.raises(ValueError, match=f"--out: expected a directory without {PICTURE} of another experiment"):
        Output(Path("out"), path, continued=path, written=path.stat().st_mtime_ns, experiment="ours").check()


def test_a_checkpoint_that_was_written_since_it_was_read_is_newer():
    path = made("c.pt")
    output = Output(Path("out"), path, continued=path, written=path.stat().st_mtime_ns - 1, experiment="ours")
    with pytest.raises(
        ValueError, match=r"--checkpoint: expected c.pt as it was read, got one that another process has written"
    ):
        output.check()


def test_one_process_has_both_places():
    with Output(Path("out"), Path("c.pt")).claimed(1, 0):
        with pytest.raises(ValueError, match=f"--out: .*{RESULTS}, in use by process {os.getpid()} on "):
            entered(Output(Path("out"), Path("d.pt")))
        with pytest.raises(ValueError, match=f"--checkpoint: .*c.pt, in use by process {os.getpid()} on "):
            entered(Output(Path("other/one"), Path("c.pt")))
        assert not Path("other").exists()


def test_what_another_process_left_while_this_one_waited_stays():
    output = Output(Path("out"))
    output.check()
    made(f"out/{RESULTS}", json.dumps({"experiment": "of another"}))
    with pytest.raises(ValueError, match=r"--out: expected a directory without results.json"):
        entered(output)


@pytest.mark.parametrize(
    ("state_bytes", "there", "free", "argument"),
    [
        (10 * 2**20, 0, 19, "--checkpoint"),  # the next one is written beside the first
        (10 * 2**20, 9, 10, "--checkpoint"),
        (10 * 2**20, 9, 12.5, "--out"),  # 11 for checkpoints, and pictures
        (10 * 2**20, 9, 14, None),
        (0, 0, 0.5, "--out"),
    ],
)
def test_room_is_looked_for_before_training(monkeypatch, state_bytes, there, free, argument):
    checkpoint = Path("c.pt")
    if there:
        checkpoint.write_bytes(bytes(there * 2**20))
    usage = shutil.disk_usage(".")._replace(free=int(free * 2**20))
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    output = Output(Path("out"), checkpoint, overwrite=True)
    if argument is None:
        return entered(output, 1, state_bytes)
    with pytest.raises(ValueError, match=rf"{argument}: expected .* MiB free in .*, got {free}"):
        entered(output, 1, state_bytes)
    assert not Path("out").exists()
