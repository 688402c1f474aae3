"""The processes of one training, as torchrun starts them: each has its share of every batch, the first one writes.

In a single process all of this does nothing.
"""

import contextlib
import os
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from wuskern.common.world import world_size

world = world_size

T = TypeVar("T")


class GroupBroken(Exception):
    """An error because another process ended, or did not answer in time."""


def planned() -> int:
    """How many processes torchrun started; 1 without it.

    Raises:
        ValueError: several processes in an environment that is not torchrun's.
    """
    size = _of_environment("WORLD_SIZE", 1)
    if size > 1:
        missing = [name for name in ("RANK", "MASTER_ADDR", "MASTER_PORT") if not os.environ.get(name)]
        if missing:
            raise ValueError(f"WORLD_SIZE: expected with {', '.join(missing)}, as torchrun sets them, got {size} alone")
        if (rank := _of_environment("RANK", 0)) >= size:
            raise ValueError(f"RANK: expected a number under WORLD_SIZE = {size}, got {rank}")
        for name in ("MASTER_PORT", "LOCAL_RANK"):
            _of_environment(name, 0)
    return size


def _of_environment(name: str, least: int) -> int:
    text = os.environ.get(name, str(least))
    if not (text.isascii() and text.isdigit() and least <= int(text) < 2**31):
        raise ValueError(f"{name}: expected a whole number from {least}, as torchrun sets it, got {text!r}")
    return int(text)


def rank() -> int:
    return dist.get_rank() if world() > 1 else 0


@contextlib.contextmanager
def group(device: str, timeout: float) -> Iterator[None]:
    """A block in which the processes that torchrun started are joined: by NCCL on CUDA devices, by gloo elsewhere.

    Args:
        device: as for torch. timeout: seconds that one process waits for another.

    Raises:
        GroupBroken: instead of torch's own error, where a process is lost.
    """
    if planned() == 1:
        yield
        return
    try:
        backend = "nccl" if device.startswith("cuda") else "gloo"
        dist.init_process_group(backend, timeout=timedelta(seconds=timeout), **_of_this_life())
        try:
            yield
        finally:
            dist.destroy_process_group()
    except RuntimeError as error:  # torch.distributed's errors are RuntimeErrors, and gloo's have no class of their own
        if not (isinstance(error, dist.DistError) or "gloo" in str(error)):
            raise
        raise GroupBroken(
            f"rank {os.environ.get('RANK')}: another process ended, or did not answer within {timeout:g} s "
            f"({str(error).splitlines()[0]})"
        ) from error


def _of_this_life() -> dict[str, Any]:
    """Arguments of ``init_process_group`` for processes that torchrun has started again. Its store may still hold the addresses
    of those before them, with which a connection is then tried: theirs go under a name of their own."""
    restarts = _of_environment("TORCHELASTIC_RESTART_COUNT", 0)
    if restarts == 0 or os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        return {}
    store = dist.TCPStore(os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), is_master=False)  # type: ignore[attr-defined]
    named = dist.PrefixStore(f"restart {restarts}", store)  # type: ignore[attr-defined]
    return {"store": named, "rank": int(os.environ["RANK"]), "world_size": planned()}


def usable_device(name: str) -> str:
    """The device ``name``; "auto" is cuda where there is one. Each of several processes takes a GPU of its own.

    Raises ``ValueError`` if this PyTorch cannot use it, or as ``planned``.
    """
    several = planned() > 1
    chosen = ("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name
    if chosen == "cuda" and several:
        chosen = f"cuda:{os.environ.get('LOCAL_RANK', 0)}"
    try:
        if torch.device(chosen).type == "cpu" and torch.device(chosen).index:
            raise ValueError("the CPU is one device")
        torch.zeros(1, device=chosen).item()
        if several and chosen.startswith("cuda"):
            torch.cuda.set_device(chosen)
    except Exception as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"--device: expected one that this PyTorch can use, got {chosen!r} ({reason})") from error
    return chosen


def share(batch: Tensor) -> Tensor:
    """This process's part of a batch; all parts are of one length, and what remains is dropped."""
    length = len(batch) // world()
    return batch[rank() * length : (rank() + 1) * length]


def total(values: Tensor) -> Tensor:
    """The sum over the processes, in place."""
    if world() > 1:
        dist.all_reduce(values)
    return values


def by_first(action: Callable[[], object]) -> None:
    """Has the first process call ``action``. Where that fails, all processes raise ``ValueError`` with its reason."""
    reason = None
    if rank() == 0:
        try:
            action()
        except (OSError, ValueError) as error:
            reason = str(error)
    if (reason := of_first(reason)) is not None:
        raise ValueError(reason)


def of_first(value: T) -> T:
    """The first process's value, in all processes."""
    if world() == 1:
        return value
    sent = [value]
    dist.broadcast_object_list(sent)
    return sent[0]


def of_all(values: list[T]) -> list[T]:
    """The lists of all processes, one after another."""
    if world() == 1:
        return values
    lists: list[list[T]] = [[] for _ in range(world())]
    dist.all_gather_object(lists, values)
    return [value for of_process in lists for value in of_process]
