"""What results.json holds, and that it is whole whenever the process dies."""

import json

import pytest

from tests.train.test_summary import record, seed_of
from wuskern import ops
from wuskern.train import files, results


def save(path, records, complete=False):
    about = {"experiment": "of this", "arguments": {"epochs": 4}, "files": {}, "complete": complete}
    results.save(path, about, "cpu", 100, records, {"wus": 7})
    return json.loads(path.read_text())


def test_everything_is_in_the_file(tmp_path):
    content = save(tmp_path / "results.json", seed_of(0) + seed_of(1), complete=True)
    assert content["complete"] is True
    assert content["peak_bytes"] == {"wus": 7}
    assert content["environment"]["backends"].keys() == set(ops.NAMES)
    assert [(r["policy"], r["seed"], len(r["epochs"])) for r in content["runs"]] == [
        ("dense", 0, 4), ("wus", 0, 4), ("dense", 1, 4), ("wus", 1, 4),
    ]  # fmt: skip
    assert [(c["control_of"], c["seed"], c["planned"], len(c["epochs"])) for c in content["controls"]] == [
        ("wus", 0, 3, 3), ("wus", 1, 3, 3),
    ]  # fmt: skip
    assert content["controls"][0]["epochs"][2]["test_accuracy"] == 0.92
    wus = content["summary"][1]
    assert wus["loss"] is True
    assert wus["against_control"]["points"] == pytest.approx(-7)
    assert content["summary"][2]["control_of"] == "wus"


def test_json_has_no_nan_and_no_infinity(tmp_path):
    save(tmp_path / "results.json", seed_of(0))  # one seed has no interval; losses are NaN
    text = (tmp_path / "results.json").read_text()
    assert "NaN" not in text
    assert "Infinity" not in text


def test_file_is_whole_or_absent(tmp_path, monkeypatch):
    path = tmp_path / "results.json"
    save(path, [record("dense", 0, [("full", 1.0, 0.5)])])
    before = path.read_text()
    monkeypatch.setattr(files.os, "replace", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        results.save(path, {"experiment": "of this", "arguments": {}, "files": {}, "complete": True}, "cpu", 100, [], {})
    assert path.read_text() == before
    assert list(tmp_path.iterdir()) == [path]
