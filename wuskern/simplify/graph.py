"""The graph of a model, as ``torch.export`` gives it, and whose tensors its inputs are.

An exported graph has one operator for all spellings (``nn.ReLU``, ``F.relu``, ``x.relu()``), and ``len(x)`` does not end the
export, as it ends ``torch.fx.symbolic_trace``.
"""

import contextlib
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn as nn
from torch import Tensor
from torch.fx import Node

Inputs = tuple[tuple[Any, ...], dict[str, Any]]  # positional ones, and those by keyword


@dataclass(frozen=True)
class Owner:
    """A module and the name ``tensor`` of one of its parameters or buffers; ``name``: of the module in the model."""

    name: str
    module: nn.Module
    tensor: str


@dataclass(frozen=True)
class Graph:
    """The nodes in the order of execution; ``owners``: all modules that have the parameter or buffer that a node is."""

    nodes: Sequence[Node]
    owners: dict[Node, list[Owner]]


def export(model: nn.Module, inputs: Inputs) -> Graph | str:
    """The graph of the model in its present mode for positional and keyword inputs, or why there is none."""
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            program = torch.export.export(model, *inputs, strict=False)
    except Exception as error:  # whatever a model does that cannot be exported
        first = (str(error).strip().splitlines() or [""])[0]
        return f"torch.export cannot follow the model: {type(error).__name__}: {first}"[:200]
    signature = program.graph_signature
    names = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
    owners = _owners(model)
    tensors = dict(model.named_parameters(remove_duplicate=False)) | dict(model.named_buffers(remove_duplicate=False))
    nodes = list(program.graph.nodes)
    of_nodes = {node: owners[tensors[names[node.name]]] for node in nodes if names.get(node.name) in tensors}
    return Graph(nodes, of_nodes)


@contextlib.contextmanager
def evaluation(model: nn.Module) -> Iterator[None]:
    """A block in which every module is in evaluation mode; afterwards each has the mode that it had."""
    modes = {module: module.training for module in model.modules()}
    try:
        model.eval()
        yield
    finally:
        for module, training in modes.items():
            module.training = training


def _owners(model: nn.Module) -> dict[Tensor, list[Owner]]:
    owners: dict[Tensor, list[Owner]] = {}
    for name, module in model.named_modules():
        for tensor, value in (*module._parameters.items(), *module._buffers.items()):
            if value is not None:
                owners.setdefault(value, []).append(Owner(name, module, tensor))
    return owners


def operation(node: Node) -> str:
    """The operator's name, as ``"relu"`` for ``aten.relu_.default``; in brackets the name of what is no operator of torch."""
    if isinstance(node.target, torch._ops.OpOverload) and node.target.namespace == "aten":
        return node.target._opname.removesuffix("_") if in_place(node) else node.target._opname
    return f"<{getattr(node.target, '__name__', node.target)}>"


def in_place(node: Node) -> bool:
    target = node.target
    return isinstance(target, torch._ops.OpOverload) and target._schema.is_mutable


def shape(node: Node) -> tuple[int, ...]:
    """The shape of the node's tensor; ``()`` where its value is none."""
    value = node.meta.get("val")
    return tuple(value.shape) if isinstance(value, Tensor) else ()


def where(node: Node) -> str:
    """The operation and the module that runs it, in words."""
    stack = list(node.meta.get("nn_module_stack", {}).values())
    name = stack[-1][0] if stack else ""
    return f"{operation(node)} in {name}" if name else operation(node)


def argument(node: Node, place: int, name: str, default: Any = None) -> Any:
    return node.args[place] if len(node.args) > place else node.kwargs.get(name, default)
