"""The functions ``simplify``, ``simplify_`` and ``norms_of_rows``."""

import copy
from typing import TypeVar

import torch
import torch.nn as nn
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer
from torch.utils import _pytree as pytree

from wuskern.common.example import Example, arguments
from wuskern.convert import revert
from wuskern.simplify.graph import Graph, Inputs, evaluation, export
from wuskern.simplify.plan import Plan, norms, plan
from wuskern.simplify.report import Report
from wuskern.simplify.surgery import Surgery, check_optimizer

Model = TypeVar("Model", bound=nn.Module)


def simplify(model: Model, example: Example) -> tuple[Model, Report]:
    """A smaller copy of ordinary layers, without the dead rows: rows of a Linear's weight, or output channels of a Conv2d's,
    that are all zero, with a zero bias.

    With a row go the columns that it feeds, in every layer behind, through activations, dropout, BatchNorm, pooling, Flatten,
    views and depthwise convolutions; rows that are summed, multiplied or joined go together or not at all. A view goes along
    whose sizes are -1 or computed from those of its input; one that says ``view(-1, 288)`` keeps the rows. What a dead unit
    gives to all inputs (0.5 behind a sigmoid, a BatchNorm's shift) goes into the bias of the layers behind. A row stays where
    that is not exact, where an operation mixes rows, or where a weight is shared or used several times; the report says why.
    Each layer keeps at least one row. A layer whose rows become dead only by this loses them in a second call.

    In evaluation the copy gives what the model gives, but for rounding; in training too, where dead units give zero. The graph
    is that of ``torch.export`` in evaluation.

    Args:
        model: converted or not; it is left as it is. Hooks are copied with it: release policies first.
        example: the model's input, a sequence of its positional inputs, or a mapping of its keyword inputs.

    Returns:
        The copy, in the modes of the model, which needs no wuskern to be loaded; a report of what was done.

    Raises:
        TypeError: ``model`` is no module, or ``example`` of another kind. ValueError: DDP wraps it. Whatever the model raises
            for the example.
        RuntimeError: the smaller model does not give what the model gives: its code has sizes of its own; or a layer that runs
            in training only does not fit any more.
    """
    _check(model)
    smaller = revert(copy.deepcopy(model))
    return smaller, simplify_(smaller, example)


def simplify_(model: nn.Module, example: Example, optimizer: Optimizer | None = None) -> Report:
    """Does what :func:`simplify` does in place, to go on training: modules and Parameters stay the same objects, only smaller.

    Gradients, sparse ones too, and the optimizer's state of each parameter are cut alike; momentum and moments go on. A layer
    that loses rows and whose ``rows`` are a ``wk.Rows`` has None afterwards: the policy that chose them chooses anew, from
    ``report.kept``. Call it between a step and the next forward, before DDP wraps the model, not behind it; schedulers stay.

    Raises:
        TypeError: ``model`` is no module, or ``optimizer`` no optimizer.
        ValueError: DDP wraps the model; the optimizer has no parameter of the model, or keeps state of another shape than
            the parameter's.
        RuntimeError: as :func:`simplify`. Whatever is raised, everything is as it was.
    """
    _check(model)
    if optimizer is not None:
        _check_optimizer(model, optimizer)
    inputs = arguments(example)
    surgery = Surgery()
    try:
        with evaluation(model):
            expected = _outputs(model, inputs)
            graph = export(model, inputs)
            before = _parameters(model)
            todo = plan(model, graph, own_sizes=False)
            try:
                _apply(surgery, todo, model, inputs, expected, optimizer)
            except RuntimeError:
                if not todo.open:
                    raise
                surgery.undo()
                todo = plan(model, graph)
                _apply(surgery, todo, model, inputs, expected, optimizer)
    except BaseException:
        surgery.undo()
        raise
    return Report(todo.layers, before, _parameters(model), todo.kept)


