"""What is to be done about a graph: which indices of which tensors stay, and which biases take up a constant."""

from dataclasses import dataclass

import torch
import torch.nn as nn
from torch import Tensor
from torch.fx import Node

from wuskern.simplify import rules
from wuskern.simplify.graph import Graph, argument, in_place, operation, where
from wuskern.simplify.layers import KINDS, dead_rows, layer
from wuskern.simplify.report import LayerRows
from wuskern.simplify.units import Ledger, Units

NOT_RUN = "the model's forward, in evaluation, does not use its weight"


@dataclass(frozen=True)
class Plan:
    """What is to be done to make a model smaller.

    Attributes:
        keep: by (module, tensor) the indices that stay, by dimension.
        sizes: by (module, attribute) the new value.
        folds: by module ``[columns]``, float64: the constant input of each column that goes; 0 for the others.
        layers, kept: the report's.
        not_run: layers that the graph does not have.
        open: views whose sizes may be computed or not.
    """

    keep: dict[tuple[str, str], dict[int, Tensor]]
    sizes: dict[tuple[str, str], int]
    folds: dict[str, Tensor]
    layers: dict[str, LayerRows]
    kept: dict[str, Tensor]
    not_run: list[str]
    open: list[str]


def plan(model: nn.Module, graph: Graph | str, own_sizes: bool = True) -> Plan:
    """The plan for a model and its graph. If ``graph`` is text, it says why there is none, and everything stays.
    ``own_sizes``: as for the ledger.
    """
    ledger = Ledger() if isinstance(graph, str) else _Walk(graph, own_sizes).ledger
    gone = ledger.gone()
    modules = dict(model.named_modules())
    keep: dict[tuple[str, str], dict[int, Tensor]] = {}
    sizes: dict[tuple[str, str], int] = {}
    kept: dict[str, Tensor] = {}
    for cut in ledger.cuts:
        stay = (~_goes(gone, cut.ids)).nonzero()[:, 0]
        if len(stay) == len(cut.ids):
            continue
        if cut.dim == 0 and isinstance(modules[cut.module], nn.Linear | nn.Conv2d):
            kept[cut.module] = stay
        for tensor in cut.tensors:
            if getattr(modules[cut.module], tensor) is not None:
                keep.setdefault((cut.module, tensor), {})[cut.dim] = stay
        sizes.update({(cut.module, name): len(stay) for name in cut.attributes})
    folds = {fold.module: _constants(fold.inputs, gone) for fold in ledger.folds}
    reason = graph if isinstance(graph, str) else NOT_RUN
    layers = {
        name: _layer_rows(name, module, ledger, gone, reason)
        for name, module in modules.items()
        if isinstance(module, nn.Linear | nn.Conv2d) and isinstance(module.weight, Tensor)
    }
    not_run = [name for name in layers if name not in ledger.refused and name not in {cut.module for cut in ledger.cuts}]
    folds = {name: constants for name, constants in folds.items() if constants.any()}
    return Plan(keep, sizes, folds, layers, kept, not_run, ledger.open)


def norms(graph: Graph) -> dict[str, tuple[str, ...]]:
    """The modules with a weight and a bias for each row of a layer, by layer; a layer that is not followed is missing."""
    ledger = _Walk(graph, own_sizes=False).ledger
    scales = [cut for cut in ledger.cuts if not cut.rows and {"weight", "bias"} <= set(cut.tensors)]
    layers = [cut for cut in ledger.cuts if cut.rows and ledger.without_norm.isdisjoint(cut.ids.tolist())]
    return {cut.module: tuple(scale.module for scale in scales if torch.equal(scale.ids, cut.ids)) for cut in layers}


def _goes(gone: Tensor, ids: Tensor) -> Tensor:
    """Whether each unit of ``ids`` goes; False in places without a unit."""
    return torch.cat((gone, torch.zeros(1, dtype=torch.bool)))[ids]


