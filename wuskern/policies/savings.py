"""What arithmetic a policy saved in training: per epoch, as shares of what dense training computes."""

from dataclasses import dataclass, replace
from typing import Any

from wuskern.choices import Plan, Rows, TopK
from wuskern.columns import keeps_part
from wuskern.common import states
from wuskern.common.arguments import whole
from wuskern.common.example import Example
from wuskern.gradients import gathers
from wuskern.modules import weight_owners
from wuskern.policies.base import Policy, Wants
from wuskern.policies.compose import Compose
from wuskern.policies.costs import Cost, costs
from wuskern.policies.freezing import Freezing

KINDS = ("fprop", "dgrad", "wgrad")
COUNTED = (*KINDS, "rows", "masked")


@dataclass(frozen=True)
class Saved:
    """Shares from 0 to 1 of what dense training computes; 0 where nothing was counted.

    Attributes:
        fprop, dgrad, wgrad: FLOPs of that kind left out, of those that dense training of the same samples computes in
            converted layers.
        rows: rows of their weights without a gradient, of all rows; the mean over samples.
        samples: an epoch's samples that were not trained on; under 0 where some came twice.
        depth: layers that were frozen at the end.
        total: FLOPs that were not computed, of all in a dense epoch; those of the samples left out are included.
        masked: FLOPs that dense kernels spent on weights that a mask keeps zero, of all in a dense epoch: fprop and dgrad
            multiply with these weights, and wgrad computes their gradient. No part of ``total``.
    """

    fprop: float
    dgrad: float
    wgrad: float
    rows: float
    samples: float
    depth: int
    total: float
    masked: float = 0.0


