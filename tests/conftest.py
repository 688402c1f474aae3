"""What all tests share. Where there is no GPU, Triton's kernels run through its interpreter."""

import contextlib
import os
import sys
import sysconfig
import tempfile
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # before torch: threads that spin take the time of the other tests
if "TORCHINDUCTOR_CACHE_DIR" not in os.environ:  # before torch too: in its own folder lies what other settings made
    compiled = tempfile.TemporaryDirectory(prefix="inductor-")
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = compiled.name

import pytest
import torch
from hypothesis import settings

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # before anything imports triton

from tests import emulation, selection
from wuskern.kernels import backends

PYTHON_HEADER = Path(sysconfig.get_path("include")) / "Python.h"
ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "build" / "testing"))  # the pybind11 module of csrc/testing

# The same examples each time and everywhere; HYPOTHESIS_PROFILE=default draws new ones.
settings.register_profile("fixed", derandomize=True, deadline=None)  # a busy machine is no fault
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "fixed"))

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


def pytest_configure(config):
    """``WUSKERN_EXPECT=cpu,testing,...`` makes a part that is missing an error, where it would only skip tests."""
    missing = []
    for part in filter(None, os.environ.get("WUSKERN_EXPECT", "").split(",")):
        obstacle = {
            "cpu": lambda: backends.library_obstacle("cpu"),
            "cuda": lambda: backends.library_obstacle("cuda"),
            "cuda-file": lambda: None if cuda_library().exists() or "cuda" in backends.build_record() else "not built",
            "triton": lambda: backends.triton_obstacle("cpu" if "TRITON_INTERPRET" in os.environ else "cuda"),
            "testing": lambda: testing_obstacle() if PYTHON_HEADER.exists() else None,
            "emulated": emulation.obstacle,
            "gpu": lambda: None if torch.cuda.is_available() else "torch.cuda.is_available() is False",
        }[part]()
        if obstacle:
            missing.append(f"{part}: {obstacle}")
    if missing:
        raise pytest.UsageError(f"WUSKERN_EXPECT: {'; '.join(missing)}")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config, items):
    """Before pytest takes what ``-m`` asks for."""
    items.sort(key=lambda item: "triton/test_compile" not in item.nodeid)  # minutes: nothing waits for it at the end
    left_out = selection.interpreted_in_other_dtypes(items)
    config.hook.pytest_deselected(items=[item for item in items if item in left_out])
    items[:] = [item for item in items if item not in left_out]
    selection.thin_out(items)
    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="needs an NVIDIA GPU"))


def pytest_terminal_summary(terminalreporter):
    """The table of tests/distributed/test_combinations.py, and how each of its rows ended."""
    rows = {}
    for outcome in ("passed", "failed", "skipped"):
        for report in terminalreporter.stats.get(outcome, []):
            if "test_a_combination_trains_as_stock" in report.nodeid and (report.when == "call" or outcome != "passed"):
                rows[report.nodeid.split("[")[1].rstrip("]")] = outcome
    if rows:
        terminalreporter.section("combinations: call, precision, gradients, micro-batches, processes")
        for row, outcome in sorted(rows.items()):
            cells = "".join(cell.ljust(16) for cell in row.split(", "))
            terminalreporter.line(f"{cells}{outcome}")


def testing_obstacle():
    try:
        import wuskern_testing  # noqa: F401
    except ImportError as error:
        return f"{error} (make build)" if PYTHON_HEADER.exists() else f"this Python has no headers ({PYTHON_HEADER})"
    return None


def cuda_library() -> Path:
    return backends.LIBRARY_DIR / backends.LIBRARIES["cuda"]


@pytest.fixture(scope="session")
def common():
    """csrc/common, as C++ compiled it."""
    if obstacle := testing_obstacle():
        pytest.skip(obstacle)
    import wuskern_testing

    return wuskern_testing


OBSTACLES = {"native": backends.library_obstacle, "triton": backends.triton_obstacle, "reference": lambda _: None}
BACKENDS = (*backends.NAMES, emulation.NAME)


def on_backend(name: str) -> contextlib.AbstractContextManager[None]:
    """Every op inside runs on the named backend, one of ``BACKENDS``."""
    return emulation.emulated() if name == emulation.NAME else backends.backend(name)


def obstacle_to(op: str, backend: str, device: str = "cpu") -> str | None:
    """Why a backend cannot run an op on a device type, or None."""
    if backend == emulation.NAME:
        return emulation.op_obstacle(op, device)
    if obstacle := OBSTACLES[backend](device):
        return obstacle
    try:
        with backends.backend(backend):
            backends.choose(op, device)
    except RuntimeError as error:
        return str(error)
    return None


def backends_that_run(op: str) -> list[str]:
    """On the CPU."""
    return [name for name in BACKENDS if obstacle_to(op, name) is None]


@pytest.fixture(params=BACKENDS)
def backend(request):
    """Each backend that runs the op of the file's mark ``op`` on the test's device in turn, asked for explicitly."""
    device, mark = request.node.callspec.params.get("device", "cpu"), request.node.get_closest_marker("op")
    if obstacle := obstacle_to(mark.args[0] if mark else "bias_grad", request.param, device):
        pytest.skip(obstacle)
    with on_backend(request.param):
        yield request.param


@pytest.fixture(params=DEVICES)
def device(request):
    return request.param


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.fixture(autouse=True, scope="module")
def _compiled_by_no_other_file():
    """torch.compile compiles one piece of code only so often in a process, such as the forward of nn.Sequential."""
    if "torch._dynamo" in sys.modules:
        torch._dynamo.reset()


@pytest.fixture
def exact_libraries():
    """A GPU's libraries sum in float32, and in the same order each time."""
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    before = matmul.allow_bf16_reduced_precision_reduction, matmul.allow_fp16_reduced_precision_reduction, cudnn.deterministic
    _set_libraries(False, False, True)
    yield
    _set_libraries(*before)


def _set_libraries(bfloat16_sums, float16_sums, deterministic):
    torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = bfloat16_sums
    torch.backends.cuda.matmul.allow_fp16_reduced_precision_reduction = float16_sums
    torch.backends.cudnn.deterministic = deterministic


@pytest.fixture
def one_thread():
    """For many tiny layers: threads that wait for each other take several times as long on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def one_thread_of_children(monkeypatch):
    """The same for processes that a test starts."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
