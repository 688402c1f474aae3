"""The results of bench/ on their way into the README and docs/: files, tables, the comparison of two runs."""

import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench import compare, condense, render, render_methods, results, tables
from tests.bench_rows import row, rowsparse_rows
from tests.test_bench import known_ceilings
from wuskern.train.methods import PARTS


def measured():
    sums = ("ours", "sum", "copy")
    return [
        row("conv2d", "VGG NCHW float32", faster=2.1, of_floor=1.05)
        | {"dtype_name": "float32", "layout": "NCHW", "problem": [64, 64, 64, 32, 3, 1, 1]},
        row("conv2d", "stem NCHW float32", faster=0.8, of_floor=1.3)
        | {"dtype_name": "float32", "layout": "NCHW", "problem": [32, 3, 64, 32, 7, 2, 1]},
        row("bias_grad", "conv 16x256x56x56 NCHW bfloat16", "sum", sums, faster=9.0, of_copy=0.5)
        | {"dtype_name": "bfloat16", "size": 2**24},
        row("linear", "head", faster=0.9, of_floor=1.4),
        row("host cost", "Linear, outside", faster=0.7, extra_microseconds=12.0) | {"limit_microseconds": 15},
        *rowsparse_rows(),
        row("optim", render.ADAMW_ROWS, "fused", ("ours", "fused", "foreach"), faster=11.9, over_best=11.9),
        row("optim", "AdamW 64x64", "fused", ("ours", "fused", "foreach"), faster=1.0, over_best=0.9),
        row("step", "VGG-16", "dense", faster=1.5, could_save=0.4, saves=0.36, of_possible=0.9, frozen_saves=0.1),
    ]


def policy_row(policy, accuracies, seconds, **more):
    """A row of the summary of ``wuskern train``."""
    empty = dict.fromkeys(("s", "f", "faster", "control_of", "against_control", "loss"))
    return empty | dict(policy=policy, accuracies=accuracies, seconds=seconds, epochs=[3, 4]) | more


TRAINED = {
    "summary": [
        policy_row("dense", [0.5, 0.6], 2.0),
        policy_row(
            "wus",
            [0.5, 0.5],
            1.0,
            s=0.5,
            f=0.4,
            faster=0.2,
            loss=True,
            against_control={"points": -1.5, "low": -2.0, "high": 0.25, "seeds": 2},
        ),
        policy_row("dense in the time of wus", [0.5, 0.53], 1.1, control_of="wus"),
    ],
    "verdict": "It lost.\nTwice.",
    "environment": {"processor": "P", "threads": 2, "torch": "2"},
}


PHASES = {"data": 0.1, "fprop": 0.2, "backward": 0.3, "optimizer": 0.4}
MEASURED = {
    "phase_seconds": PHASES,
    "seeds": [0, 1],
    "test_loss": 0.7,
    "flops": None,
    "against_dense": None,
    "against_control": None,
}
METHODS = {
    "summary": [
        TRAINED["summary"][0] | MEASURED,
        TRAINED["summary"][1]
        | MEASURED
        | {
            "policy": "wus+lr:factor=.3",
            "flops": 0.75,
            "against_dense": {"points": -5.0, "low": -9.0, "high": 1.0, "seeds": 2},
            "against_control": TRAINED["summary"][1]["against_control"],
        },
        TRAINED["summary"][2] | MEASURED | {"control_of": "wus+lr:factor=.3"},
    ],
    "arguments": {"model": "mlp", "data": "digits"},
    "environment": TRAINED["environment"],
    "peak_bytes": {"dense": 2**20, "wus+lr:factor=.3": 3 * 2**20},
}


@pytest.fixture
def folder(tmp_path):
    """Results of a run and of a training, and a README with their markers."""
    results.write(tmp_path / "cpu.json", measured(), known_ceilings())
    (tmp_path / "demo.json").write_text(json.dumps(TRAINED))
    markers = [f"<!-- {name} -->\nold\n<!-- /{name} -->\n" for name in [*tables.RACES, "demo"]]
    (tmp_path / "README.md").write_text("before\n" + "between\n".join(markers) + "after\n")
    return tmp_path


def fill(folder, *arguments):
    pages = [path for path in (folder / "README.md", folder / "more.md") if path.exists()]
    tables.main(list(arguments), pages, folder / "RESULTS.md", folder, methods=None)


def edit(path, old, new):
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


def test_results_say_what_was_measured_and_from_which_commit(folder):
    content = results.read(folder / "cpu.json")
    assert content["rows"] == measured()
    assert {"wuskern", "torch", "triton", "python", "processor", "threads", "compiler", "commit"} <= set(content["environment"])
    commit = content["environment"]["commit"]
    assert commit is None or re.fullmatch(r"[0-9a-f]{12}(-dirty)?", commit)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"format": 1, "rows": []}'])