class Savings:
    """A count of the arithmetic that a policy leaves out, by the layers' costs.

    Call :meth:`count` for each batch, before ``policy.after_step`` decides about the next one, and :meth:`report` after each
    epoch. A layer that skips has no wgrad. Chosen rows leave out the other rows' part of wgrad, unless the layer computes it
    whole, which is faster where many rows are chosen; with scope "both" of dgrad too. Chosen columns leave out the other
    columns' part of wgrad. Chosen tokens leave out the other tokens' part of wgrad; a sample is taken to have as many as in the
    example. A frozen layer has neither. A layer before which nothing trains any more, such as the first one after a frozen
    prefix, has no dgrad. ``PerExample`` saves nothing: its products are computed whole, and its rows differ between examples.
    What a layer has lost that is smaller now is left out of all three.
    Not counted: sums, scores, copies, and whatever runs outside of converted layers.

    Args:
        policy: of a converted model; several: a ``Compose``. example: as for :func:`wuskern.policies.costs.costs`.
        samples: how many an epoch of dense training has, in this process. None: the share of samples is 0.

    Raises:
        ValueError, TypeError: ``samples`` is no number from 1; what ``costs`` raises.
    """

    def __init__(self, policy: Policy, example: Example, *, samples: int | None = None) -> None:
        if not isinstance(policy, Policy):
            raise TypeError(f"policy: expected a policy, got {type(policy).__name__}")
        if samples is not None:
            whole("samples", samples)
        self.policy, self.samples = policy, samples
        self.costs = _dense_costs(policy) or costs(policy.model, example)
        self._owners = weight_owners(policy.model, policy.layers)
        self._dense = {name: policy.layers[name].weight.numel() for name in self.costs}
        self._counted: tuple[list[Wants], list[int], int] = [], [], 0  # wants, sizes of weights, and samples of a batch
        self._left_out: dict[str, int] = {}  # of one sample
        self._depth = 0
        self._reached: dict[tuple[tuple[bool, bool], ...], list[bool]] = {}
        self._start()

    def _start(self) -> None:
        self.trained = self.depth = 0
        self.left_out = dict.fromkeys(COUNTED, 0)

    def __repr__(self) -> str:
        given = self.policy.call + ("" if self.samples is None else f", samples={self.samples}")
        return f"Savings({given}): {len(self.costs)} layers, {self.trained} samples since the last report"

    def count(self, samples: int, *, cached_layers: int = 0) -> None:
        """Counts a batch of ``samples`` samples under what the policy wants now.

        Args:
            cached_layers: frozen layers, from the first, that did not run: a cache gave their outputs.

        Raises:
            ValueError, TypeError: no numbers from 0, or more cached layers than are frozen.
        """
        whole("samples", samples, 0)
        whole("cached_layers", cached_layers, 0)
        wants = [self.policy.wants(name) for name in self.costs]
        counted = wants, [self.policy.layers[name].weight.numel() for name in self.costs], samples
        if counted != self._counted:
            self._counted, self._left_out = counted, self._of_one_sample(wants, samples)
            self._depth = sum(wanted.get("frozen", False) for wanted in wants)
        if cached_layers > self._depth:
            raise ValueError(f"cached_layers: expected at most {self._depth}, those that are frozen, got {cached_layers}")
        self.depth = self._depth
        self.trained += samples
        for kind, per_sample in self._left_out.items():
            self.left_out[kind] += samples * per_sample
        for cost, wanted in zip(list(self.costs.values())[:cached_layers], wants, strict=False):
            self.left_out["fprop"] += samples * cost.fprop
            self.left_out["masked"] -= samples * _masked(cost.fprop, wanted)

    def report(self) -> Saved:
        """The shares of everything since the last report; the next one starts anew."""
        dense = {kind: sum(getattr(cost, kind) for cost in self.costs.values()) for kind in (*KINDS, "rows")}
        shares = {kind: _share(self.left_out[kind], self.trained * dense[kind]) for kind in dense}
        everything = self.trained * sum(dense[kind] for kind in KINDS)
        flops = _share(sum(self.left_out[kind] for kind in KINDS), everything)
        masked = _share(self.left_out["masked"], everything)
        samples = 0.0 if self.samples is None else 1 - self.trained / self.samples
        saved = Saved(
            **shares,
            samples=samples,
            depth=self.depth,
            total=1 - (1 - samples) * (1 - flops),
            masked=(1 - samples) * masked,
        )
        self._start()
        return saved

    # ---- one sample -------------------------------------------------------------------------------------------------

    def _of_one_sample(self, wants: list[Wants], samples: int) -> dict[str, int]:
        """What is left out of one sample, by kind, in a batch of ``samples``."""
        total = dict.fromkeys(COUNTED, 0)
        for (name, cost), wanted, reached in zip(self.costs.items(), wants, self._have_dgrad(wants), strict=True):
            trained, wgrad_rows, dgrad_rows = self._rows(name, wanted)
            present, n = self._present_cost(name, cost), max(1, cost.tokens * samples)
            k, inputs = self._columns(name, wanted)
            wgrad = present.wgrad * wgrad_rows // present.rows * _summed(wanted, n) // n * k // inputs
            dgrad = present.dgrad * dgrad_rows * reached // present.rows
            total["rows"] += cost.rows - trained
            total["fprop"] += cost.fprop - present.fprop
            total["wgrad"] += cost.wgrad - wgrad
            total["dgrad"] += cost.dgrad - dgrad
            total["masked"] += _masked(present.fprop + dgrad + wgrad, wanted)
        return total

    def _present_cost(self, name: str, cost: Cost) -> Cost:
        """The cost of the layer at its present size, which is less than ``cost`` once it was made smaller."""
        layer = self.policy.layers[name]
        size, dense = layer.weight.numel(), self._dense[name]
        flops = {kind: getattr(cost, kind) * size // dense for kind in KINDS}
        return replace(cost, **flops, rows=layer.units.out)

    def _rows(self, name: str, wanted: Wants) -> tuple[int, int, int]:
        """How many rows of a layer get a gradient, and for how many wgrad and dgrad are computed."""
        layer = self.policy.layers[name]
        out, groups = layer.units.out, layer.units.groups
        if wanted.get("frozen", False):
            return 0, 0, 0
        if wanted.get("skip", False):
            return 0, 0, out
        rows = wanted.get("rows")
        if not isinstance(rows, TopK | Rows):
            return out, out, out
        k = rows.count(out, groups)
        if rows.scope == "both":
            return k, k, k
        chosen, inputs = self._columns(name, wanted)
        return k, k if gathers(layer.weight.numel() // out * chosen // inputs, k, out) else out, out

    def _columns(self, name: str, wanted: Wants) -> tuple[int, int]:
        """The columns of a layer that wgrad is computed for, and all of them."""
        layer, columns = self.policy.layers[name], wanted.get("columns")
        units, plan = layer.units, Plan(tokens=wanted.get("tokens"))
        if columns is None or not keeps_part(layer.kind, plan, layer.weight_by_rows):
            return units.inputs, units.inputs
        return columns.count(units.inputs, units.groups), units.inputs

    def _have_dgrad(self, wants: list[Wants]) -> list[bool]:
        """Whether each layer has a dgrad: only where something before it trains."""
        flags = tuple((wanted.get("frozen", False), wanted.get("skip", False)) for wanted in wants)
        if flags not in self._reached:
            skipping = {self.policy.layers[name] for name, (_, skip) in zip(self.costs, flags, strict=True) if skip}
            constants = {weight for weight, owners in self._owners if skipping.issuperset(owners)}
            constants |= set(self.policy.frozen_parameters())
            self._reached[flags] = [not cost.leaves <= constants for cost in self.costs.values()]
        return self._reached[flags]

    # ---- state ------------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """The whole numbers of which the next report is made."""
        return {"trained": self.trained, "depth": self.depth, "left_out": dict(self.left_out)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continues where the state was taken. Raises ``ValueError`` for what is no such state; nothing has changed then."""
        states.keys(state, self.state_dict())
        states.count("trained", state["trained"])
        states.count("depth", state["depth"], len(self.costs))
        states.names("left_out", state["left_out"], self.left_out)
        for kind, number in state["left_out"].items():
            states.count(kind, number, 2**100)
        self.trained, self.depth, self.left_out = state["trained"], state["depth"], dict(state["left_out"])


def _masked(flops: int, wanted: Wants) -> int:
    """The part of ``flops`` that is spent on weights that a mask keeps zero."""
    return round(flops * (1 - wanted.get("density", 1.0)))


def _summed(wanted: Wants, n: int) -> int:
    """How many of n tokens wgrad sums over."""
    tokens = wanted.get("tokens")
    return n if tokens is None else tokens.count(n)


def _share(part: int, whole: int) -> float:
    return part / whole if whole else 0.0


def _dense_costs(policy: Policy) -> dict[str, Cost]:
    """The costs that a freezing method counted before it froze anything; empty without such a method."""
    if isinstance(policy, Freezing):
        return policy.prefix.costs
    return next(filter(None, map(_dense_costs, policy.policies)), {}) if isinstance(policy, Compose) else {}
