"""The method of data sieving (SpFDE: Yuan et al., arXiv 2209.11204), by forgetting events (Toneva et al., arXiv 1812.05159).

The papers: the data are split at random into a part that is trained on and one that is left out. Every few epochs the samples
that were forgotten least, which teach the least, go to the end of the queue of those left out, and as many come back from its
front, so that the number is constant and every sample returns. A sample is forgotten when it goes from right to wrong between
two presentations; one that was never right counts as forgotten most. MEST removes such samples once, for good. Unknown:
shares, rates and intervals; their defaults are ours, and so is that equal counts go by index.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils.data import Sampler

from wuskern.common import describe, states
from wuskern.common.arguments import flag, number, share, whole

UNSEEN, WRONG, RIGHT = range(3)


@dataclass(eq=False, kw_only=True)
class SievingSampler(Sampler[int]):
    """The indices of a data set that are trained on in this epoch, shuffled; for ``DataLoader(sampler=...)``.

    Report each batch with :meth:`record`, and call :meth:`step` after each epoch. The sieve lives here and not in the data
    set, so that persistent workers need not know of it.

    Each of several processes has its own part of the epoch, all of one length: some samples come twice where the number does
    not divide. All give the same arguments and call ``step`` at the same time; what they recorded is then put together.

    Args:
        size: of the data set.
        keep: the share that is trained on, up to 1; at least one sample is.
        rate: the share of those that is exchanged, from 0 to 1; no more than are left out.
        interval: epochs between two exchanges. once: exchange nothing, but train on everything for ``interval`` epochs, then
            remove ``1 - keep`` of the samples for good (MEST).
        seed: of the split and of the order in each epoch.
        rank, world: which process this is, of how many.

    Attributes:
        training: ``[kept]``, the indices that are trained on, ascending. waiting: those left out, the next to return first.
        forgotten: ``[size]``, forgetting events.

    Raises:
        ValueError, TypeError: an argument out of its range.
    """

    name = "sieve"
    source = "Yuan et al.: SpFDE. arXiv 2209.11204; NeurIPS 2022; Toneva et al.: forgetting events. arXiv 1812.05159"
    reported = (
        "SpFDE and MEST: training on a part of the data at about the same accuracy. Fewer steps each epoch; dense in the "
        "same time takes fewer epochs instead."
    )
    decides = ("data",)
    needs = ("step",)
    trial = "interval=1"

    size: int = field(kw_only=False)
    keep: float = 0.8
    rate: float = 0.2
    interval: int = 5
    once: bool = False
    seed: int = 0
    rank: int = 0
    world: int = 1

    def __post_init__(self) -> None:
        whole("size", self.size)
        share("keep", self.keep)
        flag("once", self.once)
        number("rate", self.rate)
        if not 0 <= self.rate <= 1:
            raise ValueError(f"rate: expected a number from 0 to 1, got {self.rate!r}")
        whole("interval", self.interval)
        whole("seed", self.seed, 0)
        whole("world", self.world)
        whole("rank", self.rank, 0)
        if self.rank >= self.world:
            raise ValueError(f"rank: expected a number under world = {self.world}, got {self.rank}")
        self.epoch = 0
        order = torch.randperm(self.size, generator=torch.Generator().manual_seed(self.seed))
        self.training = torch.arange(self.size) if self.once else order[: self._kept].sort()[0]
        self.waiting = order[:0] if self.once else order[self._kept :]
        self.forgotten = torch.zeros(self.size, dtype=torch.int64)
        self.learned = torch.zeros(self.size, dtype=torch.bool)  # was right, at least once
        self.last = torch.full((self.size,), UNSEEN)  # what the last presentation gave
        self._seen = torch.zeros(self.size, dtype=torch.bool)  # by this process, in this epoch

    def __repr__(self) -> str:
        return f"{describe.call(self)}: {len(self.training)} samples train, {len(self.waiting)} wait, after {self.epoch} epochs"

    @property
    def _kept(self) -> int:
        """How many samples are trained on once some are left out."""
        return max(1, int(self.keep * self.size))

    def __len__(self) -> int:
        """The number of samples in this process's part of the epoch."""
        return -(-len(self.training) // self.world)

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
        order = self.training[torch.randperm(len(self.training), generator=generator)]
        repeated = torch.arange(len(self) * self.world) % len(order)
        return iter(order[repeated[self.rank :: self.world]].tolist())

    def record(self, index: Tensor, correct: Tensor) -> None:
        """Takes note of which samples of a batch the model got right.

        Args:
            index: ``[batch]``, integers, those that this sampler gave. correct: ``[batch]``, bool.

        Raises:
            ValueError: shapes that differ, or an index out of range.
        """
        index, correct = index.detach().cpu().long(), correct.detach().cpu().bool()
        if index.ndim != 1 or index.shape != correct.shape:
            raise ValueError(f"correct: expected {list(index.shape)}, one for each index, got {list(correct.shape)}")
        if len(index) and not (index.min() >= 0 and index.max() < self.size):
            raise ValueError(f"index: expected numbers from 0 to {self.size - 1}, got {index.min()} to {index.max()}")
        self.forgotten[index] += (self.last[index] == RIGHT) & ~correct
        self.learned[index] |= correct
        self.last[index] = torch.where(correct, RIGHT, WRONG)
        self._seen[index] = True

    def step(self) -> None:
        """Ends an epoch: puts together what all processes recorded, and exchanges samples if it is time."""
        self.epoch += 1
        if self.world > 1:
            self._put_together()
        self._seen.zero_()
        if self.once:
            if self.epoch == self.interval:
                self.training = self._without(self.size - self._kept)[1]
        elif self.epoch % self.interval == 0:
            self._exchange()

    def _exchange(self) -> None:
        leaving, staying = self._without(min(int(self.rate * len(self.training)), len(self.waiting)))
        returning, waiting = self.waiting[: len(leaving)], self.waiting[len(leaving) :]
        self.training = torch.cat((staying, returning)).sort()[0]
        self.waiting = torch.cat((waiting, leaving))

    def _without(self, count: int) -> tuple[Tensor, Tensor]:
        """The ``count`` least forgotten samples in training, the least first, and the others in training, ascending."""
        most = torch.iinfo(torch.int64).max
        events = torch.where(self.learned, self.forgotten, most)[self.training]
        order = self.training[events.sort(stable=True)[1]]
        return order[:count], order[count:].sort()[0]

    def _put_together(self) -> None:
        """Adds what the other processes recorded. All started from the same counts, which only grow, so the largest is right; a
        sample that two processes saw counts as right if one of them got it right."""
        records = torch.stack((self.forgotten, self.learned.long(), torch.where(self._seen, self.last, UNSEEN)))
        dist.all_reduce(records, op=dist.ReduceOp.MAX)
        self.forgotten, self.learned = records[0], records[1].bool()
        self.last = torch.where(records[2] == UNSEEN, self.last, records[2])

    # ---- state ------------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """The number of the epoch, and tensors, safe for ``torch.load(weights_only=True)``. Take it between epochs."""
        tensors = {name: getattr(self, name).clone() for name in ("training", "waiting", "forgotten", "learned", "last")}
        return {"epoch": self.epoch} | tensors

    def check_state(self, state: dict[str, Any]) -> None:
        """Raises ``ValueError`` for what ``load_state_dict`` refuses, and changes nothing."""
        states.keys(state, self.state_dict())
        states.count("epoch", state["epoch"])
        states.counts(f"forgetting events of {self.size} samples", state["forgotten"], [self.size])
        states.tensor(f"learned, of {self.size} samples", state["learned"], [self.size], torch.bool)
        states.counts(f"last, of {self.size} samples", state["last"], [self.size], RIGHT)
        kept = self._kept if not self.once or state["epoch"] >= self.interval else self.size
        states.counts("training", state["training"], [kept], self.size - 1)
        states.counts("waiting", state["waiting"], [0 if self.once else self.size - kept], self.size - 1)
        samples = torch.cat((state["training"].cpu(), state["waiting"].cpu()))
        if (state["training"].diff() <= 0).any() or len(samples.unique()) < len(samples):
            states.refuse(
                "training and waiting with each sample once, training in ascending order", states.said(samples.tolist())
            )

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continues where the state was taken. Raises ``ValueError`` for what is no such state, and for that of another size of
        the data set or another share; nothing has changed then."""
        self.check_state(state)
        for name, value in state.items():
            setattr(self, name, value.cpu().clone() if isinstance(value, Tensor) else value)
        self._seen.zero_()
