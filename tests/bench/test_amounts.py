"""The floor of ``wuskern bench``: FLOPs as PyTorch counts them, bytes counted by hand, and the slower of the two."""

import dataclasses

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from wuskern.bench.asked import Amounts, Asked, Work
from wuskern.bench.ceilings import Ceilings
from wuskern.bench.variants import Variants, names

LINEAR = Asked("linear", (16, 10, 20), torch.float32, 0.5)
CONV = Asked("conv2d", (2, 4, 8, 6, 3), torch.bfloat16, 0.5, padding=1, groups=2)


def amounts(asked: Asked) -> tuple[Variants, Amounts, tuple[torch.Tensor, torch.Tensor]]:
    variants = Variants(asked)
    batch = asked.batch(variants.stock)
    return variants, Amounts(asked, *batch, variants.stock.weight), batch


@pytest.mark.parametrize("asked", [LINEAR, dataclasses.replace(CONV, groups=1)], ids=["linear", "conv2d"])
@pytest.mark.parametrize("name", ["stock", "dense", "skip", "rows", "stock frozen"])
def test_flops_are_those_that_pytorch_counts(asked, name):
    variants, of_all, batch = amounts(asked)
    with FlopCounterMode(display=False) as counter:
        variants.runs[name](*batch)
    least, sums = sum(part.flops for part in of_all.of(name)), 2 * of_all.y  # our operations count what they add up, too
    assert least <= counter.get_total_flops() <= least + (sums if name in ("skip", "rows") else 0)


def test_bytes_and_flops_worked_by_hand():
    _, of_all, _ = amounts(LINEAR)
    x, y, w, product = 16 * 20, 16 * 10, 10 * 20, 2 * 16 * 10 * 20
    forward = Work(product, 4 * (x + w + y))
    assert of_all.of("stock") == (forward, Work(2 * product, 4 * (y + x + w + x + w)))  # reads dY, x, W; writes dX, dW
    assert of_all.of("skip") == of_all.of("stock frozen") == (forward, Work(product, 4 * (y + w + x)))
    assert of_all.of("rows") == of_all.of("plain rows") == (forward, Work(product, 4 * (y + w // 2 + x + x + w // 2)))
    kept = Work(product, 4 * (x + w + y + x // 2))
    assert of_all.of("columns") == (kept, Work(product * 3 // 2, 4 * (y + w + x // 2 + x + w // 2)))
    assert of_all.of("bias_grad") == (Work(0, 0), Work(0, 4 * y))


def test_the_floor_takes_the_slower_of_bytes_and_flops_in_forward_and_in_backward():
    _, of_all, _ = amounts(LINEAR)
    ceilings = Ceilings("cpu")
    ceilings.__dict__["bandwidth"] = {"copy": 4.0, "read": 2.0}
    ceilings.__dict__["_gemm"] = {torch.float32: 8.0}
    forward, backward = of_all.of("skip")
    assert of_all.floor("skip", ceilings) == max(forward.moved / 4, forward.flops / 8) + max(
        backward.moved / 4, backward.flops / 8
    )
    assert of_all.floor("bias_grad", ceilings) == 16 * 10 * 4 / 4


def test_all_names_are_those_of_the_runs():
    for asked in (LINEAR, CONV, Asked("conv2d", (2, 4, 8, 6, 3), torch.float32, 0.5, groups=4)):
        assert set(names(asked)) == set(Variants(asked).runs)
