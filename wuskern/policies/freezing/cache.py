"""A cache of the outputs of a frozen prefix, one for each sample."""

from typing import Any

import torch
import torch.nn as nn
from torch import Tensor

from wuskern.common.arguments import whole
from wuskern.common.world import world_size
from wuskern.policies.freezing.base import Freezing
from wuskern.policies.freezing.unchanged import Unchanged
from wuskern.policies.recorded_run import arguments


class ActivationCache:
    """A model whose frozen part runs once for each sample in training: ``cache(index)`` is its output for ``samples[index]``.

    What is kept is the output of the leading children of an ``nn.Sequential`` that are frozen altogether; the other children
    run as always. It is computed for aligned chunks of samples, whatever the batches are, so that it depends on weights and
    data alone: a run that resumes without it goes on bit for bit. When more layers freeze, the values are computed from those
    kept. Where nothing is kept (``reason``), and in evaluation, the whole model runs.

    The values are dropped when the prefix thaws, when autocast changes, and when the frozen children do: each call compares the
    values of their parameters and buffers with those that the cache was filled by, bit for bit, and so finds writes of all
    kinds, also through ``.data`` and numpy; it compares settings such as ``eps``, and which hooks there are
    (:class:`wuskern.policies.freezing.unchanged.Unchanged` has the list). That takes a copy of these parameters, and to read
    both: for a million weights a millisecond on a CPU, far less than running them. Where values are kept the children's hooks
    do not run, nor do the model's own.

    Not for samples that are augmented: each has to be the same in every epoch. Not for several processes.

    Args:
        freezing: the policy that freezes the model.
        samples: ``[N, ...]``, or what gives a batch for a LongTensor of indices and has a length. A batch that is no tensor is
            a sequence of the model's positional inputs or a mapping of its keyword inputs; nothing is kept of it.
        limit: bytes that the kept values may take; old and new ones are both there while the prefix grows.
        chunk: samples that are computed together.

    Raises:
        ValueError, TypeError: no freezing policy, an argument out of its range, or several processes.
    """

    def __init__(self, freezing: Freezing, samples: Any, *, limit: int = 2**30, chunk: int = 64) -> None:
        if not isinstance(freezing, Freezing):
            raise TypeError(f"freezing: expected a freezing policy, got {type(freezing).__name__}")
        whole("limit", limit, 0)
        whole("chunk", chunk)
        if world_size() > 1:
            raise ValueError(f"freezing: expected one process for a cache of activations, got {world_size()}")
        self.freezing, self.samples, self.limit, self.chunk = freezing, samples, limit, chunk
        self.model = freezing.model
        self._start(0)

    def __call__(self, index: Tensor) -> Tensor:
        """The model's output for the samples ``index``, ``[batch]``, int64."""
        if not (self.model.training and self._prepare()):
            return self._whole(index)
        missing = [chunk for chunk in (index.cpu() // self.chunk).unique().tolist() if not self._filled[chunk]]
        for chunk in missing:
            self._fill(chunk, self.samples[self._indices(chunk)], 0)
            if self._values is None:
                return self._whole(index)
        assert self._values is not None
        with self.freezing.prefix.running():
            return self._run(self._values[index.to(self._values.device)], self._cut, None)

    def _whole(self, index: Tensor) -> Tensor:
        args, kwargs = arguments(self.samples[index])
        return self.model(*args, **kwargs)  # type: ignore[no-any-return]

    @property
    def reason(self) -> str | None:
        """Why nothing is kept now; None where something is."""
        if type(self.model).forward is not nn.Sequential.forward:
            return f"the model is no nn.Sequential, but a {type(self.model).__name__}"
        if self.freezing.depth == 0:
            return "nothing is frozen"
        cut = self._frozen_children()
        if cut == 0:
            return "no child of the model is frozen altogether"
        return self._refused if cut == self._cut else None

    @property
    def layers(self) -> int:
        """How many converted layers do not run because their outputs are kept."""
        return 0 if self._values is None else self._layers

    @property
    def nbytes(self) -> int:
        """How many bytes the kept values take now."""
        return 0 if self._values is None else self._values.nbytes

    # ---- which values -----------------------------------------------------------------------------------------------

    def _start(self, cut: int) -> None:
        self._cut, self._cast = cut, self._autocast()
        self._unchanged = Unchanged(self._children()[:cut])
        self._refused: str | None = None
        self._values: Tensor | None = None
        inside = {module for child in self._children()[:cut] for module in child.modules()}
        self._layers = sum(layer in inside for layer in self.freezing.layers.values())
        self._filled = [False] * -(-len(self.samples) // self.chunk)

    def _prepare(self) -> bool:
        """Whether the outputs of all children that are frozen now are kept, or can be."""
        if type(self.model).forward is not nn.Sequential.forward:
            return False
        cut = self._frozen_children() if self.freezing.depth else 0
        if cut < self._cut or self._autocast() != self._cast or not self._unchanged(self._children()[: self._cut]):
            self._start(0)
        if cut > self._cut:
            self._grow(cut)
        return cut > 0 and self._refused is None

    def _children(self) -> list[nn.Module]:
        """The children of a Sequential in the order in which they run, each as often as it runs; none of other models."""
        return list(self.model) if isinstance(self.model, nn.Sequential) else []

    def _frozen_children(self) -> int:
        prefix, count = self.freezing.prefix, 0
        frozen = set(prefix.parameters)
        for child in self._children():
            if child not in prefix.modules or any(p.requires_grad and p not in frozen for p in child.parameters()):
                break
            count += 1
        return count

    def _autocast(self) -> torch.dtype | None:
        """The dtype to which autocast casts now; None without autocast."""
        device = next(self.model.parameters()).device.type
        return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None

    def _grow(self, cut: int) -> None:
        values, filled, before = self._values, self._filled, self._cut
        self._start(cut)
        if values is None:
            return
        for chunk, was_filled in enumerate(filled):
            if was_filled and self._refused is None:
                self._fill(chunk, values[self._indices(chunk).to(values.device)], before)

    # ---- computing them ---------------------------------------------------------------------------------------------

    def _indices(self, chunk: int) -> Tensor:
        return torch.arange(chunk * self.chunk, min((chunk + 1) * self.chunk, len(self.samples)))

    def _fill(self, chunk: int, x: Any, first: int) -> None:
        """Computes a chunk from ``x``, the input of child ``first``, as a training step does; constants leave no graph."""
        if not isinstance(x, Tensor) or x.requires_grad:
            self._refused = "the samples need a gradient" if isinstance(x, Tensor) else "the samples are no single tensors"
            return
        with self.freezing.prefix.running():
            x = self._run(x, first, self._cut)
        if self._values is None and not self._make_room(x):
            return
        assert self._values is not None
        begin = chunk * self.chunk
        self._values[begin : begin + len(x)] = x
        self._filled[chunk] = True

    def _make_room(self, x: Any) -> bool:
        """Whether there is memory for values like ``x`` of all samples; if so, takes it."""
        if not isinstance(x, Tensor):
            self._refused = f"the frozen part gives a {type(x).__name__}, and no tensor"
            return False
        size = x.nbytes // len(x) * len(self.samples)
        if size > self.limit:
            self._refused = f"limit: {size} bytes of activations are more than {self.limit}"
            return False
        is_last = x.ndim == 4 and x.is_contiguous(memory_format=torch.channels_last)
        layout = torch.channels_last if is_last else torch.contiguous_format
        self._values = torch.empty((len(self.samples), *x.shape[1:]), dtype=x.dtype, device=x.device, memory_format=layout)
        return True

    def _run(self, x: Tensor, first: int, end: int | None) -> Tensor:
        for child in self._children()[first:end]:
            x = child(x)
        return x
