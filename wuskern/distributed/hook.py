"""The communication hook of DDP: what has to be sent of a bucket goes into one flat tensor, is averaged, and goes back."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.futures import Future, collect_all
from torch.nn import Parameter

from wuskern.distributed.shares import Share

Bucket = Any  # torch.distributed.GradBucket, which a PyTorch without torch.distributed lacks
Reduce = Callable[[Any], "Future[Tensor]"]  # of a bucket, or of a Packed
FIRST = 2**20  # bytes of DDP's first bucket, which is small so that sending begins early


@dataclass(frozen=True)
class Sent:
    """One tensor to send for a parameter (None: for nobody's gradient), and ``put``, which takes its average."""

    parameter: Parameter | None
    values: Tensor
    put: Callable[[Tensor], object]


class Packed:
    """Parts of buckets in one flat tensor, with the methods of ``torch.distributed.GradBucket``."""

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
        return [part.parameter for part in self.parts if part.parameter is not None]

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


@dataclass(frozen=True, eq=False)
class Waiting:
    """A bucket of which too little is to be sent for a message of its own."""

    buffer: Tensor
    parts: list[Sent]
    done: "Future[Tensor]"


class Sender:
    """Averages what the shares say of each bucket, and the bucket's other gradients whole.

    What is to be sent of a bucket waits for that of the next ones until it is as much as DDP's buckets are: the biases of a
    model that skips go in one message.

    Args:
        shares: by weight. reduce: averages. cap: bytes of DDP's buckets.
    """

    def __init__(self, shares: dict[Parameter, Share], reduce: Reduce, cap: int) -> None:
        self.shares, self.reduce, self.cap = shares, reduce, cap
        self.least = min(FIRST, cap)  # bytes of the next message
        self.waiting: list[Waiting] = []

    def forget(self) -> None:
        """Forgets what a backward that failed has left waiting."""
        self.waiting, self.least = [], min(FIRST, self.cap)

    def send(self, bucket: Bucket, riders: Sequence[Sent] = ()) -> "Future[Tensor]":
        """The future of the bucket's own buffer. ``riders``: what travels with the last gradients, in their dtype.

        DDP goes on when all of these futures are done. So the future of each message is one of them, or a part of one: its
        callback is over then, and nothing of it runs while a process group ends.
        """
        buffer, last = bucket.buffer(), bucket.is_last()
        others = [w for w in self.waiting if (w.buffer.dtype, w.buffer.device) != (buffer.dtype, buffer.device)]
        before = [self._flush(others, bucket)] if others else []  # a flat tensor has one dtype
        by_parameter = [self.shares.get(parameter) for parameter in bucket.parameters()]
        whole = all(share is None or share.dense for share in by_parameter)
        if whole and _bytes([buffer]) >= self.least:  # without a copy
            rest = [self._flush(self.waiting, bucket, riders)] if last and (self.waiting or riders) else []
            return _all([*before, *rest, self.reduce(bucket)], buffer)
        if whole and last and not (self.waiting or riders):
            return _all([*before, self.reduce(bucket)], buffer)
        parts: list[Sent] = []
        for share, parameter, gradient in zip(by_parameter, bucket.parameters(), bucket.gradients(), strict=True):
            parts += _parts(share, parameter, gradient)
        mine = Waiting(buffer, parts, _future(buffer))
        self.waiting.append(mine)
        if last or _bytes(part.values for waiting in self.waiting for part in waiting.parts) >= self.least:
            return _all([*before, self._flush(self.waiting, bucket, riders)], buffer)
        return _all([*before, mine.done], buffer)

    def _flush(self, buckets: list[Waiting], bucket: Bucket, riders: Sequence[Sent] = ()) -> "Future[Any]":
        """Sends what waits of these buckets. The future is done when all of it is."""
        self.waiting, self.least = [waiting for waiting in self.waiting if waiting not in buckets], self.cap
        parts = [part for waiting in buckets for part in waiting.parts]

        def end(done: "Future[Any] | None") -> None:
            try:
                if done is not None:
                    packed.put_back(_value(done))
            except Exception as error:
                for waiting in buckets:  # DDP waits for each of them
                    waiting.done.set_exception(error)  # type: ignore[arg-type]  # torch's stub says Tensor
                raise
            for waiting in buckets:
                waiting.done.set_result(waiting.buffer)

        if not parts and not riders:
            end(None)
            return buckets[0].done
        packed = Packed(bucket, [*parts, *riders])
        return self.reduce(packed).then(end)


def _bytes(tensors: Any) -> int:
    return sum(tensor.numel() * tensor.itemsize for tensor in tensors)


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


def _all(futures: "list[Future[Any]]", buffer: Tensor) -> "Future[Tensor]":
    """A future of the buffer that is done when all of these are."""

    def end(done: "Future[Any]") -> Tensor:
        for each in done.value() if len(futures) > 1 else [done]:
            each.value()  # raises what went wrong
        return buffer

    return (collect_all(futures) if len(futures) > 1 else futures[0]).then(end)


def _future(buffer: Tensor) -> "Future[Tensor]":
    return Future(devices=[buffer.device] if buffer.is_cuda else [])
