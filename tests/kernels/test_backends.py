"""The choice of a backend: the fastest that can, an explicit wish obeyed or refused."""

import json
import os
import re
import subprocess
import sys

import pytest
import torch

import wuskern as wk
from tests.conftest import ROOT
from wuskern.kernels import backends


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


def test_a_backend_without_a_kernel_for_an_op_says_so():
    if obstacle := backends.triton_obstacle("cpu"):
        pytest.skip(obstacle)
    with wk.backend("triton"), pytest.raises(RuntimeError, match="cannot run no_such_op on cpu: it has no Triton kernel yet"):
        backends.choose("no_such_op", "cpu")


def test_unknown_names():
    with pytest.raises(ValueError, match="name: expected one of native, triton, reference, got 'cuda'"), wk.backend("cuda"):
        pass
    program = "import torch, wuskern as wk; wk.ops.bias_grad(torch.ones(2, 3), -1)"
    env = os.environ | {"WUSKERN_BACKEND": "fast"}
    result = subprocess.run([sys.executable, "-c", program], env=env, capture_output=True, text=True)
    assert "WUSKERN_BACKEND: expected one of native, triton, reference, got 'fast'" in result.stderr


@pytest.mark.parametrize(
    ("architectures", "capability", "expected"),
    [
        ("8.0", (8, 0), "machine code for 8.0"),
        ("8.0", (8, 9), "machine code for 8.0"),  # runs on later minors of its major
        ("8.6", (8, 0), None),
        ("8.0", (9, 0), None),
        ("8.0+PTX", (9, 0), "PTX of 8.0"),  # on everything later
        ("12.0+PTX", (10, 0), None),
        ("9.0a", (9, 0), "machine code for 9.0a"),
        ("9.0a", (10, 0), None),
        ("9.0a 10.0+PTX 12.0+PTX", (11, 0), "PTX of 10.0"),
        ("9.0a 10.0+PTX 12.0+PTX", (10, 3), "machine code for 10.0"),
        ("9.0a 10.0+PTX 12.0+PTX", (99, 0), "PTX of 12.0"),
    ],
)
def test_which_code_runs_on_which_gpu(architectures, capability, expected):
    found = backends.code_for(architectures, capability)
    assert found is None if expected is None else found.startswith(expected)


@pytest.mark.parametrize(
    "capability", [(8, 0), (8, 6), (8, 7), (8, 9), (9, 0), (10, 0), (10, 3), (11, 0), (12, 0), (12, 1), (13, 0)]
)
def test_the_default_build_has_code_for_every_gpu_from_ampere_on(capability):
    if not (ROOT / "CMakeLists.txt").exists():
        pytest.skip("the sources are not beside the tests")
    default = re.search(r"set\(archs ([^)]*\+PTX)\)", (ROOT / "CMakeLists.txt").read_text())
    assert backends.code_for(default[1], capability) is not None


def gpu_of(monkeypatch, capability):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "a GPU")
    for cached in ("triton_obstacle", "library_obstacle", "_choose"):
        monkeypatch.setattr(backends, cached, getattr(backends, cached).__wrapped__)


@pytest.mark.parametrize("capability", [(7, 0), (7, 5)])
def test_a_gpu_before_ampere_runs_the_reference(monkeypatch, capability):
    if backends.importlib.util.find_spec("triton") is None:
        pytest.skip("the package triton is not installed")
    gpu_of(monkeypatch, capability)
    for op in ("bias_grad", "rowsparse_wgrad", "rowsparse_adam_"):
        choice = backends.choose(op, "cuda")
        assert choice.backend == "reference"
        assert f"from compute capability 8.0 on, and cuda:0 has 7.{capability[1]}" in choice.reason
    with wk.backend("triton"), pytest.raises(RuntimeError, match=r"Triton compiles bfloat16 from compute capability 8\.0 on"):
        backends.choose("bias_grad", "cuda")
    assert dict(wk.doctor().lines)["cuda:0"].startswith(f"a GPU, 7.{capability[1]}: no code of ours, PyTorch's own")


def test_triton_serves_a_gpu_from_ampere_on(monkeypatch):
    if backends.importlib.util.find_spec("triton") is None:
        pytest.skip("the package triton is not installed")
    gpu_of(monkeypatch, (8, 0))
    assert backends.triton_obstacle("cuda") is None


def test_doctor_says_what_a_gpu_gets_that_is_yet_unknown(monkeypatch):
    monkeypatch.setattr(backends, "library_obstacle", lambda device: None)
    monkeypatch.setattr(torch.ops.wuskern_native, "cuda_architectures", lambda: "9.0a 12.0+PTX", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    said = dict(wk.doctor().lines)["a GPU yet unknown"]
    assert said == "PTX of 12.0, which the driver compiles at the first launch, the tiles and rates of sm_80"


def test_doctor_tells_what_runs():
    report = str(wk.doctor(wk.convert(torch.nn.Sequential(torch.nn.Linear(2, 2)))))
    answers = dict(line.split("  ", 1) for line in report.splitlines())
    assert answers["torch"].strip().startswith(torch.__version__)
    assert answers["bias_grad on cpu"].strip().startswith(backends.choose("bias_grad", "cpu").backend)
    assert answers["0"].strip() == "SkippableLinear, dense"
