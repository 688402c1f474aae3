"""The random state of one run in torch, apart from that of the process and of other runs."""

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor


class RandomState:
    """The random state of the CPU, and of ``device`` if it is a CUDA device.

    Attributes:
        states: a tensor for each of the two.
    """

    def __init__(self, device: torch.device) -> None:
        self.cuda = [device] if device.type == "cuda" else []
        self.states = self._current()

    def _current(self) -> list[Tensor]:
        return [torch.get_rng_state(), *(torch.cuda.get_rng_state(device) for device in self.cuda)]

    @contextlib.contextmanager
    def seeded(self, seed: int) -> Iterator[None]:
        """A block in which torch draws from that seed; the run goes on from where it ends."""
        with torch.random.fork_rng(self.cuda):
            torch.manual_seed(seed)
            yield
            self.states = self._current()

    @contextlib.contextmanager
    def own(self) -> Iterator[None]:
        """A block in which torch draws on from the run's state."""
        with torch.random.fork_rng(self.cuda):
            torch.set_rng_state(self.states[0])
            for device, state in zip(self.cuda, self.states[1:], strict=True):
                torch.cuda.set_rng_state(state, device)
            yield
            self.states = self._current()
