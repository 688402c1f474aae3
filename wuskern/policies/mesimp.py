"""The method meSimp (Sun et al.; arXiv 1711.06528): neurons that top-k backpropagation seldom chooses are removed for good.

The paper: as in meProp, backward goes through the k largest output gradients of each example. A record counts how often each
neuron of a hidden layer is among them; those that are in fewer than a share ``prune`` of the examples are pruned, and training
goes on with the others. Cycles that prune and cycles that do not take turns, and the output layer is never pruned.

The authors' public code (lancopku/meProp), whose habits are arguments here: it prunes eight times in each epoch of an even
cycle (``interval``), counts on through the odd ones (``carry``), compares with ``int(examples * prune)``, starts the optimizer
anew each time it could prune in the last epoch of a cycle (``reset="each"``; the paper does not say so), and masks. Its
defaults: k 160 of 500, prune .1, cycles of 5 of 20 epochs, Adam.

Ours: convolutions, whose choice is of the whole batch; the batch norm behind a pruned neuron, which is pruned with it; that one
neuron is always left; and ``simplify``, by which the model becomes smaller while it trains.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
import torch.distributed as dist
import torch.nn as nn
from torch import Tensor
from torch.optim import Optimizer

from wuskern.choices import SCOPES, PerExample, Plan, Scope, TopK
from wuskern.common import states
from wuskern.common.arguments import one_of, share, whole
from wuskern.common.example import Example
from wuskern.common.world import world_size
from wuskern.delivery.observer import Observer
from wuskern.policies.base import Policy, Wants
from wuskern.policies.meprop import PER, Per
from wuskern.simplify import norms_of_rows, simplify_

RESETS = ("cycle", "each", "never")
NORMS = nn.modules.batchnorm._BatchNorm | nn.GroupNorm


@dataclass(eq=False, kw_only=True)
class MeSimp(Policy):
    """Trains top-k rows in every layer but the output layer, and prunes rows: their weight, bias, and what the batch norm
    behind the layer adds are zero. Call ``after_step`` after each optimizer step, ``after_epoch`` after each epoch, and
    ``attach`` the optimizer, which is otherwise never reset. ``wuskern.simplify`` makes the smaller model of it.

    Args:
        model: a model with converted layers. example: its input, a sequence of its positional inputs, or a mapping of
            its keyword inputs, of one sample or more.
        ratio, k: of the rows that the model has now; as for ``wuskern.TopK``. One of the two; less than all.
        per: "example", the paper's choice, which saves no time and is refused for convolutions that are not in ``dense``;
            "batch", the same rows for a whole batch, which then counts as one example.
        scope: as for ``wuskern.TopK``; "weight" with ``per="batch"`` alone.
        prune: the share of the examples. Rows that fewer than ``int(examples * prune)`` chose are pruned.
        cycle: epochs of a cycle; the first prunes, the second does not, and so on.
        interval: optimizer steps between two times to prune. None: epochs' ends alone.
        carry: whether what a cycle that does not prune counts is used by the next.
        reset: when the optimizer's state is cleared: "cycle", at the end of each; "each", as the public code does; "never".
        simplify: at the end of each cycle that prunes, the model itself becomes smaller, as far as its graph allows, and with
            it the state of the attached optimizer. For one process, and not beside layer freezing.
        dense: names of converted layers, or of modules, that keep the whole backward and all rows. None: the last one.

    Attributes:
        epoch: epochs trained. alive: by layer, ``[out]``, bool, the rows that are not pruned. counts: by layer, ``[out + 1]``,
        int64:
            how often each row was chosen, and of how many choices, since it was last time to prune, without this epoch.

    Raises:
        ValueError, TypeError: an argument out of its range, or a layer that cannot have the choice, a Conv1D, or one whose
            weight, bias or norm is shared or computed, by name.
    """

    name = "mesimp"
    source = "Sun et al.: meSimp. arXiv 1711.06528; code lancopku/meProp"
    reported = (
        "meSimp: an MLP-500 on MNIST keeps 154 of 500 neurons at +.11. Training is no faster while neurons are masked; "
        "with simplify=true the network itself becomes smaller."
    )
    decides = ("rows", "zeros", "shape")
    needs = ("after_step", "after_epoch", "attach")
    trial = "ratio=0.5:per=batch:cycle=1:prune=0.6"

    example: Example = field(kw_only=False, repr=False)
    ratio: float | None = None
    k: int | None = None
    per: Per = "example"
    scope: Scope = "both"
    prune: float = 0.1
    cycle: int = 5
    interval: int | None = None
    carry: bool = True
    reset: Literal["cycle", "each", "never"] = "cycle"
    simplify: bool = False
    dense: Collection[str] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        one_of("per", self.per, PER)
        one_of("scope", self.scope, SCOPES if self.per == "batch" else ("both",))
        one_of("reset", self.reset, RESETS)
        share("prune", self.prune)
        whole("cycle", self.cycle)
        if self.interval is not None:
            whole("interval", self.interval)
        if self.simplify and world_size() > 1:
            raise ValueError(f"simplify: expected False with several processes, got True with {world_size()}")
        self.dense = self.names_or_last(self.dense)
        self.optimizer: Optimizer | None = None
        self.records = {name: self._all_alive(name) for name in self.all_but(self.dense)}
        self.counts = {
            name: torch.zeros(self._out(name) + 1, dtype=torch.int64, device=self.layers[name].weight.device)
            for name in self.records
        }
        self.chosen_rows = {name: self._count(name) for name in self.records}
        norms = norms_of_rows(self.model, self.example)
        self.rowwise = {name: self._rowwise(name, norms) for name in self.records}
        self.choices = {name: self._choice(name) for name in self.records}
        self.epoch = self.steps = 0
        self.apply()

    def _count(self, name: str) -> int:
        kind = TopK if self.per == "batch" else PerExample
        choice = kind(ratio=self.ratio, k=self.k)
        self.check_choice(name, Plan(rows=choice))
        count = choice.count(*self.rows_of(name))
        if count == self._out(name):
            raise ValueError(f"{name}: expected fewer than its {count} rows to be chosen, got all")
        return count

    def _all_alive(self, name: str) -> Observer:
        layer, where = self.layers[name], name or "the model itself"
        if layer.units.transposed:
            raise ValueError(f"dense: expected {where} in it, a {layer.units.layer}, of which simplify removes no rows")
        for tensor in ("weight", "bias"):
            if tensor not in layer._parameters:
                raise ValueError(
                    f"dense: expected {where} in it, whose {tensor} is computed from other parameters: that they are zero "
                    "does not make a row of it zero"
                )
            value = layer._parameters[tensor]
            if value is not None and sum(value is p for m in self.model.modules() for p in m._parameters.values()) > 1:
                raise ValueError(
                    f"dense: expected {where} in it, whose {tensor} is shared: its rows would be zero elsewhere too"
                )
        return Observer(alive=torch.ones(self._out(name), dtype=torch.bool, device=layer.weight.device))

    def _choice(self, name: str) -> TopK | PerExample:
        """The choice for a layer. One that was made smaller may have fewer rows than are to be chosen: it then trains all."""
        k = min(self.chosen_rows[name], self._out(name))
        return TopK(k=k, scope=self.scope) if self.per == "batch" else PerExample(k=k)

    def _rowwise(self, name: str, norms: Mapping[str, Collection[str]]) -> list[tuple[nn.Module, str]]:
        """The parameters in which a pruned row is zero, the layer's and those of the norms behind it, as modules and names."""
        if name not in norms and any(isinstance(module, NORMS) for module in self.model.modules()):
            raise ValueError(
                f"dense: expected {name or 'the model itself'} in it: the graph of the model does not say which norm has a "
                "scale and a shift of its own for each of its rows, to be pruned with it"
            )
        modules = (self.layers[name], *map(self.model.get_submodule, norms.get(name, ())))
        return [(module, tensor) for module in modules for tensor, value in module._parameters.items() if value is not None]

    def _out(self, name: str) -> int:
        return self.layers[name].units.out

    @property
    def alive(self) -> dict[str, Tensor]:
        return {name: record.alive for name, record in self.records.items() if record.alive is not None}

    @property
    def prunes(self) -> bool:
        """Whether this epoch belongs to a cycle that prunes."""
        return self.epoch // self.cycle % 2 == 0

    @property
    def claims(self) -> dict[str, Collection[str]]:
        return {"rows": self.records, "zeros": self.records} | ({"shape": self.layers} if self.simplify else {})

    def wants(self, name: str) -> Wants:
        return {"rows": self.choices.get(name), "observer": self.records.get(name)}

    # ---- over time --------------------------------------------------------------------------------------------------

    def attach_matters(self) -> bool:
        """Whether the policy resets the optimizer at some time."""
        return self.reset != "never"

    def on_step_end(self) -> None:
        """Keeps pruned rows zero, and prunes if it is time."""
        self.steps += 1
        if self.interval is not None and self.steps % self.interval == 0:
            self._time_to_prune()
        self._set_zeros()

    def on_epoch_end(self) -> None:
        """Counts an epoch, and prunes if it is time."""
        if self.interval is None:
            self._time_to_prune()
            self._set_zeros()
        ends = (self.epoch + 1) % self.cycle == 0
        self._count_together()
        if ends and self.prunes and self.simplify:
            self._simplify()
        if ends and self.reset == "cycle":
            self._reset_optimizer()
        self.epoch += 1
        if ends and self.prunes and not self.carry:
            for counts in self.counts.values():
                counts.zero_()

    def _time_to_prune(self) -> None:
        if self.prunes:
            self._count_together()
            for name in self.records:
                if self.trains(name):  # another one goes on counting until it trains
                    self._prune(name)
        if self.reset == "each" and (self.epoch + 1) % self.cycle == 0:
            self._reset_optimizer()

    def _prune(self, name: str) -> None:
        """Prunes the rows of a layer that were seldom chosen, and counts anew. A layer that had no backward keeps all rows."""
        hits, seen, alive = self.counts[name][:-1], int(self.counts[name][-1]), self.alive[name]
        stays = (hits >= int(seen * self.prune)) & alive
        if not stays.any():
            stays[hits.masked_fill(~alive, -1).argmax()] = True
        alive.copy_(stays)  # in its memory, which a captured CUDA graph reads
        self.counts[name].zero_()

    def _count_together(self) -> None:
        """Adds to ``counts`` what the layers of all processes have counted since the last time."""
        for name, record in self.records.items():
            counted = torch.zeros_like(self.counts[name])
            if record.hits is not None and record.seen is not None:
                counted = torch.cat((record.hits, record.seen[None]))
            if world_size() > 1:
                dist.all_reduce(counted)
            self.counts[name] += counted
            record.clear()

    @torch.no_grad()
    def _set_zeros(self) -> None:
        for name, alive in self.alive.items():
            for module, tensor in self.rowwise[name] if self.trains(name) else ():
                parameter = module._parameters.get(tensor)
                if parameter is None:
                    raise ValueError(f"model: expected {tensor} of {name} to stay a parameter, got one that is computed by now")
                parameter.masked_fill_(~alive.view(-1, *[1] * (parameter.ndim - 1)), 0)

    def _simplify(self) -> None:
        self.release()  # the choices may have more rows than will be left
        kept = simplify_(self.model, self.example, self.optimizer).kept
        for name in self.records.keys() & kept.keys():
            rows = kept[name].to(self.counts[name].device)
            self.records[name] = Observer(alive=self.alive[name][rows])
            self.counts[name] = torch.cat((self.counts[name][:-1][rows], self.counts[name][-1:]))
        self._set_choices()

    def _set_choices(self) -> None:
        self.choices = {name: self._choice(name) for name in self.records}
        self.apply()

    def watch(self, optimizer: Optimizer) -> None:
        super().watch(optimizer)
        self.optimizer = optimizer

    def _reset_optimizer(self) -> None:
        if self.optimizer is not None:
            self.optimizer.state.clear()

    # ---- state ------------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Numbers and tensors, safe for ``torch.load(weights_only=True)``. Take it between optimizer steps; each process has a
        state of its own, but between epochs all have the same."""
        records = {
            name: tuple(None if t is None else t.clone() for t in (r.alive, self.counts[name], r.hits, r.seen))
            for name, r in self.records.items()
        }
        return {"policy": type(self).__name__, "epoch": self.epoch, "steps": self.steps, "records": records}

    def check_state(self, state: dict[str, Any]) -> None:
        states.of_policy(self, state)
        states.count("epoch", state["epoch"])
        states.count("steps", state["steps"])
        states.names("records", state["records"], self.records)
        for name, record in state["records"].items():
            states.items(f"records of {name!r}", record, 4)
            self._check_record(name, *record)

    def _check_record(self, name: str, alive: Any, counts: Any, hits: Any, seen: Any) -> None:
        """Refuses a layer's record that does not fit the layer; what its four tensors are, :meth:`state_dict` says."""
        out = self._out(name)
        states.tensor(f"{out} rows of {name!r} (see wuskern.fit_), alive or not", alive, [out], torch.bool)
        if not alive.any():
            states.refuse(f"some row of {name!r} to be alive", "none")
        states.counts(f"counts of {name!r}", counts, [out + 1])
        states.counts(f"counts of {name!r}", counts[:-1], [out], int(counts[-1]))
        if (hits is None) != (seen is None):
            states.refuse(f"hits and choices of {name!r}, or None for both", "one of them")
        if hits is not None:
            states.counts(f"choices of {name!r}", seen, [])
            states.counts(f"hits of {name!r}", hits, [out], int(seen))

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continues where the state was taken. Raises ``ValueError`` for what is no such state, and for a model of other
        shapes: see ``wuskern.fit_``. Nothing has changed then."""
        self.check_state(state)
        self.epoch, self.steps = state["epoch"], state["steps"]
        for name in self.records:
            device = self.layers[name].weight.device
            alive, counts, *since_counts = state["records"][name]  # hits and seen
            self.counts[name] = counts.to(device, copy=True)
            self.records[name] = record = Observer(alive=alive.to(device, copy=True))
            record.load(None, *(None if t is None else t.to(device) for t in since_counts))
        self._set_choices()
