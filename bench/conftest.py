"""Benchmarks with pytest-benchmark: options, and the fixture ``race``.

    pytest bench --results bench/results/cpu.json                # measure everything and write it
    pytest bench --benchmark-disable                             # a smoke test: verify a part, time nothing (--every-case: all)
    pytest bench -k conv2d --benchmark-json=x.json               # one op; "extra_info" holds the row that --results writes
    pytest bench -k "conv2d and depthwise and NHWC and bfloat16" --benchmark-columns=median,iqr,rounds   # one case

pytest-benchmark's own columns are of "ours", in seconds of one call; its peers, floor and rates are in extra_info. More
options: ``--device cuda``, ``--rounds N``, ``--copies N`` (see wuskern/bench/clocks.py).
"""

from pathlib import Path
from typing import Any

import pytest
import torch

from bench import gpu_summary, results
from bench.race import ROUNDS, Race, race_clock
from wuskern.bench.ceilings import Ceilings
from wuskern.bench.clocks import settle_allocator

ROWS: pytest.StashKey[list[dict[str, Any]]] = pytest.StashKey()
CEILINGS: pytest.StashKey[Ceilings] = pytest.StashKey()
PROVENANCE: pytest.StashKey[dict[str, Any]] = pytest.StashKey()

SHAPES = ("case", "shape", "name", "norm")  # the parameters that say what a test is measured on


def positive(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise ValueError
    return int(text)


def pytest_addoption(parser):
    group = parser.getgroup("wuskern")
    group.addoption("--results", type=Path, metavar="PATH", help="write this run to a JSON file")
    group.addoption("--device", choices=("cpu", "cuda"), default="cpu", help="where to run (default: cpu)")
    group.addoption("--rounds", type=positive, default=ROUNDS, metavar="N", help=f"rounds of each race (default: {ROUNDS})")
    group.addoption("--budget", type=float, metavar="SECONDS", help="of bench/gpu: start no case later (default: none)")
    group.addoption("--every-case", action="store_true", help="with --benchmark-disable: verify all of them")
    group.addoption("--copies", type=positive, metavar="N", help="sets of inputs that rotate; 1: warm (default: by size)")


def pytest_configure(config):
    if config.getoption("--results") and config.getoption("--benchmark-disable"):
        raise pytest.UsageError("--results: expected a run that measures, got --benchmark-disable")
    config.stash[ROWS] = []
    config.stash[CEILINGS] = Ceilings(config.getoption("--device"))


@pytest.hookimpl(wrapper=True)
def pytest_collection_modifyitems(config, items):
    """Marks what make test-more verifies beside the first case of each test, and has a smoke run of what -k and -m leave."""
    first = {item.nodeid.split("[")[0]: item for item in reversed(items)}.values()
    for item in items:
        if item not in first:
            item.add_marker("more")
        if "race" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.benchmark(timer=race_clock, disable_gc=True))
    yield
    if config.getoption("--benchmark-disable") and not config.getoption("--every-case"):
        kept = smoke_cases(items)
        config.hook.pytest_deselected(items=[item for item in items if item not in kept])
        items[:] = [item for item in items if item in kept]


def smoke_cases(items):
    """Of each test, its first shape in everything that it is parametrized by, and each other shape in one of these, in turn."""
    seen, kept = {}, set()
    for item in items:
        parameters = item.callspec.params if hasattr(item, "callspec") else {}
        shape = next((str(parameters[name]) for name in SHAPES if name in parameters), None)
        of_test = seen.setdefault(item.nodeid.split("[")[0], {})
        of_test.setdefault(shape if "bench/gpu" not in item.nodeid else item.nodeid, []).append(item)
    for of_test in seen.values():
        first, *others = of_test.values()
        kept.update(first, (cases[i % len(cases)] for i, cases in enumerate(others, 1)))
    return kept


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session, exitstatus):
    path, rows = session.config.getoption("--results"), session.config.stash[ROWS]
    on_gpu = session.config.getoption("--device") == "cuda"  # minutes on a GPU are not thrown away for one case that failed
    if path is not None and (exitstatus == 0 or on_gpu) and rows:
        results.write(path, rows, session.config.stash[CEILINGS])


def pytest_benchmark_update_json(config, benchmarks, output_json):
    """Makes what a case is parametrized by, and what it adds, plain JSON, so that results can be grouped by it."""
    for row in output_json["benchmarks"]:
        row["params"] = {name: plain(value) for name, value in (row["params"] or {}).items()}
        row["extra_info"] = plain(row["extra_info"])


def plain(value: Any) -> Any:
    """The value as JSON has it: what is no string, number, list or mapping as text."""
    if isinstance(value, dict):
        return {str(name): plain(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [plain(inner) for inner in value]
    return value if isinstance(value, str | int | float | bool | None) else str(value).removeprefix("torch.")


def pytest_terminal_summary(terminalreporter, config):
    """How each group went, and whether the file was written."""
    rows = config.stash[ROWS]
    for group in dict.fromkeys(row["group"] for row in rows):
        faster = results.medians([row for row in rows if row["group"] == group], "faster")
        mean, worst = results.geometric_mean(faster), min(faster)
        terminalreporter.write_line(f"{group}: peer / ours {mean:.2f} (geometric mean of {len(faster)}), worst {worst:.2f}")
    path = config.getoption("--results")
    if path is not None:
        failed = terminalreporter.stats.get("failed") and config.getoption("--device") == "cpu"
        terminalreporter.write_line(f"results: {path}" if rows and not failed else "no results")
    if "bench/gpu" in " ".join(config.args):
        for line in gpu_summary.lines(rows, config.stash[CEILINGS].as_dict() if rows else {}):
            terminalreporter.write_line(line)


@pytest.fixture(scope="session")
def device(request):
    name = request.config.getoption("--device")
    if name == "cuda" and not torch.cuda.is_available():
        pytest.skip("needs an NVIDIA GPU")
    settle_allocator()
    return name


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.fixture
def race(request, benchmark, device):
    """A :class:`bench.race.Race`; its rows go into the results, and with versions and commit into ``extra_info``."""
    config = request.config
    if PROVENANCE not in config.stash:
        config.stash[PROVENANCE] = results.provenance(device)

    def record(row) -> None:
        config.stash[ROWS].append(row)
        benchmark.extra_info.update(row | {"environment": config.stash[PROVENANCE]})

    return Race(benchmark, config.stash[CEILINGS], record, config.getoption("--rounds"), config.getoption("--copies"))
