"""The communication hook of DDP: what has to be sent of a bucket goes into one flat tensor, is averaged, and goes back."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.futures import Future
from torch.nn import Parameter

from wuskern.distributed.shares import Share

Bucket = Any  # torch.distributed.GradBucket, which a PyTorch without torch.distributed lacks
Reduce = Callable[[Any], "Future[Tensor]"]  # of a bucket, or of a Packed


@dataclass(frozen=True)
class Sent:
    """One tensor to send for a parameter, and ``put``, which takes its average."""

    parameter: Parameter
    values: Tensor
    put: Callable[[Tensor], object]


class Packed:
    """The parts of a bucket in one flat tensor, with the methods of ``torch.distributed.GradBucket``."""

    def __init__(self, bucket: Bucket, parts: list[Sent]) -> None:
        self._bucket, self.parts = bucket, parts
        self._flat = torch.cat([part.values.reshape(-1) for part in parts])

    def buffer(self) -> Tensor:
        return self._flat

    def set_buffer(self, buffer: Tensor) -> None:
        self._flat = buffer

    def gradients(self) -> list[Tensor]:
        pieces = self._flat.split([part.values.numel() for part in self.parts])
        return [piece.view(part.values.shape) for piece, part in zip(pieces, self.parts, strict=True)]

    def parameters(self) -> list[Parameter]:
        return [part.parameter for part in self.parts]

    def index(self) -> int:
        return self._bucket.index()

    def is_last(self) -> bool:
        return self._bucket.is_last()

    def put_back(self, average: Tensor) -> None:
        self._flat = average
        for part, gradient in zip(self.parts, self.gradients(), strict=True):
            part.put(gradient)


def average(group: "dist.ProcessGroup") -> Reduce:
    """A function that averages a bucket over the group as DDP itself does: divide, then add up."""

    def reduce(bucket: Any) -> "Future[Tensor]":
        flat = bucket.buffer().div_(group.size())
        done = dist.all_reduce(flat, group=group, async_op=True).get_future()
        return done.then(_value)

    return reduce


def send(bucket: Bucket, shares: dict[Parameter, Share], reduce: Reduce) -> "Future[Tensor]":
    """Averages what the shares say, and the bucket's other gradients whole. The future holds the bucket's own buffer."""
    by_parameter = [shares.get(parameter) for parameter in bucket.parameters()]
    if all(share is None or share.dense for share in by_parameter):
        return reduce(bucket)
    buffer = bucket.buffer()
    parts: list[Sent] = []
    for share, parameter, gradient in zip(by_parameter, bucket.parameters(), bucket.gradients(), strict=True):
        parts += _parts(share, parameter, gradient)
    if not parts:
        return _done(buffer)
    packed = Packed(bucket, parts)

    def unpack(done: "Future[Any]") -> Tensor:
        packed.put_back(_value(done))
        return buffer

    return reduce(packed).then(unpack)


def _parts(share: Share | None, parameter: Parameter, gradient: Tensor) -> list[Sent]:
    if share is None:
        return [Sent(parameter, gradient, gradient.copy_)]
    share.refuse_stray()
    if share.nothing:
        return []
    part = share.part()
    return [Sent(parameter, part.take(gradient), lambda average: part.put(gradient, average))]


def _value(done: "Future[Any]") -> Tensor:
    value = done.value()
    return value if isinstance(value, Tensor) else value[0]


def _done(buffer: Tensor) -> "Future[Tensor]":
    future: Future[Tensor] = Future(devices=[buffer.device] if buffer.is_cuda else [])
    future.set_result(buffer)
    return future
