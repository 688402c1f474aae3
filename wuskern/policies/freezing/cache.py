"""A cache of the outputs of a frozen prefix, one for each sample, in whatever model."""

import logging
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.nn as nn
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from wuskern.common.arguments import whole
from wuskern.common.example import arguments
from wuskern.common.world import world_size
from wuskern.policies.freezing.base import Freezing
from wuskern.policies.freezing.kept import CannotKeep, Kept
from wuskern.policies.freezing.outputs import Outputs, Serving
from wuskern.policies.freezing.runs import Runs
from wuskern.policies.freezing.samples import Batches
from wuskern.policies.freezing.unchanged import Unchanged

_log = logging.getLogger("wuskern")

CHECKED = 4  # samples by which the kept outputs are compared with the full run, at most
OFTEN = 3  # calls in a row in which the frozen part may change


class ActivationCache:
    """A model whose frozen part runs once for each sample in training: ``cache(index)`` is its output for ``samples[index]``.

    The model's own code runs. Its outermost frozen modules give what was kept of their outputs in place of computing it; an
    output on which nothing but other frozen modules depends is not kept. Outputs are computed for aligned chunks of samples,
    whatever the batches are, so that they depend on weights and data alone: a run that resumes without them goes on bit for
    bit. When more layers freeze, the values are computed from those kept. Before a prefix is kept, the model runs on a few
    samples with and without what would be kept, and both have to be the same to the bit. Where nothing is kept (``reason``),
    and in evaluation, all of it runs.

    Who calls the model itself says which samples it gets: ``with cache.at(index): model(batch)``, or, after
    ``cache.listen(key)``, in the batch. The inputs that the frozen part depends on are compared with those that the values were
    computed from; others raise.

    The values are dropped when the prefix thaws, when autocast changes, and when the frozen part does: each call compares it
    with what it was, to the bit, also writes through ``.data`` and by numpy (of which those to a part of a large tensor can
    take 32 calls to be seen), settings such as ``eps``, and which hooks there are
    (:class:`wuskern.policies.freezing.unchanged.Unchanged` has the list). That takes a copy of these parameters. Hooks on an
    outermost frozen module run as always; those inside of it do not.

    Not for samples that are augmented: each has to be the same in every epoch, and of one length. Each of several processes
    keeps what it computes: the chunks of the samples that it sees. Where each process always has the same samples, give its
    cache these alone.

    Args:
        freezing: the policy that freezes the model.
        samples: a tensor ``[N, ...]``, a mapping of such, or what gives a batch for a LongTensor of indices and has a length;
            with ``collate``, a dataset. A batch is the model's input: a tensor, a sequence of positional inputs or a mapping of
            keyword inputs.
        collate: makes a batch of a list of samples.
        limit: bytes that the kept values may take; old and new ones are both there while the prefix grows.
        chunk: samples that are computed together.
        dtype: in which values with a floating point are kept, such as ``torch.bfloat16``; None: as they are.
        folder: where a file without a name is to hold the values, mapped into memory; None: memory.

    Raises:
        ValueError, TypeError: no freezing policy, or an argument out of its range.
    """

    def __init__(
        self,
        freezing: Freezing,
        samples: Any,
        *,
        collate: Callable[[list[Any]], Any] | None = None,
        limit: int = 2**30,
        chunk: int = 64,
        dtype: torch.dtype | None = None,
        folder: str | Path | None = None,
    ) -> None:
        if not isinstance(freezing, Freezing):
            raise TypeError(f"freezing: expected a freezing policy, got {type(freezing).__name__}")
        whole("limit", limit, 0)
        whole("chunk", chunk)
        if dtype is not None and not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
            raise TypeError(f"dtype: expected a floating-point torch.dtype or None, got {dtype!r}")
        if folder is not None and not Path(folder).is_dir():
            raise ValueError(f"folder: expected a folder, got {str(folder)!r}")
        self.freezing, self.samples, self.limit, self.chunk, self.dtype = freezing, samples, limit, chunk, dtype
        self.folder = None if folder is None else Path(folder)
        self.model = freezing.model
        self._batches = Batches(samples, collate)
        self._runs = Runs(freezing.prefix, self._batches)
        self._changes = 0
        self._restart()

    def __repr__(self) -> str:
        kept = f"nothing is kept: {reason}" if (reason := self.reason) else f"{self.nbytes / 1e6:.3g} MB are kept"
        return f"ActivationCache({self.freezing.call}): {kept}"

    def __call__(self, index: Tensor) -> Any:
        """The model's output for the samples ``index``, ``[batch]``, int64.

        Raises:
            RuntimeError: several processes train, and this is outside of their DDP's forward: there it is :meth:`at` around
                the DDP.
        """
        if world_size() > 1 and torch.is_grad_enabled() and DistributedDataParallel._active_ddp_module is None:
            raise RuntimeError(
                "cache: expected `with cache.at(index): ddp(batch)` where several processes train, got cache(index), which "
                "calls the model inside, and leaves each process with its own gradients"
            )
        args, kwargs = arguments(self._batches.batch(index))
        with self.at(index):
            return self.model(*args, **kwargs)

    @contextmanager
    def at(self, index: Tensor) -> Iterator[None]:
        """A block in which the model is called with the samples ``index``, ``[batch]``, int64.

        Raises:
            ValueError: an index out of range; in the block, inputs that are not those of these samples.
        """
        with self._runs.running(self._serving(index)):
            yield

    def listen(self, key: str = "sample_index") -> None:
        """The model takes the indices of its samples as one more keyword input ``key`` from now on; a call without it runs
        whole. That is the way for trainers that call the model by themselves: add the index to each sample
        (:class:`wuskern.policies.Indexed`)."""
        if self._batches.left_out is not None:
            raise ValueError(f"key: expected to be told once, got {key!r} after {self._batches.left_out!r}")
        self._batches.left_out = key
        here = threading.local()  # each thread has blocks of its own, as it has calls of its own

        def begin(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
            kwargs = dict(kwargs)
            index = kwargs.pop(key, None)
            block = self.at(index) if index is not None else self._runs.running(self.freezing.prefix.calls.outputs)
            block.__enter__()
            vars(here).setdefault("blocks", []).append(block)
            return args, kwargs

        def end(*_: Any) -> None:
            if blocks := vars(here).get("blocks"):  # none where the inputs were refused
                blocks.pop().__exit__(None, None, None)

        self.model.register_forward_pre_hook(begin, with_kwargs=True, prepend=True)
        self.model.register_forward_hook(end, always_call=True)

    @property
    def reason(self) -> str | None:
        """Why nothing is kept now; None where something is, or will be."""
        if self.freezing.depth == 0:
            return "nothing is frozen"
        return self._refused if self._state == self._now() else None

    @property
    def layers(self) -> int:
        """How many converted layers do not run because outputs are kept."""
        return 0 if self._kept is None else self._layers

    @property
    def nbytes(self) -> int:
        """How many bytes the kept values take now."""
        return 0 if self._kept is None else self._kept.nbytes

    # ---- whether something is kept ----------------------------------------------------------------------------------

    def _restart(self, refused: str | None = None) -> None:
        self._state = self._now()
        self._refused = refused
        if refused is not None:
            _log.warning("cache: the whole model runs, nothing is kept: %s", refused)
        self._kept: Kept | None = None
        self._unchanged: Unchanged | None = None
        self._filled = [False] * -(-len(self._batches) // self.chunk)
        self._known = torch.zeros(len(self._batches), dtype=torch.int64)

    def _now(self) -> tuple[int, torch.dtype | None]:
        """How many layers are frozen, and the dtype to which autocast casts; None without autocast."""
        device = next(self.model.parameters()).device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None
        return self.freezing.depth, dtype

    def _serving(self, index: Tensor) -> Outputs | None:
        """What the frozen modules give for these samples; None where all of the model is to run."""
        index = self._checked(index)
        if not self.model.training or not len(index) or not self._prepare(int(index[0])):
            return None
        for chunk in (index // self.chunk).unique().tolist():
            if not self._filled[chunk] and not self._fill(chunk):
                return None
        kept = self._kept
        assert kept is not None
        return Serving(lambda site: kept.output(site, index), lambda inputs: self._compare(inputs, index))

    def _checked(self, index: Any) -> Tensor:
        if not isinstance(index, Tensor) or index.ndim != 1 or index.dtype not in (torch.int64, torch.int32):
            got = f"{index.dtype} {list(index.shape)}" if isinstance(index, Tensor) else type(index).__name__
            raise TypeError(f"index: expected a vector of int64, got {got}")
        index = index.detach().cpu().long()
        if len(index) and not 0 <= int(index.min()) <= int(index.max()) < len(self._batches):
            found = f"{int(index.min())} to {int(index.max())}"
            raise ValueError(f"index: expected numbers from 0 to {len(self._batches) - 1}, got {found}")
        return index

    def _compare(self, inputs: Mapping[str, Tensor], index: Tensor) -> None:
        try:
            known = self._runs.fingerprints(inputs, len(index))
        except CannotKeep as error:
            raise ValueError(f"inputs: expected what was kept to be a constant, got another: {error}") from error
        if bool((known != self._known[index]).any()):
            names = ", ".join(self._runs.needed)
            raise ValueError(
                f"inputs: expected {names} to be as in the samples that the index names, got others: they have to be the same "
                "in each epoch, to the bit, and padded to one length"
            )

    def _prepare(self, sample: int) -> bool:
        """Whether the outputs of what is frozen now are kept, or can be."""
        state = self._now()
        changed = self._unchanged is not None and not self._unchanged()
        self._changes = self._changes + 1 if changed else 0
        if state != self._state or changed:
            grows = not changed and state[0] > self._state[0] > 0 and state[1] == self._state[1]
            before = (self._kept, self._filled) if grows else (None, [])
            often = "the frozen part, or a module around it, changes in each step" if self._changes == OFTEN else None
            self._restart(often)
            self._start(sample, *before)
        elif self._kept is None:
            self._start(sample)
        return self._kept is not None

    def _start(self, sample: int, before: Kept | None = None, filled: Sequence[bool] = ()) -> None:
        """Finds what is to be kept, unless that was refused, makes room for it, and fills what was filled ``before``."""
        if self.freezing.depth == 0 or self._refused is not None:
            return
        samples, prefix = min(CHECKED, self.chunk, len(self._batches)), self.freezing.prefix
        begin = min(sample // self.chunk * self.chunk, len(self._batches) - samples)
        try:
            kinds, often = self._runs.tried(torch.arange(begin, begin + samples))
            kept = Kept(kinds, self._runs.names, len(self._batches), self.dtype, self.folder)
            if kept.nbytes > self.limit:
                raise CannotKeep(f"limit: {kept.nbytes} bytes of activations are more than {self.limit}")
        except CannotKeep as error:
            self._restart(str(error))
            return
        kept.allocate()
        inside = {module for top, _ in kinds for module in top.modules()}
        self._kept, self._layers = kept, sum(layer in inside for layer in self.freezing.layers.values())
        self._unchanged = Unchanged([module for module, _ in kinds], prefix.parents, prefix.parameters)
        if before is None or self.dtype is not None or any(often[module] != 1 for module, _ in before.kinds):
            return
        for chunk, was_filled in enumerate(filled):
            if was_filled and not self._fill(chunk, before):
                return

    def _fill(self, chunk: int, before: Kept | None = None) -> bool:
        """Computes a chunk, as a training step does, from what was kept ``before``; returns whether it can be kept."""
        assert self._kept is not None
        begin = chunk * self.chunk
        index = torch.arange(begin, min(begin + self.chunk, len(self._batches)))
        try:
            sites = {site: kind.read for site, kind in self._kept.kinds.items()}
            computed = self._runs.computed(sites, index, before=before)
            self._kept.put(begin, computed.found)
        except CannotKeep as error:
            self._restart(str(error))
            return False
        self._known[index] = computed.known
        self._filled[chunk] = True
        return True
