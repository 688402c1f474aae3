"""Autotuning with a clock of our own: what is timed, what is kept where, what is done with a file that is not ours."""

import json
import os
import warnings

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import wuskern as wk
from wuskern import ops
from wuskern.kernels import backends, reference
from wuskern.kernels.triton import configs, tuning
from wuskern.kernels.triton.tiles import GemmTile

CPU = torch.device("cpu")
SMALL, LARGE = GemmTile(16, 16, 16, 1, 1), GemmTile(64, 16, 16, 4, 2)
CANDIDATES = [(SMALL, 64), (LARGE, 64), (LARGE, 128)]


@pytest.fixture(autouse=True)
def folder(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(tuning, "_caches", {})
    monkeypatch.setattr(tuning, "_taken", {})
    return tmp_path / "wuskern" / "autotune"


@pytest.fixture
def runs(monkeypatch):
    """The configurations that ran, and a clock by which the larger a tile and what it adds, the less time it takes."""
    ran = []

    def clock(function, device):
        function()
        tile, amount = ran[-1]
        return 1 / (tile.block_m * amount)

    monkeypatch.setattr(tuning, "clock", clock)
    return ran


def pick(runs, key="p", candidates=CANDIDATES):
    return tuning.pick(lambda: key, CPU, CANDIDATES[0], lambda: candidates, runs.append)


def test_off_by_default_nothing_is_timed_or_read(runs, folder):
    assert pick(runs) == CANDIDATES[0]
    assert runs == []
    assert not folder.exists()


def test_each_candidate_is_timed_once_per_problem_and_the_fastest_is_kept(runs, folder):
    with wk.autotune():
        assert pick(runs) == (LARGE, 128)
        assert runs == CANDIDATES * (tuning.WARM_UP + tuning.ROUNDS)
        assert pick(runs) == (LARGE, 128)
        assert len(runs) == len(CANDIDATES) * (tuning.WARM_UP + tuning.ROUNDS)
        pick(runs, "another problem")
    assert len(runs) == 2 * len(CANDIDATES) * (tuning.WARM_UP + tuning.ROUNDS)
    assert pick(runs) == CANDIDATES[0], "outside, the pure choice again"
    assert [path.name for path in folder.iterdir()] == ["cpu-sm_80.json"]


def test_what_was_kept_is_taken_by_the_next_process(runs, folder, monkeypatch):
    with wk.autotune():
        pick(runs)
        monkeypatch.setattr(tuning, "_caches", {})
        ran = len(runs)
        assert pick(runs) == (LARGE, 128)
    assert len(runs) == ran


def test_a_capture_takes_what_has_run_and_times_nothing(runs, monkeypatch):
    """Code that was never loaded may not be loaded in a capture."""
    with wk.autotune():
        pick(runs)
        ran = len(runs)
        monkeypatch.setattr(tuning, "is_capturing", lambda device: True)
        assert pick(runs) == (LARGE, 128)
        assert pick(runs, "never met") == CANDIDATES[0]
    assert pick(runs) == (LARGE, 128), "autotuning was on when it ran before"
    assert pick(runs, "never met") == CANDIDATES[0]
    assert len(runs) == ran


def test_a_capture_takes_no_winner_of_another_process_that_has_not_run_here(runs, monkeypatch):
    with wk.autotune():
        pick(runs)
        monkeypatch.setattr(tuning, "_taken", {})  # as in a new process
        monkeypatch.setattr(tuning, "is_capturing", lambda device: True)
        assert pick(runs) == CANDIDATES[0]


def test_what_a_file_keeps_counts_as_run_once_it_was_picked(runs, monkeypatch):
    with wk.autotune():
        pick(runs)
        for name in ("_caches", "_taken"):
            monkeypatch.setattr(tuning, name, {})  # as in a new process
        pick(runs)  # a warm-up
        monkeypatch.setattr(tuning, "is_capturing", lambda device: True)
        assert pick(runs) == (LARGE, 128)


def test_what_is_no_candidate_any_more_is_timed_anew(runs):
    with wk.autotune():
        pick(runs)
        assert pick(runs, candidates=CANDIDATES[:2]) == (LARGE, 64)


def test_processes_add_to_one_file(runs, monkeypatch):
    with wk.autotune():
        pick(runs, "of one")
        first, tuning._caches[tuning.file_of(CPU)] = dict(tuning._caches[tuning.file_of(CPU)]), {}
        pick(runs, "of another")  # which had read the file before the first one wrote it
    assert tuning.read(tuning.file_of(CPU)).keys() == {"of one", "of another"}
    assert first.keys() == {"of one"}


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"format": 0, "kept": {}}', '{"format": 1}', '{"format": 1, "kept": []}', "\x00", 10**5 * "["]
)
def test_a_file_that_is_not_ours_is_ignored_and_named(runs, folder, text):
    folder.mkdir(parents=True)
    path = folder / "cpu-sm_80.json"
    path.write_text(text)
    with wk.autotune(), pytest.warns(UserWarning, match=r"cpu-sm_80.json: ignored, expected what autotuning keeps"):
        assert pick(runs) == (LARGE, 128)
    assert tuning.read(path) == {"p": [64, 16, 16, 4, 2, 128]}