def _apply(
    surgery: Surgery,
    todo: Plan,
    model: nn.Module,
    inputs: Inputs,
    expected: list[Tensor],
    optimizer: Optimizer | None,
) -> None:
    """Makes the model smaller, and raises ``RuntimeError`` if it then does not run, or gives something else."""
    if optimizer is not None:
        check_optimizer(todo, model, optimizer)
    trains = bool(todo.kept and todo.not_run) and _trains(model, inputs)
    surgery.apply(todo, model, optimizer)
    _compare(model, inputs, expected)
    if trains and not _trains(model, inputs):
        raise RuntimeError(
            f"the smaller model does not run in training, where {', '.join(todo.not_run)} may run, and only there"
        )


def norms_of_rows(model: nn.Module, example: Example) -> dict[str, tuple[str, ...]]:
    """The norms that scale and shift the rows of each Linear and Conv2d, by name: BatchNorms, and GroupNorms of one row each.

    They matter to whoever makes rows dead: a BatchNorm behind a dead row gives its shift, which a convolution with zero padding
    behind it cannot take up. Where weight and bias of the norm are zero too, the unit gives zero, and the row goes. A layer is
    missing whose rows the graph of the model does not follow, or follows to a norm that is shared or has computed tensors.

    Args, Raises: as :func:`simplify`.
    """
    _check(model)
    with evaluation(model):
        graph = export(model, arguments(example))
    return {} if isinstance(graph, str) else norms(graph)


def _check(model: nn.Module) -> None:
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: expected a torch.nn.Module, got {type(model).__name__}")
    if any(isinstance(module, DistributedDataParallel) for module in model.modules()):
        raise ValueError(
            "model: expected one that DistributedDataParallel does not wrap yet, which holds buckets of the old sizes"
        )


def _check_optimizer(model: nn.Module, optimizer: Optimizer) -> None:
    if not isinstance(optimizer, Optimizer):
        raise TypeError(f"optimizer: expected a torch.optim.Optimizer, got {type(optimizer).__name__}")
    optimized = {id(p) for group in optimizer.param_groups for p in group["params"]}
    if not any(id(p) in optimized for p in model.parameters()):
        raise ValueError(f"optimizer: expected one of the model's parameters, got {type(optimizer).__name__} of others")


def _parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def _outputs(model: nn.Module, inputs: Inputs) -> list[Tensor]:
    """All tensors in the model's output. No random state moves."""
    devices = {p.device for p in model.parameters() if p.is_cuda}
    with torch.no_grad(), torch.random.fork_rng(devices):
        args, kwargs = pytree.tree_map_only(Tensor, Tensor.clone, inputs)  # a model may write to its input
        leaves = pytree.tree_leaves(model(*args, **kwargs))
        return [leaf.clone() for leaf in leaves if isinstance(leaf, Tensor)]


def _compare(model: nn.Module, inputs: Inputs, expected: list[Tensor]) -> None:
    """Raises ``RuntimeError`` if the outputs differ: what a model's code does with sizes is not in its graph."""
    advice = "the model's code computes with sizes of its layers: simplify the parts that do not, each by itself"
    try:
        outputs = _outputs(model, inputs)
    except Exception as error:
        raise RuntimeError(f"the smaller model does not run: {advice} ({error})") from error
    for a, b in zip(outputs, expected, strict=True):
        if a.shape != b.shape or not _close(a, b):
            raise RuntimeError(f"the smaller model does not give what the model gives: {advice}")


def _trains(model: nn.Module, inputs: Inputs) -> bool:
    """Whether the model runs in training mode, found by an export: nothing of the model changes."""
    with evaluation(model):
        return isinstance(export(model.train(), inputs), Graph)


def _close(a: Tensor, b: Tensor) -> bool:
    if not a.is_floating_point() or a.numel() == 0:
        return True
    scale = float(b.double().nan_to_num(posinf=0.0, neginf=0.0).abs().max())
    tolerance = torch.finfo(b.dtype).eps ** 0.5 * scale
    return torch.allclose(a.double(), b.double(), rtol=0.0, atol=tolerance, equal_nan=True)
