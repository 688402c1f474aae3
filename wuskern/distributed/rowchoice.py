"""The same ``TopK`` rows in all processes: those of this step by the scores of the last one, added up once in between."""

from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from wuskern import ops
from wuskern.choices import Rows, TopK
from wuskern.common import states
from wuskern.delivery.observer import Observer
from wuskern.modules import SkippableLayer


@dataclass
class Choice:
    """What a layer trains until gradients are reduced, and who observes the scores of that time; nobody of random ones."""

    of: TopK
    rows: Rows
    observer: Observer | None


class LaggedRows:
    """Chooses the rows of each layer with a ``TopK``. All processes call the methods at the same time.

    Args:
        layers: by name. group, device: where to reduce.
    """

    def __init__(self, layers: dict[str, SkippableLayer], group: "dist.ProcessGroup", device: torch.device) -> None:
        self.layers, self.group, self.device = layers, group, device
        self.known: dict[str, Tensor] = {}  # scores of all processes, on the CPU
        self.choices: dict[str, Choice] = {}
        seed = torch.randint(2**62, (1,)).to(device)
        dist.broadcast(seed, dist.get_global_rank(group, 0), group)
        self.generator = torch.Generator().manual_seed(int(seed.item()))

    def close(self) -> None:
        """Gradients have been reduced: the next choice is by the scores up to here, added up over the processes."""
        observed = {name: self._total(name, choice.observer) for name, choice in self.choices.items()}
        self._reduce({name: total for name, total in observed.items() if total is not None})
        self.choices.clear()

    def choose(self, wanted: dict[str, TopK]) -> dict[str, Choice]:
        """The rows of each layer, the same until :meth:`close` unless its ``TopK`` is another one."""
        self._reduce(
            {name: self._norms(name) for name, of in wanted.items() if of.score != "random" and name not in self.known}
        )
        for name, of in wanted.items():
            if name not in self.choices or self.choices[name].of != of:
                self.choices[name] = self._choice(name, of)
        return {name: self.choices[name] for name in wanted}

    def _choice(self, name: str, of: TopK) -> Choice:
        _, out, groups = self.layers[name].units
        policy = self.layers[name].plan.observer
        random = of.score == "random"
        scores = torch.rand(out, generator=self.generator) if random else self.known[name]
        scores = scores.to(self.layers[name].weight.device)
        if policy is not None:
            scores = policy.ranked(scores)
        index = ops.select_rows(scores, of.count(out, groups), of.block, groups)
        if policy is not None:
            policy.tell(None, torch.zeros_like(scores, dtype=torch.bool).index_fill_(0, index, True).unsqueeze(0), None)
        return Choice(of, Rows(index, of.scope, of.bias, sparse=of.sparse), None if random else Observer(of.score))

    def _total(self, name: str, observer: Observer | None) -> Tensor | None:
        """What this process has observed: nothing is zeros, since others may have."""
        if observer is None:
            return None
        return torch.zeros(self.layers[name].units.out) if observer.total is None else observer.total

    def _norms(self, name: str) -> Tensor:
        return self.layers[name].weight.detach().flatten(1).abs().sum(1)

    def _reduce(self, mine: dict[str, Tensor]) -> None:
        """Adds up over the processes, all layers in one tensor. Scores that are all zero say nothing."""
        if not mine:
            return
        dtypes = [torch.promote_types(self.layers[name].weight.dtype, torch.float32) for name in mine]
        dtype = torch.float64 if torch.float64 in dtypes else torch.float32
        flat = torch.cat([scores.to(self.device, dtype) for scores in mine.values()])
        dist.all_reduce(flat, group=self.group)
        parts = flat.cpu().split([len(scores) for scores in mine.values()])
        for name, scores in zip(mine, parts, strict=True):
            if name not in self.known or scores.any():
                self.known[name] = scores.clone()

    # ---- state ------------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        scores = {name: scores.clone() for name, scores in self.known.items()}
        return {"scores": scores, "generator": self.generator.get_state()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        states.keys(state, self.state_dict())
        states.names("scores", state["scores"], self.layers, some=True)
        for name, scores in state["scores"].items():
            wide = isinstance(scores, Tensor) and scores.dtype is torch.float64  # as soon as one of the layers is
            states.sums(f"scores of {name!r}", scores, [self.layers[name].units.out], torch.float64 if wide else torch.float32)
        states.generator(state["generator"])
        self.known = {name: scores.cpu().clone() for name, scores in state["scores"].items()}
        self.choices.clear()
        self.generator.set_state(state["generator"].cpu())
