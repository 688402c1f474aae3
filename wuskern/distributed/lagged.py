"""The same rows and columns in all processes, where each would choose others: by the scores of the last steps, added up once
on the way, with the gradients where these have the scores' dtype."""

from collections.abc import Container, Iterable, Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from wuskern.choices import Parts, TopColumns, TopK
from wuskern.common import states
from wuskern.distributed.hook import Sent
from wuskern.distributed.sides import SIDES, Fixed
from wuskern.modules import SkippableLayer

Key = tuple[str, str]  # the name of a layer, and a part of its plan
IN_STATES = {"rows": "scores", "columns": "column_scores"}  # by the part of the plan


class Lagged:
    """Chooses for the layers that would choose by themselves. All processes call the methods at the same time.

    Args:
        layers: by name. group, device: where to reduce. every: reductions for which a choice stays.
    """

    def __init__(
        self, layers: dict[str, SkippableLayer], group: "dist.ProcessGroup", device: torch.device, every: int = 1
    ) -> None:
        self.layers, self.group, self.device, self.every = layers, group, device, every
        self.reductions = 0  # since the choices were made
        self.known: dict[Key, Tensor] = {}  # scores of all processes, on the CPU
        self.mine: dict[Key, Tensor] = {}  # what this process observed of the last steps, until it is added up
        self.arrived: dict[Key, Tensor] = {}  # sums that came with the gradients
        self.choices: dict[Key, Fixed] = {}
        seed = torch.randint(2**62, (1,)).to(device)
        dist.broadcast(seed, dist.get_global_rank(group, 0), group)
        self.generator = torch.Generator().manual_seed(int(seed.item()))

    def reduced(self) -> None:
        """Takes note that gradients have been reduced; the choices end if it was the last time that they were to stay for."""
        self.reductions += 1
        if self.reductions >= self.every:
            self.close()

    def close(self) -> None:
        """Ends the choices: the next are by the scores so far."""
        for key, choice in self.choices.items():
            if choice.observer is not None and key in self.arrived:
                self._learn(key, self.arrived[key].cpu())
            elif choice.observer is not None:
                total = choice.observer.total  # None where this process has no scores: others may have some
                self.mine[key] = torch.zeros(self._units(key)) if total is None else total
        self.choices.clear()
        self.arrived.clear()
        self.reductions = 0

    def riders(self, dtype: torch.dtype, trained: Container[str]) -> list[Sent]:
        """The scores that travel with the last gradients before a choice, of layers whose backward is over then: ``trained`` by
        it. None in another ``dtype``, in which they would lose what they say."""
        observed = {k: c.observer for k, c in self.choices.items() if c.observer is not None and k[0] in trained}
        if self.reductions + 1 < self.every or not observed or dtype is not self._dtype(observed):
            return []
        return [self._rider(key, observer.total, dtype) for key, observer in observed.items()]

    def _rider(self, key: Key, total: Tensor | None, dtype: torch.dtype) -> Sent:
        of_mine = torch.zeros(self._units(key)) if total is None else total
        # Without self: what a message holds is let go in a thread of the group, which must not be the last to hold the group.
        arrived, world = self.arrived, dist.get_world_size(self.group)

        def put(average: Tensor) -> None:
            arrived[key] = average * world

        return Sent(None, of_mine.to(self.device, dtype), put)

    def _dtype(self, keys: Iterable[Key]) -> torch.dtype:
        """The dtype in which the scores of all these are added up."""
        dtypes = [torch.promote_types(self.layers[name].weight.dtype, torch.float32) for name, _ in keys]
        return torch.float64 if torch.float64 in dtypes else torch.float32

    def _learn(self, key: Key, scores: Tensor) -> None:
        """Replaces the known scores. Zeros alone say nothing."""
        if key not in self.known or scores.any():
            self.known[key] = scores

    def choose(self, wanted: Mapping[Key, TopK | TopColumns]) -> dict[Key, Parts]:
        """What takes the place of each choice in its plan, the same until :meth:`close` unless another choice is wanted."""
        new = {key: choice for key, choice in wanted.items() if key not in self.choices or self.choices[key].of != choice}
        of_weight = self.add_up([key for key, choice in new.items() if self._goes_by_weight(key, choice)])
        for key, choice in new.items():
            self.choices[key] = self._fixed(key, choice, of_weight.get(key))
        return {key: self.choices[key].parts for key in wanted}

    def _goes_by_weight(self, key: Key, choice: TopK | TopColumns) -> bool:
        return choice.score == "weight" or (choice.score != "random" and key not in self.known)

    def _fixed(self, key: Key, choice: TopK | TopColumns, of_weight: Tensor | None) -> Fixed:
        name, part = key
        if choice.score == "random":
            scores = torch.rand(self._units(key), generator=self.generator)
        elif of_weight is None:
            scores = self.known[key]
        else:
            scores = of_weight
            if choice.score != "weight":
                self.known[key] = of_weight
        return SIDES[part].fixed(self.layers[name], choice, scores.to(self.layers[name].weight.device))

    def _units(self, key: Key) -> int:
        name, part = key
        return SIDES[part].units(self.layers[name])

    def add_up(self, by_weight: list[Key]) -> dict[Key, Tensor]:
        """Adds up over the processes what each has observed of the last step, and returns the sums of the scores by weights,
        all in one tensor."""
        of_weight = {(name, part): SIDES[part].of_weight(self.layers[name]) for name, part in by_weight}
        totals = self._totals([*self.mine.items(), *of_weight.items()])
        for key, scores in zip(self.mine, totals, strict=False):
            self._learn(key, scores)
        found = dict(zip(of_weight, totals[len(self.mine) :], strict=True))
        self.mine.clear()
        return found

    def _totals(self, mine: list[tuple[Key, Tensor]]) -> list[Tensor]:
        if not mine:
            return []
        dtype = self._dtype(key for key, _ in mine)
        flat = torch.cat([scores.to(self.device, dtype) for _, scores in mine])
        dist.all_reduce(flat, group=self.group)
        return [part.clone() for part in flat.cpu().split([len(scores) for _, scores in mine])]

    # ---- state ------------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        self.add_up([])
        by_part = {part: {n: scores.clone() for (n, p), scores in self.known.items() if p == part} for part in IN_STATES}
        return {IN_STATES[part]: scores for part, scores in by_part.items()} | {"generator": self.generator.get_state()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        states.keys(state, [*IN_STATES.values(), "generator"])
        for part, what in IN_STATES.items():
            states.names(what, state[what], self.layers, subset=True)
            for name, scores in state[what].items():
                in_float64 = isinstance(scores, Tensor) and scores.dtype is torch.float64  # all are, if one layer is
                dtype = torch.float64 if in_float64 else torch.float32
                states.sums(f"{what} of {name!r}", scores, [self._units((name, part))], dtype)
        states.generator(state["generator"])
        self.known = {
            (name, part): scores.cpu().clone() for part, what in IN_STATES.items() for name, scores in state[what].items()
        }
        self.mine.clear()
        self.arrived.clear()
        self.choices.clear()
        self.reductions = 0
        self.generator.set_state(state["generator"].cpu())
