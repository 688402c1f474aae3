"""Forward and backward of a skipped Linear: against the frozen stock layer, and what the flag costs the host."""

import contextlib
import copy
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.nn as nn
import torch.nn.functional as F

from bench.race import Race
from tests.cases import NETWORK_LINEARS, TINY_LINEAR
from wuskern import convert

CALLS = 200  # per timing of the host cost


def problem(shape: tuple[int, int, int], dtype: torch.dtype, device: str):
    """The skipped layer, and a function that makes x ``[rows, inputs]`` and dy ``[rows, outputs]``."""
    rows, inputs, outputs = shape
    layer = convert(nn.Linear(inputs, outputs, device=device, dtype=dtype))
    layer.skip = True

    def tensors():
        x = torch.randn(rows, inputs, device=device, dtype=dtype, requires_grad=True)
        return x, torch.randn(rows, outputs, device=device, dtype=dtype)

    return layer, tensors


def forward_and_backward(function, *parameters: nn.Parameter):
    return lambda x, dy: torch.autograd.grad(function(x), (x, *parameters), dy)


def verify(results, x, dy) -> None:
    for got, expected in zip(results["ours"], results["frozen"], strict=True):
        assert (got - expected).norm() <= torch.finfo(got.dtype).eps ** 0.5 * expected.norm()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("name", NETWORK_LINEARS)
def test_linear(name, dtype, device, race):
    skipped(race, name, NETWORK_LINEARS[name], dtype, device)


def skipped(race: Race, name: str, shape: tuple[int, int, int], dtype: torch.dtype, device: str, **facts: Any) -> None:
    """``shape``: rows, inputs and outputs. facts: go to the race as they are."""
    rows, inputs, outputs = shape
    ours, tensors = problem(shape, dtype, device)
    dense = nn.Linear(inputs, outputs, device=device, dtype=dtype)
    dense.load_state_dict(ours.state_dict())
    frozen = copy.deepcopy(dense)
    frozen.weight.requires_grad_(False)
    weight, ceilings = frozen.weight, race.ceilings

    @torch.no_grad()
    def least(x, dy):
        return F.linear(x, weight, frozen.bias), dy @ weight

    race(
        {
            "ours": forward_and_backward(ours, ours.bias),
            "frozen": forward_and_backward(frozen, frozen.bias),
            "dense": forward_and_backward(dense, dense.bias, dense.weight),
            "fprop + dgrad": least,
        },
        case=f"{name} {rows}x{inputs} -> {outputs} {str(dtype)[6:]}",
        inputs=tensors,
        verify=verify,
        peer="frozen",
        floor=lambda t: t["fprop + dgrad"] + rows * outputs * dtype.itemsize / ceilings.bytes_per_second,
        flops=4 * rows * inputs * outputs,
        moved=(2 * rows * (inputs + outputs) + 2 * inputs * outputs) * dtype.itemsize,
        dtype=dtype,
        **{"group": "linear", **facts},
    )


@pytest.mark.parametrize("where", ["outside", "in a process group"])
def test_host_cost(where, device, race):
    """Against ``F.linear`` with the same parameters, the weight detached. Nothing here takes longer than the host."""
    ours, tensors = problem(TINY_LINEAR, torch.float32, device)
    weight = ours.weight.detach()
    with process_group() if where != "outside" else contextlib.nullcontext():
        race(
            {
                "ours": forward_and_backward(ours, ours.bias),
                "frozen": forward_and_backward(lambda x: F.linear(x, weight, ours.bias), ours.bias),
            },
            group="host cost",
            case=f"Linear, {where}",
            inputs=tensors,
            verify=verify,
            peer="frozen",
            derived={"extra_microseconds": lambda t: 1e6 * (t["ours"] - t["frozen"])},
            flops=0,
            repeat=CALLS,
            host=True,
            limit_microseconds=15 if where == "outside" else 25,
        )


@contextlib.contextmanager
def process_group():
    """One process that is a group by itself."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        yield
    finally:
        dist.destroy_process_group()
