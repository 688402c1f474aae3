"""What a GPU's choice of a way costs the host: it is remembered by the call as it comes, and right after whatever changes."""

import sys
import timeit

import pytest
import torch

from wuskern import ops
from wuskern.kernels import backends
from wuskern.kernels.cuda import rule
from wuskern.kernels.problem import call_key, problem_of

GEOMETRY = (3, 3), (1, 1), (1, 1), (1, 1), 1
OPS = ("rowsparse_wgrad", "rowsparse_dgrad", "rowsparse_wgrad_conv2d", "rowsparse_dgrad_conv2d")


def arguments(op: str, dtype: torch.dtype = torch.bfloat16) -> tuple:
    """On the meta device, which takes the checks that a GPU takes."""
    like = {"dtype": dtype, "device": "meta"}
    rows = torch.empty(12, dtype=torch.int64, device="meta")
    if not op.endswith("conv2d"):
        return torch.empty(2048, 12, **like), torch.empty(2048 if "wgrad" in op else 240, 512, **like), rows
    images = torch.empty(8, 12, 28, 28, **like).contiguous(memory_format=torch.channels_last)
    if "wgrad" in op:
        return images, images, rows, *GEOMETRY
    return images, torch.empty(64, 12, 3, 3, **like), rows, (28, 28), *GEOMETRY[1:]


@pytest.fixture
def chosen(monkeypatch):
    """How each op runs where every way does nothing, and the problems that were asked about."""
    asked = []

    def choose(problem, capability, ways):
        asked.append(problem)
        return rule.Decision("native", "", {})

    monkeypatch.setattr(backends, "ways", lambda op, device: (dict.fromkeys(rule.WAYS, lambda *_: None), []))
    monkeypatch.setattr(rule, "choose", choose)
    by_op = {op: backends._by_problem(op) for op in OPS}
    monkeypatch.setattr(backends, "choose", lambda op, device, numel=None: by_op[op])
    return asked


@pytest.mark.parametrize("op", OPS)
def test_a_problem_is_asked_about_once(op, chosen):
    given = arguments(op)
    for _ in range(3):
        getattr(ops, op)(*given)
    assert chosen == [problem_of(op, *given)]
    getattr(ops, op)(*arguments(op, torch.float32))
    assert len(chosen) == 2


def changed(op: str) -> list[tuple]:
    """The same call with one thing changed each, which another problem has."""
    dy, other, rows, *geometry = arguments(op)
    if not geometry:
        more = [(dy.t().contiguous().t(), other, rows), (torch.cat([dy, dy], 1), other, rows)]
        return [*more, (dy, torch.cat([other, other], 1), rows), (torch.cat([dy, dy]), other, rows)]
    strided = list(geometry)
    strided[1] = (2, 2)
    in_planes = dy.contiguous(), other.contiguous() if "wgrad" in op else other, rows, *geometry
    return [
        in_planes,
        (dy, other, rows, *strided),
        (dy, other, rows, *geometry[:-1], 4),
        (torch.cat([dy, dy], 1), other, rows, *geometry),
    ]


@pytest.mark.parametrize("op", OPS)
def test_another_problem_has_another_key(op):
    given = [arguments(op), *changed(op)]
    keys = [call_key(dy, other, rows, geometry) for dy, other, rows, *geometry in given]
    problems = [problem_of(op, *one) for one in given]
    for i, key in enumerate(keys):
        for j in range(i):
            assert (key == keys[j]) <= (problems[i] == problems[j])
    assert len(set(keys)) == len(keys)
    dy, other, rows, *geometry = given[0]
    assert call_key(dy, other, rows, [list(g) if isinstance(g, tuple) else g for g in geometry]) == keys[0]


@pytest.mark.parametrize("op", OPS[::2])
def test_tf32_that_is_allowed_later_is_another_key(op):
    dy, other, rows, *geometry = arguments(op, torch.float32)
    setting = torch.backends.cudnn.conv if geometry else torch.backends.cuda.matmul
    before, keys = setting.fp32_precision, []
    try:
        for precision in ("ieee", "tf32"):
            setting.fp32_precision = precision
            keys.append(call_key(dy, other, rows, geometry))
    finally:
        setting.fp32_precision = before
    assert keys[0] != keys[1]


def test_not_more_calls_are_remembered_than_a_training_meets(chosen, monkeypatch):
    monkeypatch.setattr(backends, "MOST_KNOWN", 3)
    known = backends.Known()
    for i in range(5):
        known[i] = i
    assert known == {3: 3, 4: 4}


def calls_of(function) -> int:
    """How many functions of Python are called."""
    count = 0

    def profile(frame, event, _):
        nonlocal count
        count += event == "call"

    sys.setprofile(profile)
    try:
        function()
    finally:
        sys.setprofile(None)
    return count


@pytest.mark.parametrize(("op", "most"), [(op, 24 if op.endswith("conv2d") else 17) for op in OPS])
def test_the_host_calls_few_functions_for_a_product(op, most, chosen, capsys):
    """The time is printed; what is asserted is a count: 31 and 23 with a problem for each call."""
    given = arguments(op)
    run = getattr(ops, op)
    run(*given)
    microseconds = min(timeit.repeat(lambda: run(*given), number=500, repeat=5)) / 500 * 1e6
    count = calls_of(lambda: run(*given))
    with capsys.disabled():
        print(f"\n{op}: {microseconds:.1f} us of Python, {count} calls", end="")
    assert count <= most
