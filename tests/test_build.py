"""What setup.py decides, and what the binaries hold."""

import importlib.util
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.conftest import ROOT
from wuskern import backends


@pytest.fixture(scope="module")
def plan():
    spec = importlib.util.spec_from_file_location("wuskern_setup", ROOT / "setup.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.plan


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


@pytest.mark.parametrize("name", backends.LIBRARIES.values())
def test_a_library_depends_on_the_stable_abi_alone(name):
    """Undefined symbols of PyTorch are C functions of its shim; no C++ symbol of torch, c10 or at, and no Python."""
    path = backends.LIBRARY_DIR / name
    if not path.exists() or shutil.which("nm") is None:
        pytest.skip(f"{name} is not built, or there is no nm")
    symbols = subprocess.run(["nm", "-D", "--undefined-only", path], capture_output=True, text=True, check=True).stdout
    undefined = [line.split()[-1] for line in symbols.splitlines()]
    assert any(s.startswith("aoti_torch_") for s in undefined)
    foreign = [s for s in undefined if s.startswith(("_ZN2at", "_ZN3c10", "_ZN5torch", "_ZNK3c10", "_ZNK2at", "Py", "_Py"))]
    assert foreign == []


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
    assert {name for name, found in includes.items() if any(i.startswith("torch/") for i in found)} == {"stable_abi.h"}
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