def test_results_of_another_format_are_refused_in_one_line(folder, text):
    (folder / "cpu.json").write_text(text)
    with pytest.raises(SystemExit, match=r"cpu.json: expected .*, got "):
        fill(folder)


def test_tables_are_written_between_the_markers_only(folder):
    fill(folder)
    text = (folder / "README.md").read_text()
    assert text.startswith("before\n<!-- conv2d -->\n| dtype")
    assert text.endswith("<!-- /demo -->\nafter\n")
    assert "old" not in text
    assert text.count("between") == len(tables.RACES)
    fill(folder, "--check")


@pytest.mark.parametrize(("name", "old", "new"), [
    ("README.md", "2.1", "3.1"), ("RESULTS.md", "2.1", "3.1"), ("cpu.json", "2.1", "3.1"), ("demo.json", "0.6", "0.7"),
])  # fmt: skip
def test_check_fails_where_one_number_differs(folder, name, old, new):
    (folder / "cpu.json").write_text((folder / "cpu.json").read_text().replace("0.8", "2.1"))
    fill(folder)
    edit(folder / name, old, new)
    with pytest.raises(SystemExit, match="not what bench/results say"):
        fill(folder, "--check")


def test_a_section_stands_in_any_page_and_in_several(folder):
    edit(folder / "README.md", "<!-- conv2d -->\nold\n<!-- /conv2d -->\n", "")
    for name in ("conv2d", "demo"):
        with (folder / "more.md").open("a") as more:
            more.write(f"<!-- {name} -->\n<!-- /{name} -->\n")
    fill(folder)
    assert "<!-- conv2d -->\n| dtype" in (folder / "more.md").read_text()
    assert all("<!-- demo -->\n| policy" in (folder / page).read_text() for page in ("README.md", "more.md"))
    edit(folder / "more.md", "2.1", "3.1")
    with pytest.raises(SystemExit, match=r"more\.md: not what bench/results"):
        fill(folder, "--check")


@pytest.mark.parametrize(("old", "new"), [
    ("<!-- conv2d -->", ""), ("<!-- /conv2d -->", ""), ("before", "<!-- other -->\n<!-- /other -->"),
])  # fmt: skip
def test_a_section_without_markers_and_markers_without_a_section_are_errors(folder, old, new):
    edit(folder / "README.md", old, new)
    with pytest.raises(SystemExit, match=r"expected .*, got "):
        fill(folder)


def test_a_training_is_named_like_its_file(folder):
    (folder / "methods-mlp.json").write_text(json.dumps(METHODS))
    readme = folder / "README.md"
    readme.write_text(readme.read_text() + "<!-- methods_mlp -->\n<!-- /methods_mlp -->\n")
    fill(folder)
    assert "<!-- methods_mlp -->\n**None of 1 methods is shown to beat" in readme.read_text()
    assert (folder / "methods-mlp.png").read_bytes().startswith(b"\x89PNG")


def test_a_method_stands_beside_dense_in_the_same_time():
    rendered = render_methods.with_claims(METHODS)
    lines = rendered.splitlines()
    assert lines[0] == "**None of 1 methods is shown to beat dense training in the same time.**"
    cells = [cell.strip() for cell in lines[5].split("|")[1:-1]]
    assert cells[:9] == ["`wus+lr:factor=.3`", "50.00 % +- 0.00", "0.700", "3.5", "1.00", "0.10", "0.20", "0.30", "0.40"]
    assert cells[9:12] == ["75%", "3.0", "1.25x"]
    assert cells[12:] == ["-5.00 (-9.00 to +1.00)", "51.50 % +- 2.12", "-1.50 (-2.00 to +0.25) **loss**"]
    assert f"- {PARTS['wus+lr'].reported}" in lines
    won = json.loads(json.dumps(METHODS))
    won["summary"][1]["loss"] = False
    said = render_methods.methods(won).splitlines()[0]
    beaten = "1 of 1 methods beat dense training in the same time: `wus+lr:factor=.3`"
    assert said == f"{beaten} (of 1 comparisons, 0.03 come out so by chance)."


def test_every_part_has_its_source_s_claim():
    assert [name for name, part in PARTS.items() if not part.reported] == []


def test_a_condensed_training_keeps_its_summary_and_each_run_s_accuracies():
    epochs = [{"test_accuracy": 0.123456789, "total_seconds": 1.0}, {"test_accuracy": 0.5, "total_seconds": 2.00049}]
    content = METHODS | {"runs": [{"policy": "wus", "seed": 3, "epochs": epochs}], "controls": []}
    found = condense.condensed(content)
    assert found["runs"] == [{"policy": "wus", "seed": 3, "seconds": 2.0, "test_accuracy": [0.12346, 0.5]}]
    assert found["summary"] == METHODS["summary"]


