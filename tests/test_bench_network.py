"""bench.network: an interrupted grid goes on, and what a table says. tests/distributed has its methods."""

import pytest

from bench.network import __main__ as command
from bench.network import grid


def record(method, seed, tests, task="tiny", rate="1gbit"):
    return {"task": task, "method": method, "rate": rate, "budget": 10.0, "lr": 0.1, "seed": seed, "tests": tests, "steps": 80,
            "sent": 1000.0}  # fmt: skip


def test_when_an_accuracy_is_reached():
    tests = [[0.0, 0.1], [2.0, 0.5], [4.0, 0.9]]
    assert grid.seconds_to(tests, 0.7) == pytest.approx(3.0)
    assert grid.seconds_to(tests, 0.1) == 0.0
    assert grid.seconds_to(tests, 0.95) is None


def test_a_row_for_each_method():
    slow, middle, fast = [[0.0, 0.0], [10.0, 0.8]], [[0.0, 0.0], [5.0, 0.8], [10.0, 0.9]], [[0.0, 0.0], [2.0, 0.8], [10.0, 0.9]]
    never = [[0.0, 0.0], [10.0, 0.7]]
    tests = {"dense": slow, "fp16 hook": middle, "rows 5 %": fast, "WUS": never}
    rows = grid.summary([record(method, seed, of) for seed in range(2) for method, of in tests.items()])
    found = {row["method"]: (row["sooner"], row["over_best_peer"], row["reached"]) for row in rows}
    assert found == {"dense": (1, None, 2), "fp16 hook": (2, None, 2), "rows 5 %": (5, 2.5, 2), "WUS": (None, None, 0)}
    text = command.render({"rows": rows})
    assert "| ours: rows 5 % | 80 | 1,000 | 90.00 % | 5.00x | 2.50x |" in text
    assert "| ours: WUS | 80 | 1,000 | 70.00 % | - | - |" in text


def test_an_interrupted_grid_goes_on(tmp_path):
    path, made = tmp_path / "runs.jsonl", []

    def execute(run):
        made.append(run)
        return record(run.method, run.seed, [[0.0, 0.1]], run.task, run.rate) | {"budget": run.budget, "lr": run.lr}

    plan = grid.Plan(("small vgg11",), ("loopback",), ("dense", "LoRA r8", "WUS"), seeds=2, budget=1)
    for run in plan.runs()[:3]:
        grid.Runs(path, None, execute)(run)
    with path.open("a") as file:
        file.write('{"task": "small vg')
    path.write_text(path.read_text() + "\n")
    runs = grid.Runs(path, None, execute)
    assert [runs(run)["method"] for run in plan.runs()] == ["dense", "WUS"] * 2  # no LoRA from scratch
    assert len(made) == 4


def test_a_machine_without_the_tools_is_refused(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr("bench.link.PATH", str(tmp_path))
    assert command.main(["--folder", str(tmp_path / "a"), "--tasks", "tiny"]) == 2
    assert "bench.network: expected Linux with root's rights and iproute2, got: ip and tc" in capsys.readouterr().err
