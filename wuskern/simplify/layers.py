"""Layers with weights: where units begin, end, or pass one by one."""

from typing import Any

import torch
import torch.nn as nn
from torch import Tensor
from torch.fx import Node

from wuskern.simplify.graph import Graph, Owner, argument, operation, shape, where
from wuskern.simplify.units import Cut, Fold, Ledger, Units, varying

OF_ROWS = {nn.Linear: ("out_features", "in_features"), nn.Conv2d: ("out_channels", "in_channels")}
BATCH_NORMS = nn.BatchNorm1d | nn.BatchNorm2d | nn.SyncBatchNorm
PARAMETER_NAMES = {  # by the places of the arguments that are tensors of the module
    "linear": {1: "weight", 2: "bias"},
    "conv2d": {1: "weight", 2: "bias"},
    "batch_norm": {1: "weight", 2: "bias", 3: "running_mean", 4: "running_var"},
    "group_norm": {2: "weight", 3: "bias"},
    "prelu": {1: "weight"},
}
SCALES = {"batch_norm": 1, "group_norm": 2}  # norms that scale each row by an argument, at that place
KINDS: dict[str, Any] = {
    "linear": nn.Linear,
    "conv2d": nn.Conv2d,
    "batch_norm": BATCH_NORMS,
    "group_norm": nn.GroupNorm,
    "prelu": nn.PReLU,
}


def layer(node: Node, x: Units | None, graph: Graph, ledger: Ledger) -> Units | None:
    """The units of the output of a node whose operation is in ``KINDS``; x: those of its input. None: it has none."""
    owner = _owner(node, graph)
    if isinstance(owner, str):  # what is in the way
        for candidate in _owners(node, graph):
            ledger.refused.setdefault(candidate.name, owner)
        if x is not None:
            ledger.pin(x, f"{where(node)}: {owner}")
            if operation(node) in SCALES and argument(node, SCALES[operation(node)], "weight") is not None:
                ledger.without_norm.update(x.ids.tolist())
        return None
    if operation(node) == "linear":
        return _linear(node, x, owner, ledger)
    if operation(node) == "conv2d":
        return _conv2d(node, x, owner, ledger)
    return None if x is None else _one_by_one(node, x, owner, ledger)


def _owners(node: Node, graph: Graph) -> list[Owner]:
    return [owner for source in node.all_input_nodes for owner in graph.owners.get(source, [])]


def _owner(node: Node, graph: Graph) -> Owner | str:
    """The module whose tensors the node takes, all of them under their own names; or what is in the way."""
    modules: dict[nn.Module, Owner] = {}
    for place, name in PARAMETER_NAMES[operation(node)].items():
        source = argument(node, place, name)
        if source is None:
            continue
        owners = graph.owners.get(source)
        if owners is None:
            return f"its {name} is computed"
        if len(owners) > 1:
            return f"its {name} is shared: {', '.join(f'{o.name}.{o.tensor}' for o in owners)}"
        if len(source.users) > 1:
            return f"its {name} is used {len(source.users)} times"
        if not isinstance(owners[0].module, KINDS[operation(node)]) or owners[0].tensor != name:
            return f"its {name} belongs to {type(owners[0].module).__name__}"
        if type(owners[0].module) is nn.modules.linear.NonDynamicallyQuantizableLinear:
            return f"MultiheadAttention reads its {name} and never calls it"
        value = getattr(owners[0].module, name)
        if type(value) not in (nn.Parameter, Tensor, nn.Buffer):
            return f"its {name} is a {type(value).__name__}"
        modules[owners[0].module] = owners[0]
    if len(modules) != 1:
        return "its tensors are those of several modules" if modules else "it has no tensors of its own"
    return next(iter(modules.values()))


def _float64(tensor: Tensor) -> Tensor:
    return tensor.detach().to("cpu", torch.float64)


def dead_rows(module: nn.Linear | nn.Conv2d) -> Tensor:
    """Which rows have a weight and a bias that are all zero: ``[rows]`` bool, on the CPU."""
    dead = (module.weight.detach() == 0).flatten(1).all(1)
    return (dead if module.bias is None else dead & (module.bias.detach() == 0)).cpu()


# ---- Linear and Conv2d ------------------------------------------------------------------------------------------------


def _linear(node: Node, x: Units | None, owner: Owner, ledger: Ledger) -> Units | None:
    if x is not None:
        if x.dim != len(shape(node)) - 1:
            ledger.pin(x, f"{where(node)} reads it along another dimension")
        else:
            _columns(node, x, owner, ledger, padded=False)
    return _rows(owner, len(shape(node)) - 1, ledger)


def _conv2d(node: Node, x: Units | None, owner: Owner, ledger: Ledger) -> Units | None:
    module, dim = owner.module, len(shape(node)) - 3
    assert isinstance(module, nn.Conv2d)
    if x is not None and x.dim != dim:
        ledger.pin(x, f"{where(node)} reads it along another dimension")
        x = None
    if module.groups == 1:
        if x is not None:
            _columns(node, x, owner, ledger, padded=_padded(node))
        return _rows(owner, dim, ledger)
    if module.groups == module.in_channels == module.out_channels and x is not None:
        return _depthwise(node, x, owner, ledger)
    reason = f"{where(node)} has {module.groups} groups, which stay equal"
    if x is not None:
        ledger.pin(x, reason)
    units = _rows(owner, dim, ledger)
    ledger.pin(units, reason)
    return units