def test_a_script_is_rendered_from_the_file_of_its_name(folder, monkeypatch):
    monkeypatch.setattr(tables, "SCRIPTS", {"whole_step": lambda content: f"{content['rows']} rows"})
    (folder / "whole-step.json").write_text('{"rows": 7}')
    readme = folder / "README.md"
    readme.write_text(readme.read_text() + "<!-- whole_step -->\n<!-- /whole_step -->\n")
    fill(folder)
    assert "<!-- whole_step -->\n7 rows\n" in readme.read_text()


def test_a_group_that_was_not_measured_has_no_section_and_its_markers_are_an_error(folder):
    rows = [row for row in measured() if row["group"] != "rowsparse linear"]
    results.write(folder / "cpu.json", rows, known_ceilings())
    with pytest.raises(SystemExit, match="rowsparse_linear: expected results, got markers only"):
        fill(folder)
    edit(folder / "README.md", "<!-- rowsparse_linear -->\nold\n<!-- /rowsparse_linear -->\n", "")
    fill(folder)
    assert "rowsparse" in (folder / "README.md").read_text()


def test_losses_are_marked(folder):
    fill(folder)
    text = (folder / "RESULTS.md").read_text()
    assert "0.80x **slower** +- 0.02 | 1.30x **over 1.1** +- 0.02" in text
    assert "2.10x +- 0.02 | 1.05x +- 0.02" in text
    readme = (folder / "README.md").read_text()
    assert "0.80x **slower**" in readme
    assert "slower than stock: stem NCHW float32" in readme
    assert "| 11.90x **under 12x** |" in readme
    assert "| 0.90x **slower** |" in readme
    assert "| wus | 50.00 % +- 0.00 | 3.5 | 1.0 | 50% | 40% | 20% | -1.50 (-2.00 to +0.25) **loss** |" in readme
    assert "- It lost.\n- Twice.\n" in readme


@pytest.mark.parametrize(("group", "name", "value", "mark"), [
    ("conv2d", "faster", 0.994, "slower"), ("conv2d", "faster", 0.996, None), ("host cost", "faster", 0.5, None),
    ("conv2d", "of_floor", 1.1049, None), ("conv2d", "of_floor", 1.11, "over 1.1"),
    ("bias_grad", "of_copy", 0.81, "over 0.8"), ("step", "of_possible", 0.89, "under 90%"), ("step", "saves", 0.1, None),
    ("host cost", "extra_microseconds", 15.1, "over 15"), ("host cost", "extra_microseconds", 15.0, None),
])  # fmt: skip
def test_what_counts_as_missed(group, name, value, mark):
    one = row(group, "c", **{name: value}) | {"size": render.LARGE, "limit_microseconds": 15}
    assert render.missed(one, name) == mark


def test_a_small_gradient_is_not_held_against_a_copy():
    assert render.missed(row("bias_grad", "c", of_copy=2.0) | {"size": render.LARGE - 1}, "of_copy") is None


@given(st.floats(0.1, 10), st.floats(0.1, 10), st.floats(0, 1), st.floats(0, 1))
def test_agreement_is_symmetric_and_reflexive(a, b, iqr_a, iqr_b):
    one, two = {"median": a, "iqr": iqr_a}, {"median": b, "iqr": iqr_b}
    assert compare.agree(one, one)
    assert compare.agree(one, two) == compare.agree(two, one)
    assert compare.agree(one, two) == (abs(a - b) <= max(iqr_a, iqr_b) or abs(a - b) <= 0.01 * max(a, b))


def test_two_runs_agree_or_the_rows_that_do_not_are_listed(folder, capsys):
    first, again = folder / "cpu.json", folder / "cpu-again.json"
    rows = measured()
    rows[0]["derived"]["faster"]["median"] = 2.12  # apart by the interquartile range
    results.write(again, rows, known_ceilings())
    assert compare.main([str(first), str(again)]) == 0
    assert "conv2d: 2 of 2 rows agree" in capsys.readouterr().out

    rows[0]["derived"]["faster"]["median"] = 2.13
    results.write(again, rows[:-1], known_ceilings())
    assert compare.main([str(first), str(again)]) == 1
    printed = capsys.readouterr().out
    assert "conv2d: 1 of 2 rows agree" in printed
    assert "VGG NCHW float32: faster 2.100 +- 0.020 and 2.130 +- 0.020" in printed
    assert "step: 0 of 1 rows agree" in printed
    assert "measured in the first run only" in printed
    fill(folder)
    assert "conv2d: 1 of 2 rows agree" in (folder / "RESULTS.md").read_text()
    assert compare.main([str(first), str(folder / "demo.json")]) == 2
    assert compare.main([str(first)]) == 2
