"""Memory of an optimizer's state: what torch.zeros_like gives, on huge pages where it is large."""

from pathlib import Path

import pytest
import torch
from torch.nn import Parameter

import wuskern as wk
from tests.conftest import obstacle_to
from tests.optim.models import row_grad
from wuskern.optim.state import zeros_like

SMAPS = Path("/proc/self/smaps")


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", [(3, 4), (0, 3), (3000, 2100), (8, 4, 3, 3)], ids=str)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "transposed"])
def test_it_is_torchs(shape, dtype, layout):
    parameter = torch.ones(shape, dtype=dtype)
    if layout == "channels_last" and parameter.ndim == 4:
        parameter = parameter.to(memory_format=torch.channels_last)
    if layout == "transposed":
        parameter = parameter.transpose(0, 1)
    ours, stock = zeros_like(Parameter(parameter)), torch.zeros_like(Parameter(parameter))
    assert (type(ours), ours.dtype, ours.requires_grad, ours.stride()) == (type(stock), dtype, False, stock.stride())
    assert torch.equal(ours, stock)


def flags_of(address: int) -> list[str]:
    """What the kernel says of the mapping that holds an address."""
    inside = False
    for line in SMAPS.read_text().splitlines():
        first = line.split(maxsplit=1)[0]
        if "-" in first and not first.endswith(":"):
            begin, end = (int(side, 16) for side in first.split("-"))
            inside = begin <= address < end
        elif inside and first == "VmFlags:":
            return line.split()[1:]
    return []


@pytest.mark.skipif(not SMAPS.exists(), reason="needs /proc/self/smaps")
@pytest.mark.parametrize("make", [wk.optim.AdamW, lambda ps: wk.optim.SGD(ps, lr=0.1, momentum=0.9)], ids=["AdamW", "SGD"])
def test_the_state_of_a_large_weight_asks_for_huge_pages(make):
    if reason := obstacle_to("rowsparse_sgd_", "native"):
        pytest.skip(reason)
    weight = Parameter(torch.ones(4096, 2048))
    optimizer = make([weight])
    row_grad(weight, [1, 7])
    optimizer.step()
    kept = [t for t in optimizer.state[weight].values() if isinstance(t, torch.Tensor) and t.ndim]
    assert kept
    for t in kept:
        assert "hg" in flags_of(t.data_ptr() + t.nbytes // 2)
