"""Row AdamW: a step of a twentieth of the rows against the bytes that it moves over the bandwidth. See bench/test_optim.py."""

import torch

from bench.test_optim import ADAMW, PEERS, Case, problem, verify

DTYPES = (torch.bfloat16, torch.float32)
CASES = [Case(ADAMW, (n, n), dtype, 0.05, weights) for n, weights in ((16384, 1), (4096, 16), (8192, 1)) for dtype in DTYPES]
TINY = [Case(ADAMW, (40, 24), dtype, 0.1, 2) for dtype in DTYPES]


def pytest_generate_tests(metafunc):
    metafunc.parametrize("case", CASES if metafunc.config.getoption("--device") == "cuda" else TINY, ids=str)


def test_updates(case, device, race):
    moved = case.kind.passes * case.weights * case.k * case.shape[1] * case.dtype.itemsize
    ceilings = race.ceilings
    race(
        {name: lambda p, name=name: p.optimizers[name].step() for name in ("ours", *PEERS)},
        group="gpu row AdamW",
        case=str(case),
        inputs=lambda: (problem(case, device),),
        verify=lambda results, first: verify(results, first, case),
        peer="fused",
        floor=lambda t: moved / ceilings.bytes_per_second,
        moved=moved,
        flops=0,
        copies=1 if case.weights > 1 else 2,
        most_of_floor=1.5,
    )
