"""The choice of a backend: the fastest that can, an explicit wish obeyed or refused."""

import json
import os
import subprocess
import sys

import pytest
import torch

import wuskern as wk
from wuskern import backends


def test_native_is_chosen_on_the_cpu():
    if obstacle := backends.library_obstacle("cpu"):
        pytest.skip(obstacle)
    assert backends.choose("bias_grad", "cpu").backend == "native"


def test_without_a_library_the_reference_runs_and_says_why(monkeypatch, tmp_path):
    (tmp_path / "build.json").write_text(json.dumps({"left_out": {"cpu": "left out at build time: no compiler"}}))
    monkeypatch.setattr(backends, "LIBRARY_DIR", tmp_path)
    monkeypatch.setattr(backends, "library_obstacle", backends.library_obstacle.__wrapped__)
    monkeypatch.setattr(backends, "_choose", backends._choose.__wrapped__)
    choice = backends.choose("bias_grad", "cpu")
    assert (choice.backend, choice.reason) == ("reference", "not native: left out at build time: no compiler")
    with (
        backends.backend("native"),
        pytest.raises(RuntimeError, match="backend 'native' cannot run bias_grad on cpu: left out"),
    ):
        wk.ops.bias_grad(torch.ones(2, 3), -1)


def test_a_library_that_does_not_load_is_reported(monkeypatch, tmp_path):
    (tmp_path / backends.LIBRARIES["cpu"]).write_text("not a library")
    monkeypatch.setattr(backends, "LIBRARY_DIR", tmp_path)
    assert "libwuskern_cpu.so does not load" in backends.library_obstacle.__wrapped__("cpu")


def test_wishes_nest_and_end():
    with wk.backend("reference"):
        assert backends.choose("bias_grad", "cpu").backend == "reference"
        with wk.backend("triton"):
            assert backends._wish == "triton"
        assert backends.choose("bias_grad", "cpu").reason == "asked for"
    assert backends._wish is None


def test_a_device_without_kernels_runs_the_reference():
    choice = backends.choose("bias_grad", "meta")
    assert choice.backend == "reference"
    assert "there is no compiled library for meta" in choice.reason
    with wk.backend("native"), pytest.raises(RuntimeError, match="there is no compiled library for meta"):
        backends.choose("bias_grad", "meta")


def test_unknown_names():
    with pytest.raises(ValueError, match="name: expected one of native, triton, reference, got 'cuda'"), wk.backend("cuda"):
        pass
    program = "import torch, wuskern as wk; wk.ops.bias_grad(torch.ones(2, 3), -1)"
    env = os.environ | {"WUSKERN_BACKEND": "fast"}
    result = subprocess.run([sys.executable, "-c", program], env=env, capture_output=True, text=True)
    assert "WUSKERN_BACKEND: expected one of native, triton, reference, got 'fast'" in result.stderr


@pytest.mark.parametrize(
    ("architecture", "capability", "expected"),
    [
        ("8.0", (8, 0), True),
        ("8.0", (8, 9), True),  # machine code runs on later minors of its major
        ("8.6", (8, 0), False),
        ("8.0", (9, 0), False),
        ("8.0+PTX", (9, 0), True),  # PTX on everything later
        ("12.0+PTX", (10, 0), False),
        ("9.0a", (9, 0), True),
        ("9.0a", (10, 0), False),
    ],
)
def test_which_code_runs_on_which_gpu(architecture, capability, expected):
    assert backends.serves(architecture, capability) is expected


def test_doctor_tells_what_runs():
    report = str(wk.doctor(wk.convert(torch.nn.Sequential(torch.nn.Linear(2, 2)))))
    answers = dict(line.split("  ", 1) for line in report.splitlines())
    assert answers["torch"].strip().startswith(torch.__version__)
    assert answers["bias_grad on cpu"].strip().startswith(backends.choose("bias_grad", "cpu").backend)
    assert answers["0"].strip() == "SkippableLinear, dense"
