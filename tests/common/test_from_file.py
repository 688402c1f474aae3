"""``FILE.py:function``: what a user's file gives, and what is said where it gives nothing."""

import pickle
import sys

import pytest

from wuskern.common import from_file
from wuskern.common.from_file import function_from, said_in_one_line


@pytest.fixture(autouse=True)
def as_before(monkeypatch):
    """Nothing of a test's files stays behind."""
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr(from_file, "_loaded", {})
    before = set(sys.modules)
    yield
    for name in set(sys.modules) - before:
        del sys.modules[name]


@pytest.fixture
def write(tmp_path):
    def write(name, text):
        (tmp_path / name).write_text(text)
        return str(tmp_path / name)

    return write


def test_a_file_is_executed_once_for_all_of_its_functions(write):
    path = write("own_model.py", "runs = []\nruns.append(1)\ndef make():\n    return runs\ndef other():\n    return runs\n")
    assert function_from(f"{path}:make", "--model")() is function_from(f"{path}:other", "--data")()
    assert function_from(f"{path}:make", "--model")() == [1]
    assert pickle.loads(pickle.dumps(function_from(f"{path}:make", "--model")))() == [1]


def test_a_neighbour_is_found_when_the_file_is_executed_and_when_the_function_runs(write):
    write("own_neighbour.py", "width = 3\nimport own_main\nassert own_main.begun")
    write("own_late.py", "width = 4\n")
    late = "def make():\n    import own_late\n    return own_neighbour.width + own_late.width\n"
    path = write("own_main.py", f"begun = True\nimport own_neighbour\n{late}")
    assert function_from(f"{path}:make", "--model")() == 7
    folder = path.rpartition("/")[0]
    assert sys.path[0] != folder
    assert sys.path.count(folder) == 1


def test_what_a_neighbour_imported_is_not_executed_again(write):
    shared = write("own_shared.py", "runs = []\nruns.append(1)\ndef make():\n    return runs\n")
    path = write("own_first.py", "import own_shared\ndef make():\n    return own_shared.runs\n")
    assert function_from(f"{path}:make", "--model")() is function_from(f"{shared}:make", "--data")()


def test_a_file_may_have_the_name_of_a_module(write):
    path = write("json.py", "runs = []\nruns.append(1)\ndef make():\n    return runs\n")
    import json

    assert function_from(f"{path}:make", "--model")() is function_from(f"{path}:make", "--data")()
    assert function_from(f"{path}:make", "--model")() == [1]
    assert sys.modules["json"] is json


DEFECTS = {
    "raises": ("x = 1\n\ny = 1 / 0\n", r"--model: .*own\.py, line 3: ZeroDivisionError: division by zero"),
    "deep": ("def f():\n    return {}['a\\nb']\nf()\n", r"line 2: KeyError: 'a\\nb'"),
    "elsewhere": ("import json\njson.loads('{')\n", r"line 2: JSONDecodeError: Expecting"),
    "syntax": ("x = 1\nx = = 2\n", r"line 2: SyntaxError: invalid syntax"),
    "leaves": ("import sys\nsys.exit(3)\n", r"line 2: SystemExit: 3"),
    "other": ("def build():\n    pass\n", r"--model: expected a function of .*own\.py, which has build, got 'make'"),
    "none": ("x = 1\n", r"which has none, got 'make'"),
    "value": ("make = 7\n", r"--model: expected a function, got make of .*own\.py, which is of type int"),
}


@pytest.mark.parametrize(("text", "message"), DEFECTS.values(), ids=DEFECTS)
def test_a_defect_of_the_file_is_said_in_one_line(write, text, message):
    path = write("own.py", text)
    for _ in range(2):  # nothing half-executed is left for the second time
        with pytest.raises(ValueError, match=message) as caught:
            function_from(f"{path}:make", "--model")
        assert "\n" not in str(caught.value)
        assert text in (DEFECTS["other"][0], DEFECTS["none"][0], DEFECTS["value"][0]) or "own" not in sys.modules


@pytest.mark.parametrize("text", ["own.py", "own.py:", ":make", "own:make", "own.py:a-b", "", "own.txt:make"])
def test_what_names_no_function_of_a_file_is_refused(text):
    with pytest.raises(ValueError, match=r"--data: expected FILE\.py:function, got"):
        function_from(text, "--data")


def test_a_missing_file_is_said(tmp_path):
    with pytest.raises(ValueError, match=r"--data: expected a file, got .*own\.py, which does not exist"):
        function_from(f"{tmp_path}/own.py:make", "--data")


def test_what_the_function_raises_is_said_with_its_line(write):
    path = write("own.py", "def make():\n    raise RuntimeError('no\\nweights')\n")
    make = function_from(f"{path}:make", "--model")
    with pytest.raises(ValueError, match=r"^--model: .*own\.py, line 2: RuntimeError: no$"), said_in_one_line("--model", path):
        make()