def test_a_pipe_in_its_place_is_not_waited_for(runs, folder):
    folder.mkdir(parents=True)
    os.mkfifo(folder / "cpu-sm_80.json")
    with wk.autotune(), pytest.warns(UserWarning, match=r"cpu-sm_80.json: ignored, .* got no regular file"):
        assert pick(runs) == (LARGE, 128)


@given(st.recursive(st.none() | st.integers() | st.text(), lambda some: st.lists(some) | st.dictionaries(st.text(), some)))
def test_any_value_in_the_place_of_a_configuration_is_none(tmp_path_factory, kept):
    path = tmp_path_factory.mktemp("kept") / "x.json"
    path.write_text(json.dumps({"format": tuning.FORMAT, "kept": {"p": kept}}))
    found = tuning.read(path)["p"]
    assert not any(tuning._as_list(candidate) == found for candidate in CANDIDATES)


def test_a_folder_that_cannot_be_written_is_named_and_the_choice_holds(runs, folder):
    folder.parent.mkdir()
    folder.write_text("a file in its place")
    with wk.autotune():
        with pytest.warns(UserWarning, match="what autotuning found is not kept"):
            assert pick(runs) == (LARGE, 128)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert pick(runs) == (LARGE, 128)


def test_nothing_half_written_is_left(runs, folder, monkeypatch):
    with wk.autotune():
        pick(runs, "whole")

        def fail(*_):
            raise OSError("the disk is full")

        monkeypatch.setattr(os, "replace", fail)
        with pytest.warns(UserWarning, match="the disk is full"):
            pick(runs, "lost")
    assert tuning.read(tuning.file_of(CPU)).keys() == {"whole"}
    assert [path.name for path in folder.iterdir()] == ["cpu-sm_80.json"]


@pytest.mark.parametrize(("value", "expected"), [("1", True), ("0", False), ("", False), (None, False)])
def test_the_environment_turns_it_on(value, expected, monkeypatch):
    monkeypatch.delenv("WUSKERN_AUTOTUNE", raising=False)
    if value is not None:
        monkeypatch.setenv("WUSKERN_AUTOTUNE", value)
    assert tuning._asked() is expected


def test_the_wall_clock_stands_in_where_there_is_no_gpu():
    assert tuning.clock(lambda: sum(range(1000)), CPU) > 0


# ---- the kernels ----------------------------------------------------------------------------------------------------


@given(st.integers(1, 10**6), st.integers(1, 10**4), st.integers(1, 500), st.integers(1, 8))
def test_the_pure_choice_is_among_the_candidates(tokens, features, k, groups):
    tiles = configs.products("sm_90", "wgrad", 2)
    assert configs.wgrad(tiles, tokens, features, k, groups) in configs.wgrad_candidates(tiles, tokens, features, k, groups)


def test_every_product_is_tuned_and_stays_right(monkeypatch):
    if obstacle := backends.triton_obstacle("cpu"):
        pytest.skip(obstacle)
    monkeypatch.setattr(tuning, "clock", lambda function, device: function() is None or 1.0)
    monkeypatch.setattr(tuning, "WARM_UP", 0)
    monkeypatch.setattr(tuning, "ROUNDS", 1)
    rows, geometry = torch.tensor([1, 4, 6]), ((1, 1), (1, 1), (1, 1), 1)
    dy, x, weight = torch.randn(70, 8), torch.randn(70, 12), torch.randn(8, 12)
    images, grads, filters = torch.randn(2, 3, 5, 6), torch.randn(2, 8, 5, 6), torch.randn(8, 3, 3, 3)
    calls = {
        "rowsparse_wgrad": (dy, x, rows),
        "rowsparse_dgrad": (dy, weight, rows),
        "rowsparse_wgrad_conv2d": (grads, images, rows, (3, 3), *geometry),
        "rowsparse_dgrad_conv2d": (grads, filters, rows, (5, 6), *geometry),
    }
    with wk.autotune(), backends.backend("triton"):
        for op, arguments in calls.items():
            torch.testing.assert_close(getattr(ops, op)(*arguments), getattr(reference, op)(*arguments))
    kept = tuning.read(tuning.file_of(CPU))
    assert [key.split()[0] for key in kept] == [f"op={op}" for op in calls]


@pytest.mark.gpu
def test_a_gpu_is_timed_by_its_events_and_a_capture_takes_what_has_run(folder):
    dy, x, rows = (t.cuda() for t in (torch.randn(512, 64), torch.randn(512, 128), torch.arange(0, 64, 4)))
    assert tuning.clock(lambda: dy.t() @ x, dy.device) > 0
    with wk.autotune(), backends.backend("triton"):
        torch.testing.assert_close(ops.rowsparse_wgrad(dy, x, rows), reference.rowsparse_wgrad(dy, x, rows))
        kept = tuning.read(tuning.file_of(dy.device))
        assert len(kept) == 1
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            found = ops.rowsparse_wgrad(dy, x, rows)
        graph.replay()
        torch.testing.assert_close(found, reference.rowsparse_wgrad(dy, x, rows))
    assert tuning.read(tuning.file_of(dy.device)) == kept
