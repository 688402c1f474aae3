"""What the tests of ``prepare`` share."""

import torch
from torch.nn.parallel import DistributedDataParallel

import wuskern as wk


def wrapped(model, prepare=None, **ddp):
    made = DistributedDataParallel(wk.convert(model.double()), **ddp)
    return made, wk.distributed.prepare(made, **(prepare or {}))


def draw(rank, *size):
    return torch.randn(size, generator=torch.Generator().manual_seed(rank), dtype=torch.float64)


def raises(kind, call, *args, **kwargs):
    """The message. Both ranks have to arrive here: no group is left behind that waits."""
    try:
        call(*args, **kwargs)
    except kind as error:
        return str(error)
    raise AssertionError(f"no {kind.__name__}")
