"""Runs of a model with a frozen prefix: what its frozen modules give is recorded, computed alone, or replaced."""

import random
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn as nn
from torch import Tensor
from torch.utils._pytree import tree_leaves

from wuskern.common.example import arguments
from wuskern.policies.freezing.kept import CannotKeep, Kept, Kind, kind_of, output_of, same
from wuskern.policies.freezing.outputs import Computing, Enough, Output, Outputs, Serving, Site
from wuskern.policies.freezing.prefix import Prefix
from wuskern.policies.freezing.recording import Recording
from wuskern.policies.freezing.samples import Batches, fingerprints
from wuskern.policies.freezing.unkept import ReadsUnkept
from wuskern.policies.recorded_run import recorded_run


class Runs:
    """The runs of the model of a prefix on some samples.

    Attributes:
        names: of the model's modules. needed: the names of the inputs that the frozen part depends on, by the last trial.
    """

    def __init__(self, prefix: Prefix, samples: Batches) -> None:
        self.prefix, self.samples = prefix, samples
        self.names = {module: name for name, module in prefix.model.named_modules()}
        self.needed: list[str] = []

    @contextmanager
    def running(self, outputs: Outputs | None) -> Iterator[None]:
        """A block in which ``outputs`` says what the frozen modules give; None: what they compute."""
        calls = self.prefix.calls
        before, calls.outputs = calls.outputs, outputs
        try:
            yield
        finally:
            calls.outputs = before

    def fingerprints(self, inputs: Mapping[str, Tensor], samples: int) -> Tensor:
        """The fingerprints of the inputs that the frozen part depends on. Raises ``CannotKeep`` where one needs a gradient."""
        if any(inputs[name].requires_grad for name in self.needed if name in inputs):
            raise CannotKeep("the samples need a gradient")
        return fingerprints(inputs, self.needed, samples)

    def computed(
        self, sites: Mapping[Site, Collection[int]], index: Tensor, seed: int = 0, before: Kept | None = None
    ) -> Computing:
        """The outputs of these sites for the samples ``index``, computed as a training step does, and from what was kept
        ``before``. Constants leave no graph, and no random state moves. ``sites``: with the numbers of the parts that are read.

        Raises:
            CannotKeep: some of the sites do not run.
        """
        ready: dict[nn.Module, Any] = {}
        for site in before.kinds if before is not None else ():
            ready[site[0]] = before.output(site, index).value  # type: ignore[union-attr]
        args, kwargs = arguments(self.samples.batch(index))
        devices = {p.device for p in self.prefix.model.parameters() if p.is_cuda}
        computing = Computing(sites, ready, lambda inputs: self.fingerprints(inputs, len(index)))
        state = random.getstate()
        try:
            with self.running(computing), torch.random.fork_rng(devices):
                torch.manual_seed(seed)
                self.prefix.model(*args, **kwargs)
        except Enough:
            return computing
        except ReadsUnkept:
            return self.computed(sites, index, seed)
        finally:
            random.setstate(state)
        raise CannotKeep("not all of the frozen part runs for all samples")

    # ---- what can be kept -------------------------------------------------------------------------------------------

    def tried(self, index: Tensor) -> tuple[dict[Site, Kind], Counter[nn.Module]]:
        """The outputs that can be kept, and how often each frozen module runs, by a few samples: the model computes the same
        from the outputs as without.

        Raises:
            CannotKeep: with the reason.
        """
        if len(index) < 2:
            raise CannotKeep(f"expected chunks of two samples or more, got {len(index)}")
        for module, names in self.prefix.shared.items():
            if module in self.prefix.parents:
                raise CannotKeep(f"{names[0]} of a {type(module).__name__} is used behind the frozen part, too, and trains")
        batch = self.samples.batch(index)
        recording = Recording(self._keepable)
        with self.running(recording), recording.watching():
            expected = recorded_run(self.prefix.model, batch, ())
            recording.end(expected)  # again: hooks on the model may have made another output
        if not recording.found:
            raise CannotKeep("no module of the model is frozen altogether")
        kinds = self._kinds(recording, index)
        self._check(expected, batch, recording, kinds, len(index))
        return kinds, recording.runs

    def _keepable(self, module: nn.Module) -> bool:
        frozen = set(self.prefix.parameters)
        return not any(p.requires_grad and p not in frozen for p in module.parameters())

    def _kinds(self, recording: Recording, index: Tensor) -> dict[Site, Kind]:
        """The kinds of all outputs, by two runs as in training, with other random numbers, and one with a sample less."""
        self.needed = recording.needed
        sites = recording.read()
        first, second = (self.computed(sites, index, seed) for seed in (1, 2))
        shorter = self.computed(sites, index[:-1], 3)
        if not torch.equal(first.known, second.known):
            raise CannotKeep("the samples are not the same each time (augmented?)")
        kinds: dict[Site, Kind] = {}
        for site, found in first.found.items():
            read = sites[site]
            for number in read:
                if not same(found.leaves[number], second.found[site].leaves[number]):
                    raise CannotKeep(f"the output of {self.names[site[0]]} is random")
            kinds[site] = kind_of(self.names[site[0]], found, shorter.found[site], len(index), read)
        if not any(kind.read for kind in kinds.values()):
            raise CannotKeep("nothing behind the frozen part reads what it gives")
        return kinds

    def _check(self, expected: Any, batch: Any, recording: Recording, kinds: Mapping[Site, Kind], samples: int) -> None:
        """Raises ``CannotKeep`` where the model gives another output from kept values, in evaluation mode."""

        def output(site: Site) -> Output | None:
            if site not in kinds:
                return None
            leaves = recording.found[site].leaves
            return output_of(kinds[site], self.names[site[0]], samples, lambda number, _: leaves[number].clone())

        try:
            with self.running(Serving(output)):
                found = recorded_run(self.prefix.model, batch, ())
        except ReadsUnkept as error:
            raise CannotKeep(str(error)) from error
        leaves = [tree_leaves(output) for output in (expected, found)]
        if len(leaves[0]) != len(leaves[1]):
            raise CannotKeep("the model gives another output with kept values")
        for a, b in zip(*leaves, strict=True):
            if not same(a, b):
                what = "another output with kept values" if isinstance(a, Tensor) else f"a {type(a).__name__} in its output"
                raise CannotKeep(f"the model gives {what}")
