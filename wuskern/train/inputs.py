"""The inputs of a model, one or several by name, and what it gives: in all of the training loop they are handled here."""

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from torch import Tensor, nn

from wuskern.common.example import Samples

Inputs = Tensor | Samples  # of all samples
Batch = Tensor | dict[str, Tensor]  # of some
B = TypeVar("B", Tensor, Batch)


def each(x: B, function: Callable[[Tensor], Tensor]) -> B:
    """The batch with the function's results in place of its inputs."""
    return {name: function(value) for name, value in x.items()} if isinstance(x, dict) else function(x)


def call(model: nn.Module, x: Batch) -> Any:
    """The model's output; several inputs are given by keyword."""
    return model(**x) if isinstance(x, dict) else model(x)


def logits(output: Any, y: Tensor, classes: int) -> Tensor:
    """The scores of the classes in a model's output, ``[*y.shape, classes or more]``: the output itself or its ``logits``, as
    the models of transformers have it.

    Raises:
        TypeError, ValueError: the output has no such scores.
    """
    scores = output.get("logits") if isinstance(output, Mapping) else getattr(output, "logits", output)
    if not isinstance(scores, Tensor):
        raise TypeError(f"--model: expected a tensor of scores, or an output with logits, got {type(output).__name__}")
    if scores.shape[:-1] != y.shape or scores.shape[-1:] < (classes,):
        expected = [*y.shape, f"{classes} or more"]
        raise ValueError(f"--model: expected scores [{', '.join(map(str, expected))}], got {list(scores.shape)}")
    return scores
