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
    """The rows that a layer trains until gradients are reduced, and the observer of scores until then; None for random rows."""

    top_k: TopK
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
        """Ends the choices once gradients are reduced: the next are by the scores so far, added up over the processes."""
        observed = {name: self._total(name, choice.observer) for name, choice in self.choices.items()}
        self._reduce({name: total for name, total in observed.items() if total is not None})
        self.choices.clear()

    def choose(self, wanted: dict[str, TopK]) -> dict[str, Choice]:
        """The choice for each layer in ``wanted``, the same until :meth:`close` unless its ``TopK`` is another one."""
        self._reduce(
            {name: self._norms(name) for name, top_k in wanted.items() if top_k.score != "random" and name not in self.known}
        )
        for name, top_k in wanted.items():
            if name not in self.choices or self.choices[name].top_k != top_k:
                self.choices[name] = self._choice(name, top_k)
        return {name: self.choices[name] for name in wanted}

    def _choice(self, name: str, top_k: TopK) -> Choice:
        out, groups = self.layers[name].units.out, self.layers[name].units.groups
        policy = self.layers[name].plan.observer
        random = top_k.score == "random"
        scores = torch.rand(out, generator=self.generator) if random else self.known[name]
        scores = scores.to(self.layers[name].weight.device)
        if policy is not None:
            scores = policy.ranked(scores)
        index = ops.select_rows(scores, top_k.count(out, groups), top_k.block, groups)
        if policy is not None:
            policy.tell(None, torch.zeros_like(scores, dtype=torch.bool).index_fill_(0, index, True).unsqueeze(0), None)
        return Choice(
            top_k, Rows(index, top_k.scope, top_k.bias, sparse=top_k.sparse), None if random else Observer(top_k.score)
        )

    def _total(self, name: str, observer: Observer | None) -> Tensor | None:
        """The scores ``[out]`` that this process has observed, zeros where it has none, since other processes may have some."""
        if observer is None:
            return None
        return torch.zeros(self.layers[name].units.out) if observer.total is None else observer.total

    def _norms(self, name: str) -> Tensor:
        return self.layers[name].weight_by_rows.flatten(1).abs().sum(1)

    def _reduce(self, mine: dict[str, Tensor]) -> None:
        """Adds up scores over the processes, in one tensor; zeros alone say nothing and do not replace known scores."""
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
        states.names("scores", state["scores"], self.layers, subset=True)
        for name, scores in state["scores"].items():
            in_float64 = isinstance(scores, Tensor) and scores.dtype is torch.float64  # all are, if one layer is
            states.sums(
                f"scores of {name!r}", scores, [self.layers[name].units.out], torch.float64 if in_float64 else torch.float32
            )
        states.generator(state["generator"])
        self.known = {name: scores.cpu().clone() for name, scores in state["scores"].items()}
        self.choices.clear()
        self.generator.set_state(state["generator"].cpu())
