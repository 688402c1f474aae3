"""The ways to train that a profile compares: each sets a model up for one step, and undoes it."""

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.nn as nn

from wuskern import ops
from wuskern.choices import DENSE, Columns, Plan, TopColumns, TopK
from wuskern.common.example import Example
from wuskern.delivery.dense_grad import Recycled
from wuskern.modules import SkippableLayer
from wuskern.policies.freezing.prefix import Prefix

FEW, MORE = 0.05, 0.2
SHARES = (0.5, 0.25, 0.75)  # of the layers, frozen; in the order of what is measured while there is time
DENSE_NAME, SKIP_NAME = "dense", "skip"
Setup = Callable[[], object]


@dataclass(eq=False)
class Way:
    """One way to train.

    Attributes:
        name: for people. methods: policies that train so. plans: of the layers, by name; the others are dense.
        prefix, depth: what is frozen. left_dense: how many layers cannot have such a plan.
    """

    name: str
    methods: str
    plans: Mapping[str, Plan]
    prefix: Prefix | None = None
    depth: int = 0
    left_dense: int = 0

    @contextmanager
    def on(self, layers: Mapping[str, SkippableLayer], zeros: "Zeros | None" = None) -> Iterator[None]:
        """A block in which the layers train so; then they are dense, and modules in the modes that they had."""
        try:
            for name, plan in self.plans.items():
                layers[name].plan = plan
                if zeros is not None:
                    zeros.lend(layers[name])
            if self.prefix is not None:
                self.prefix.set(self.depth)
            yield
        finally:
            for name in self.plans:
                layers[name].plan = DENSE
            if self.prefix is not None:
                self.prefix.set(0)


class Zeros:
    """The memory of dense gradients of a few rows or columns, which layers use again from step to step: kept here while another
    way has its turn, as a training that stays with one way would have it."""

    def __init__(self) -> None:
        self._of: dict[SkippableLayer, Recycled] = {}

    def lend(self, layer: SkippableLayer) -> None:
        if (home := layer._home) is not None:
            home.recycled = self._of.setdefault(layer, home.recycled)


def partial_ways(layers: Mapping[str, SkippableLayer]) -> list[Way]:
    """The ways that leave out weight gradients, the most telling ones first; not those that no layer can have."""
    draw = torch.Generator().manual_seed(0)
    found = [
        Way(SKIP_NAME, "wus, blocks", dict.fromkeys(layers, Plan(skip=True))),
        _partly(f"columns {FEW:.0%}", "paca", layers, lambda layer: Plan(columns=_columns(layer, draw))),
        _partly(f"rows {FEW:.0%}", "meprop", layers, lambda _: Plan(rows=TopK(ratio=FEW))),
        _partly(f"rows {MORE:.0%}", "meprop, ssprop", layers, lambda _: Plan(rows=TopK(ratio=MORE))),
    ]
    return [way for way in found if way.plans]


def frozen_ways(model: nn.Module, example: Example) -> list[Way]:
    """The frozen prefixes, half of the layers first. The model runs four times. Raises ``ValueError`` where it has none, and
    whatever the model raises when it evaluates."""
    prefix, depths = Prefix(model, example), list[int]()
    for share in SHARES:
        depth = prefix.reachable(math.ceil(share * len(prefix.order)))
        if depth and depth not in depths:
            depths.append(depth)
    if not depths:
        raise ValueError("there is no depth at which something trains and all before it can be frozen")
    of = len(prefix.order)
    return [Way(f"{depth} of {of} layers frozen", "freeze, autofreeze", {}, prefix, depth) for depth in depths]


def _partly(name: str, methods: str, layers: Mapping[str, SkippableLayer], plan_of: Callable[[SkippableLayer], Plan]) -> Way:
    plans: dict[str, Plan] = {}
    for layer_name, layer in layers.items():
        try:
            plan = plan_of(layer)
            plan.check(layer.units)
        except (ValueError, TypeError):  # a depthwise convolution has no columns to choose from
            continue
        plans[layer_name] = plan
    return Way(name, methods, plans, left_dense=len(layers) - len(plans))


def _columns(layer: SkippableLayer, draw: torch.Generator) -> Columns:
    """Columns drawn at random, as PaCA has them. Raises ``ValueError`` where the layer can have none."""
    units, amount = layer.units, TopColumns(ratio=FEW)
    amount.check(units)
    scores = torch.rand(units.inputs, generator=draw)
    index = ops.select_rows(scores, amount.count(units.inputs, units.groups), 1, units.groups)
    return Columns(index.to(layer.weight.device))
