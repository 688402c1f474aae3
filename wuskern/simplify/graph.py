"""The graph of a model, as ``torch.export`` gives it, and whose tensors its inputs are.

One operator for each way to spell it (``nn.ReLU``, ``F.relu``, ``x.relu()``), and ``len(x)`` does not end it, as it does
``torch.fx.symbolic_trace``.
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


@dataclass(frozen=True)
class Owner:
    """A module's parameter or buffer."""

    name: str
    module: nn.Module
    tensor: str


@dataclass(frozen=True)
class Graph:
    """Nodes in the order of execution; ``owners``: of each node that is a parameter or buffer, all modules that have it."""

    nodes: Sequence[Node]
    owners: dict[Node, list[Owner]]


def export(model: nn.Module, inputs: tuple[Any, ...]) -> Graph | str:
    """The graph of the model in its present mode, or why there is none."""
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            program = torch.export.export(model, inputs, strict=False)
    except Exception as error:  # whatever a model does that cannot be exported
        first = (str(error).strip().splitlines() or [""])[0]
        return f"torch.export cannot follow the model: {type(error).__name__}: {first}"[:200]
    signature = program.graph_signature
    names = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
    everything = _owners(model)
    tensors = dict(model.named_parameters(remove_duplicate=False)) | dict(model.named_buffers(remove_duplicate=False))
    nodes = list(program.graph.nodes)
    held = {node: everything[tensors[names[node.name]]] for node in nodes if names.get(node.name) in tensors}
    return Graph(nodes, held)


@contextlib.contextmanager
def evaluation(model: nn.Module) -> Iterator[None]:
    """Every module in evaluation, and afterwards in the mode that it had."""
    modes = {module: module.training for module in model.modules()}
    try:
        model.eval()
        yield
    finally:
        for module, training in modes.items():
            module.training = training


def _owners(model: nn.Module) -> dict[Tensor, list[Owner]]:
    found: dict[Tensor, list[Owner]] = {}
    for name, module in model.named_modules():
        for tensor, value in (*module._parameters.items(), *module._buffers.items()):
            if value is not None:
                found.setdefault(value, []).append(Owner(name, module, tensor))
    return found


def operation(node: Node) -> str:
    """``"relu"`` of ``aten.relu_.default``; of what is no operator of torch, its own name in brackets."""
    if isinstance(node.target, torch._ops.OpOverload) and node.target.namespace == "aten":
        return node.target._opname.removesuffix("_") if in_place(node) else node.target._opname
    return f"<{getattr(node.target, '__name__', node.target)}>"


def in_place(node: Node) -> bool:
    target = node.target
    return isinstance(target, torch._ops.OpOverload) and target._schema.is_mutable


def shape(node: Node) -> tuple[int, ...]:
    """Of a tensor; else ``()``."""
    value = node.meta.get("val")
    return tuple(value.shape) if isinstance(value, Tensor) else ()


def where(node: Node) -> str:
    """The operation and the module that runs it."""
    stack = list(node.meta.get("nn_module_stack", {}).values())
    name = stack[-1][0] if stack else ""
    return f"{operation(node)} in {name}" if name else operation(node)


def argument(node: Node, place: int, name: str, default: Any = None) -> Any:
    return node.args[place] if len(node.args) > place else node.kwargs.get(name, default)