def _constants(x: Units, gone: Tensor) -> Tensor:
    return torch.where(_goes(gone, x.ids), x.constant, 0.0)


def _layer_rows(name: str, module: nn.Linear | nn.Conv2d, ledger: Ledger, gone: Tensor, not_run: str) -> LayerRows:
    dead, rows = dead_rows(module), len(module.weight)
    ids = next((cut.ids for cut in ledger.cuts if cut.module == name and cut.dim == 0), None)
    if ids is None:
        count = int(dead.sum())
        return LayerRows(rows, rows, {ledger.refused.get(name, not_run): count} if count else {})
    goes = _goes(gone, ids)
    reasons: dict[str, int] = {}
    for unit in ids[dead & ~goes].tolist():
        reason = ledger.reasons.get(unit, "what it feeds into is no layer's output")
        reasons[reason] = reasons.get(reason, 0) + 1
    return LayerRows(rows, rows - int(goes.sum()), reasons)


class _Walk:
    """A walk along the graph, which fills a ledger by what is known of each tensor's units."""

    def __init__(self, graph: Graph, own_sizes: bool) -> None:
        self.graph = graph
        self.ledger = Ledger(own_sizes)
        self.values: dict[Node, Units] = {}
        self.memory: dict[Node, Node] = {}  # the tensor whose memory a view shares
        for place, node in enumerate(graph.nodes):
            if node.op == "call_function":
                self._call(node, place)
            elif node.op == "output":
                self._pin(node, "it is the model's output")

    def _pin(self, node: Node, reason: str) -> None:
        """Pins all units that go into the node."""
        for source in node.all_input_nodes:
            if source in self.values:
                self.ledger.pin(self.values[source], reason)
            for owner in self.graph.owners.get(source, []):
                self.ledger.refused.setdefault(owner.name, f"its {owner.tensor}: {reason}")

    def _call(self, node: Node, place: int) -> None:
        first = next(iter(node.all_input_nodes), None)
        if first is not None and (in_place(node) or operation(node) in rules.VIEWS):
            self.memory[node] = self.memory.get(first, first)
        value = self._value(node)
        if in_place(node) and first is not None:
            self._written(node, first, place)
        if value is not None:
            self.values[node] = value
            if in_place(node) and first is not None:
                self.values[first] = value

    def _written(self, node: Node, first: Node, place: int) -> None:
        """Pins the units of other views of the memory that the node writes to, if they are read later: they have changed."""
        self.values.pop(first, None)
        later = set(self.graph.nodes[place + 1 :])
        memory = self.memory[node]
        for view in [n for n in self.values if self.memory.get(n, n) is memory and n is not first]:
            if later & set(view.users):
                self.ledger.pin(self.values[view], f"{where(node)} writes to memory that others read")

    def _value(self, node: Node) -> Units | None:
        name, values = operation(node), self.values
        inputs = [source for source in node.all_input_nodes if source in values]
        if name in KINDS and isinstance(node.args[0], Node):
            if len(inputs) > (node.args[0] in values):  # a weight that another layer computes
                self._pin(node, rules.mixes(node))
                return None
            return layer(node, values.get(node.args[0]), self.graph, self.ledger)
        if not inputs:
            self._pin(node, f"{where(node)} reads it")
            return None
        if name == "cat":
            parts = [(values.get(source), source) for source in argument(node, 0, "tensors")]
            return rules.concatenation(node, parts, self.ledger)
        operands = argument(node, 0, "self"), argument(node, 1, "other")
        tensors = [a for a in (*node.args, *node.kwargs.values()) if isinstance(a, Node)]
        if name in rules.BINARY and all(isinstance(a, Node) for a in operands):
            return rules.binary(node, values.get(operands[0]), values.get(operands[1]), self.ledger)
        if name in rules.RULES and tensors == node.all_input_nodes == [node.args[0]]:
            return rules.RULES[name](node, values[tensors[0]], self.ledger)
        self._pin(node, rules.mixes(node))
        return None
