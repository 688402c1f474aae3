"""What the methods share that choose rows by the scores of the steps before."""

from abc import abstractmethod
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from wuskern import ops
from wuskern.choices import BIASES, SCOPES, Bias, Rows, Scope
from wuskern.common import states
from wuskern.common.arguments import one_of, whole
from wuskern.delivery.observer import Observer, SumScore
from wuskern.policies.base import Policy, Wants
from wuskern.policies.observed import observed


@dataclass(eq=False, kw_only=True)
class ByScores(Policy):
    """Gives layers fixed ``Rows`` for ``reuse`` optimizer steps, observes the scores of all rows meanwhile, and then gives
    others. Call ``after_step`` after each optimizer step. Scores add up over micro-batches, over the steps of a choice, and
    over the processes of torch.distributed, which then choose alike.

    The first choice, without scores, is of the rows whose weights have the largest sums of magnitudes. A layer that had no
    backward keeps its choice, and so does one whose rows are all chosen, which is dense and gives no scores. Where a choice
    has another number of rows than the one before, a compiled model makes a graph for it.

    Args:
        model: a model with converted layers.
        reuse: optimizer steps that a choice is kept for. Each choice waits for a GPU, once for each layer.
        scope, bias: as for ``wuskern.Rows``. block: rows are chosen in aligned blocks of so many.
        dense: names of converted layers, or of modules, that keep the whole backward. None: the last one in the order of
            ``named_modules``.
    """

    decides = ("rows",)
    needs = ("after_step",)

    reuse: int = 1
    scope: Scope = "both"
    block: int = 1
    bias: Bias = "dense"
    dense: Collection[str] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        whole("reuse", self.reuse)
        whole("block", self.block)
        one_of("scope", self.scope, SCOPES)
        one_of("bias", self.bias, BIASES)
        self.dense = self.names_or_last(self.dense)
        self.observers = {name: Observer(self._observed_score()) for name in self.all_but(self.dense)}
        self.rows: dict[str, Rows] = {}
        self.steps = 0  # in which the present choice has been in use

    def _observed_score(self) -> SumScore:
        """The score by which rows are compared: "l1", the sum of |dY|, or "l2", that of its squares."""
        return "l1"

    @abstractmethod
    def _first_count(self, name: str) -> int:
        """How many rows of a layer the first choice takes."""

    def _counts(self, name: str) -> set[int]:
        """How many rows of a layer a choice may take."""
        return {self._first_count(name)}

    @abstractmethod
    def _index(self, name: str, scores: Tensor) -> Tensor:
        """The rows ``[k]`` of a layer by ``scores``, ``[out]``, on the CPU, of all rows since the last choice."""

    @property
    def claims(self) -> dict[str, Collection[str]]:
        return {"rows": self.observers}

    def wants(self, name: str) -> Wants:
        return {"rows": self.rows.get(name), "observer": self.observers.get(name)}

    def on_step_end(self) -> None:
        """Counts an optimizer step; chooses anew after ``reuse`` of them."""
        self.steps += 1
        if self.steps == self.reuse:
            self._choose(self._observed())
            self.apply()

    def _choose(self, scores: dict[str, Tensor]) -> None:
        for name, observer in self.observers.items():
            observer.clear()
            if name in scores:
                index = self._index(name, scores[name])
            elif name in self.rows:
                continue
            else:
                index = self._largest(name, self._norms(name), self._first_count(name))
            device = self.layers[name].weight.device
            self.rows[name] = Rows(index.to(device), self.scope, self.bias)
        self.steps = 0

    def _observed(self) -> dict[str, Tensor]:
        """The scores by layer of all processes; none for a layer without a backward."""
        totals = {name: observer.total for name, observer in self.observers.items()}
        device = next(iter(self.layers.values())).weight.device
        return observed(totals, {name: self._out(name) for name in totals}, device)

    def _out(self, name: str) -> int:
        return self.layers[name].units.out

    def _norms(self, name: str) -> Tensor:
        return self.layers[name].weight_by_rows.flatten(1).abs().sum(1, dtype=torch.float64).cpu()

    def _largest(self, name: str, values: Tensor, k: int) -> Tensor:
        return ops.select_rows(values, k, self.block, self.layers[name].units.groups)

    # ---- state ------------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Numbers and tensors, safe for ``torch.load(weights_only=True)``. Take it between optimizer steps; each process has a
        state of its own."""
        totals = {name: None if o.total is None else o.total.clone() for name, o in self.observers.items()}
        index = {name: rows.index.cpu().clone() for name, rows in self.rows.items()}
        return {"policy": type(self).__name__, "steps": self.steps, "rows": index, "scores": totals}

    def check_state(self, state: dict[str, Any]) -> None:
        states.of_policy(self, state)
        states.count("steps", state["steps"], self.reuse - 1)
        for what in ("rows", "scores"):
            states.names(what, state[what], self.observers)
        for name in self.observers:
            out, groups = self.rows_of(name)
            states.chosen(f"rows of {name!r}", state["rows"][name], self._counts(name), out, self.block, groups)
            if state["scores"][name] is not None:
                dtype = torch.promote_types(self.layers[name].weight.dtype, torch.float32)
                states.sums(f"scores of {name!r}", state["scores"][name], [out], dtype)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continues where the state was taken, and sets the layers' rows. Raises ``ValueError`` for what is no such state, and
        for that of another model; nothing has changed then."""
        self.check_state(state)
        self.steps = state["steps"]
        for name, observer in self.observers.items():
            weight, total = self.layers[name].weight, state["scores"][name]
            observer.load(None if total is None else total.to(weight.device))
            self.rows[name] = Rows(state["rows"][name].to(weight.device), self.scope, self.bias)
        self.apply()
