"""What setup.py decides, and what the binaries hold."""

import importlib.util
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

from tests.conftest import ROOT
from wuskern.kernels import backends


def program(path: str):
    """A program of this repository that is in no package."""
    spec = importlib.util.spec_from_file_location(Path(path).stem + "_program", ROOT / path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def plan():
    return program("setup.py").plan


@pytest.fixture(scope="module")
def wheel():
    pytest.importorskip("elftools", reason="needs auditwheel, which reads libraries with it")
    return program(".ci/make_wheel.py")


FREE = {"cpu": None, "cuda": None}
NO_NVCC = {"cpu": None, "cuda": "there is no nvcc"}
NOTHING = {"cpu": "there is no C++ compiler", "cuda": "there is no C++ compiler"}


@pytest.mark.parametrize(
    ("wish", "obstacles", "parts"),
    [
        ("auto", FREE, ["cpu", "cuda"]),
        ("auto", NO_NVCC, ["cpu"]),
        ("auto", NOTHING, []),
        ("cpu", FREE, ["cpu"]),
        ("cuda", FREE, ["cpu", "cuda"]),
        ("none", FREE, []),
    ],
)
def test_plan(plan, wish, obstacles, parts):
    built, left_out = plan(wish, obstacles)
    assert built == parts
    assert set(left_out) == {"cpu", "cuda"} - set(parts)
    assert all(left_out.values())


def test_a_wish_that_cannot_be_met_ends_the_build(plan):
    with pytest.raises(SystemExit, match="WUSKERN_BUILD=cuda: the cuda library cannot be built: there is no nvcc"):
        plan("cuda", NO_NVCC)
    with pytest.raises(SystemExit, match="WUSKERN_BUILD: expected one of auto, cpu, cuda, none, got 'gpu'"):
        plan("gpu", FREE)


def test_an_older_setuptools_is_named(monkeypatch):
    """It would fail over pyproject.toml."""
    setuptools = pytest.importorskip("setuptools")
    monkeypatch.setattr(setuptools, "__version__", "65.5.0")
    with pytest.raises(SystemExit, match=r"expected setuptools 77 or later, got 65.5.0 \(pip install 'setuptools>=77'\)"):
        program("setup.py")


def test_the_readme_asks_for_a_newer_setuptools():
    if not (ROOT / "README.md").exists():
        pytest.skip("there is no README beside the tests")
    lines = [line for line in (ROOT / "README.md").read_text().splitlines() if "pip install" in line and "setuptools" in line]
    assert lines
    assert all('"setuptools>=77"' in line for line in lines)


# ---- what make asks of a machine with a GPU -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("device", "seen", "expected"),
    [(False, False, "none"), (False, True, "ready"), (True, True, "ready"), (True, False, "is there, and torch .* sees no")],
)
def test_a_gpu_is_asked_for_from_the_driver_and_from_torch(device, seen, expected, tmp_path, monkeypatch):
    gpu = program(".ci/gpu.py")
    if device:
        (tmp_path / "nvidiactl").touch()
    monkeypatch.setattr(gpu, "DEVICES", (str(tmp_path / "nvidiactl"),))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: seen)
    assert re.search(expected, gpu.state())


def make(*arguments):
    if shutil.which("make") is None or not (ROOT / "Makefile").exists():
        pytest.skip("there is no make, or no Makefile beside the tests")
    return subprocess.run(["make", "-C", ROOT, *arguments], capture_output=True, text=True)


@pytest.mark.parametrize("goal", ["test-gpu", "sanitize-racecheck"])
def test_without_a_gpu_a_goal_is_skipped_and_where_torch_does_not_see_one_it_fails(goal):
    skipped = make(goal, "GPU_STATE=none")
    assert skipped.returncode == 0
    assert skipped.stdout.count("skipped: this machine has no NVIDIA GPU") == 1
    failed = make(goal, "GPU_STATE=/dev/nvidiactl is there")
    assert failed.returncode != 0
    assert "/dev/nvidiactl is there" in failed.stderr