def _padded(node: Node) -> bool:
    padding = argument(node, 4, "padding", 0)
    if isinstance(padding, str):  # zero with "same" where the kernel is 1x1
        return padding == "same" and any(size > 1 for size in shape(argument(node, 1, "weight"))[2:])
    return any([padding] if isinstance(padding, int) else padding)


def _rows(owner: Owner, dim: int, ledger: Ledger) -> Units:
    module = owner.module
    assert isinstance(module, nn.Linear | nn.Conv2d)
    ids = ledger.new(len(module.weight))
    ledger.die(ids, dead_rows(module))
    ledger.cuts.append(Cut(owner.name, ("weight", "bias"), 0, ids, _attributes(module)[:1], rows=True))
    fixed = (module.weight.detach() == 0).flatten(1).all(1).cpu()
    bias = torch.zeros(len(ids), dtype=torch.float64) if module.bias is None else _float64(module.bias)
    return Units(dim, ids, torch.where(fixed, bias, torch.nan))


def _attributes(module: nn.Module) -> tuple[str, str]:
    return OF_ROWS[nn.Linear if isinstance(module, nn.Linear) else nn.Conv2d]


def _columns(node: Node, x: Units, owner: Owner, ledger: Ledger, padded: bool) -> None:
    """Takes note of the layer's columns: one with a constant input can go where the bias takes the constant up."""
    no_bias = owner.module.bias is None
    ledger.pin(x, f"{where(node)} reads it, and it is not constant there", ~x.known)
    if padded:
        ledger.pin(x, f"its constant meets the zero padding of {where(node)}", x.known & (x.constant != 0))
    elif no_bias:
        ledger.pin(x, f"its constant needs a bias, which {where(node)} has not", x.known & (x.constant != 0))
    ledger.cuts.append(Cut(owner.name, ("weight",), 1, x.ids, _attributes(owner.module)[1:]))
    if not no_bias:
        ledger.folds.append(Fold(owner.name, x))


def _depthwise(node: Node, x: Units, owner: Owner, ledger: Ledger) -> Units:
    module = owner.module
    assert isinstance(module, nn.Conv2d)
    sums = _float64(module.weight).flatten(1).sum(1)
    constant = x.constant * sums
    if _padded(node):
        lost = x.known & (x.constant != 0) & (sums != 0)
        constant = torch.where(lost, torch.nan, constant)
        ledger.blame(x.ids[lost & (x.ids >= 0)], f"its constant meets the zero padding of {where(node)}")
    fixed = (module.weight.detach() == 0).flatten(1).all(1).cpu()
    constant = torch.where(fixed, 0.0, constant)
    if module.bias is not None:
        constant = constant + _float64(module.bias)
    known = x.ids >= 0
    ledger.die(x.ids, dead_rows(module) & known)
    ledger.cuts.append(
        Cut(owner.name, ("weight", "bias"), 0, x.ids, ("out_channels", "in_channels", "groups"), rows=bool(known.all()))
    )
    return Units(x.dim, x.ids, constant)


# ---- norms and PReLU: a number or two per unit --------------------------------------------------------------------------


def _one_by_one(node: Node, x: Units, owner: Owner, ledger: Ledger) -> Units | None:
    rule = {"batch_norm": _batch_norm, "group_norm": _group_norm, "prelu": _prelu}[operation(node)]
    if x.dim != (1 if len(shape(node)) > 1 else 0):
        ledger.pin(x, f"{where(node)} reads it along another dimension")
        return None
    return rule(node, x, owner, ledger)


def _batch_norm(node: Node, x: Units, owner: Owner, ledger: Ledger) -> Units:
    norm = owner.module
    assert isinstance(norm, BATCH_NORMS)
    result = torch.zeros_like(x.constant)  # normalised by a batch in which all values are equal
    if norm.running_mean is not None and norm.running_var is not None:
        result = (x.constant - _float64(norm.running_mean)) / (_float64(norm.running_var) + norm.eps).sqrt()
    tensors = ("weight", "bias", "running_mean", "running_var")
    return _scaled(x, result, owner, tensors, ("num_features",), ledger)


def _group_norm(node: Node, x: Units, owner: Owner, ledger: Ledger) -> Units | None:
    norm = owner.module
    assert isinstance(norm, nn.GroupNorm)
    if norm.num_groups != norm.num_channels:
        ledger.pin(x, f"{where(node)} has statistics over several rows")
        return None
    attributes = ("num_groups", "num_channels")
    return _scaled(x, torch.zeros_like(x.constant), owner, ("weight", "bias"), attributes, ledger)


def _scaled(
    x: Units, normal: Tensor, owner: Owner, tensors: tuple[str, ...], attributes: tuple[str, ...], ledger: Ledger
) -> Units:
    """The units behind the weight and bias of a norm that gives ``normal`` where its input is constant."""
    weight, bias = owner.module.weight, owner.module.bias
    result = normal if weight is None else normal * _float64(weight)  # type: ignore[operator,arg-type]
    result = result if bias is None else result + _float64(bias)  # type: ignore[arg-type]
    ledger.cuts.append(Cut(owner.name, tensors, 0, x.ids, attributes))
    return Units(x.dim, x.ids, torch.where(x.known, result, varying(len(result))))


def _prelu(node: Node, x: Units, owner: Owner, ledger: Ledger) -> Units:
    slope = _float64(owner.module.weight)  # type: ignore[arg-type]
    if len(slope) > 1:
        ledger.cuts.append(Cut(owner.name, ("weight",), 0, x.ids, ("num_parameters",)))
    return Units(x.dim, x.ids, torch.where(x.constant < 0, x.constant * slope, x.constant))
