"""The batches of an epoch on the training device, from data that are there or that workers fetch from host memory."""

import contextlib
from collections.abc import Generator, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from wuskern.common.arguments import whole
from wuskern.common.example import Samples, tensors
from wuskern.train import inputs

Fetched = tuple[Tensor, inputs.Batch, Tensor]  # which samples (on the CPU, as given), their x, their y


class Batches:
    """A source of batches by the numbers of their samples; the same bits from data on the device and in host memory.

    With ``host`` each batch is fetched while the one before is in use, through pinned memory and on a stream of its own where
    the device is CUDA. Workers stay from epoch to epoch: ``close`` ends them, as does the end of a ``with`` block. No random
    state is used.

    Args:
        x, y: all samples, on ``device``, or in host memory with ``host``. ``[N, ...]`` each; x may be several inputs.
        device: what batches are on.
        host: whether the data stay in host memory. workers: processes that fetch; 0: the training process does.
        memory_format: of images, ``[N, C, H, W]``.
    """

    def __init__(
        self,
        x: inputs.Inputs,
        y: Tensor,
        device: torch.device | str,
        *,
        host: bool = False,
        workers: int = 0,
        memory_format: torch.memory_format = torch.contiguous_format,
    ) -> None:
        whole("workers", workers, 0)
        if workers and not host:
            raise ValueError(f"workers: expected 0 with data on the device, got {workers}")
        devices = {t.device for t in tensors(x.inputs if isinstance(x, Samples) else x)}
        if host and any(there.type != "cpu" for there in devices):
            raise ValueError(f"x: expected in host memory, got on {', '.join(map(str, devices))}")
        self.x, self.y, self.device = x, y, torch.device(device)
        self.host, self.workers, self.memory_format = host, workers, memory_format
        self.stream = torch.cuda.Stream(self.device) if host and self.device.type == "cuda" else None
        self._order = _Order()
        self._loader: DataLoader[Any] | None = None
        self._fetching: Any = None  # the loader's iterator: it holds the workers

    def epoch(self, batches: Sequence[Tensor]) -> Generator[Fetched, None, None]:
        """Yields ``(index, x, y)`` for each index in ``batches``, int64 ``[B]`` on the CPU. One epoch at a time."""
        if not self.host:
            for index in batches:
                yield index, self._formatted(self.x[index]), self.y[index]
            return
        before: tuple[Tensor, inputs.Batch, Tensor, Any] | None = None
        for index, (x, y) in zip(batches, self._fetch(batches), strict=True):
            copied = index, *self._copy(x, y)
            if before is not None:
                yield self._arrived(*before)
            before = copied
        if before is not None:
            yield self._arrived(*before)

    def close(self) -> None:
        """Ends the workers. Another epoch would start new ones."""
        if self.workers and self._fetching is not None:
            self._fetching._shutdown_workers()  # there is no public way, and a traceback may hold the iterator for long
        self._loader = self._fetching = None

    def __enter__(self) -> "Batches":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _fetch(self, batches: Sequence[Tensor]) -> Iterator[tuple[inputs.Batch, Tensor]]:
        self._order.batches = batches
        if self._loader is None:
            self._loader = DataLoader(
                _Samples(self.x, self.y),
                batch_size=None,  # an item is a batch
                sampler=self._order,
                num_workers=self.workers,
                persistent_workers=self.workers > 0,
                pin_memory=self.stream is not None,
                generator=torch.Generator(),  # each epoch draws a seed for the workers, which is not to be torch's
            )
        self._fetching = iter(self._loader)
        return self._fetching

    def _copy(self, x: inputs.Batch, y: Tensor) -> tuple[inputs.Batch, Tensor, Any]:
        """The x and y on the device, valid once the event that comes with them, if any, has happened."""
        with torch.cuda.stream(self.stream) if self.stream is not None else contextlib.nullcontext():
            x = inputs.each(x, lambda t: t.to(self.device, non_blocking=True))
            y = y.to(self.device, non_blocking=True)
            return self._formatted(x), y, self.stream.record_event() if self.stream is not None else None

    def _arrived(self, index: Tensor, x: inputs.Batch, y: Tensor, event: Any) -> Fetched:
        if event is not None:
            current = torch.cuda.current_stream(self.device)
            current.wait_event(event)
            for tensor in tensors([x, y]):
                tensor.record_stream(current)  # so that its memory, of the other stream, is not used again too early
        return index, x, y

    def _formatted(self, x: inputs.Batch) -> inputs.Batch:
        return inputs.each(x, lambda t: t.contiguous(memory_format=self.memory_format) if t.ndim == 4 else t)


class _Order(Sampler[Any]):
    """A sampler of the coming epoch's indices; the loader asks for them when it begins, in the training process."""

    def __init__(self) -> None:
        self.batches: Sequence[Tensor] = ()

    def __iter__(self) -> Iterator[Any]:
        return (index.numpy() for index in self.batches)  # a tensor would travel as a file descriptor


class _Samples(Dataset[tuple[inputs.Batch, Tensor]]):
    """A data set whose items are whole batches."""

    def __init__(self, x: inputs.Inputs, y: Tensor) -> None:
        self.x, self.y = x, y

    def __getitem__(self, index: Any) -> tuple[inputs.Batch, Tensor]:
        index = torch.from_numpy(index)
        return self.x[index], self.y[index]