def test_each_tool_is_a_goal_of_its_own_with_its_own_time():
    for tool in ("memcheck", "racecheck", "initcheck", "synccheck"):
        planned = make("-n", f"sanitize-{tool}", "GPU_STATE=ready", "LIMIT=7").stdout
        assert planned.count("compute-sanitizer") == 1
        assert f"timeout 7 compute-sanitizer --error-exitcode 1 --tool {tool}" in planned
    assert make("-n", "sanitize", "GPU_STATE=ready").stdout.count("compute-sanitizer") == 5


def test_nvcc_outside_of_path_is_found(tmp_path, monkeypatch):
    nvcc = tmp_path / "bin" / "nvcc"
    nvcc.parent.mkdir()
    nvcc.write_text(f"#!/bin/sh\necho 'release {(torch.version.cuda or '13.0')}, a stand-in'\n")
    nvcc.chmod(0o755)
    monkeypatch.setenv("PATH", os.defpath)
    monkeypatch.delenv("CUDACXX", raising=False)
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    assert f"-DCMAKE_CUDA_COMPILER={nvcc}" in program(".ci/gpu.py").cmake_arguments()
    monkeypatch.setenv("CUDA_HOME", str(tmp_path / "nowhere"))
    with pytest.raises(SystemExit, match="the CUDA library cannot be built: there is no nvcc"):
        program(".ci/gpu.py").cmake_arguments()


# ---- what was built -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", backends.LIBRARIES.values())
def test_a_library_depends_on_the_stable_abi_alone(wheel, name):
    """No C++ symbol of torch, c10 or at, and no Python."""
    path = backends.LIBRARY_DIR / name
    if not path.exists():
        pytest.skip(f"{name} is not built")
    assert wheel.foreign_symbols(path) == []
    assert tuple(map(int, wheel.newest_glibc(path).split("."))) >= (2, 17)


def test_symbols_beyond_the_stable_abi_are_found(wheel):
    """In a library of torch's own, which calls C++ of c10 and at."""
    torch_python = Path(torch.__file__).parent / "lib" / "libtorch_python.so"
    if not torch_python.exists():
        pytest.skip("this torch has no libtorch_python.so")
    foreign = wheel.foreign_symbols(torch_python)
    assert any(name.startswith("_ZN3c10") for name in foreign)
    assert any(name.startswith("Py") for name in foreign)


def test_a_wheel_without_a_part_is_noticed(wheel):
    whole = ["wuskern/__init__.py", "wuskern/py.typed", "wuskern/lib/libwuskern_cpu.so", "wuskern/lib/libwuskern_cuda.so"]
    assert wheel.missing_parts(whole, "cuda") == wheel.missing_parts(whole[:3], "cpu") == []
    assert wheel.missing_parts(whole[:3], "cuda") == ["wuskern/lib/libwuskern_cuda.so"]
    assert wheel.missing_parts(whole[2:], "cpu") == ["wuskern/py.typed"]


@pytest.mark.parametrize("name", backends.LIBRARIES.values())
def test_a_library_names_no_path_of_the_build_machine(name):
    path: Path = backends.LIBRARY_DIR / name
    if not path.exists():
        pytest.skip(f"{name} is not built")
    assert str(ROOT).encode() not in path.read_bytes()


def test_one_header_alone_touches_pytorch():
    includes = {
        path.relative_to(ROOT / "csrc").as_posix(): re.findall(r"#include [<\"](\S+)[>\"]", path.read_text())
        for path in (ROOT / "csrc").rglob("*.*")
    }
    assert {name for name, found in includes.items() if any(i.startswith("torch/") for i in found)} == {"torch/stable_abi.h"}
    foreign = {
        name: i
        for name, found in includes.items()
        for i in found
        if re.match(r"ATen/|c10/|Python\.h|torch/(extension|torch|all)\.h", i)
    }
    assert foreign == {}
    for name, found in includes.items():
        if name.startswith("common/"):
            assert not [i for i in found if i.startswith(("torch/", "cuda", "../"))], name
