"""An example of a model's input: a tensor, positional inputs, or keyword inputs."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from torch import Tensor

# A model's input, a sequence of its positional inputs, or a mapping of its keyword inputs.
Example = Tensor | Sequence[Any] | Mapping[str, Any]


def arguments(example: Example) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The positional and keyword arguments of a call of the model. For a model that takes a dict, give a list with the dict.

    Raises ``TypeError`` for an example of another kind, or a mapping with keys that are no names.
    """
    if isinstance(example, Tensor):
        return (example,), {}
    if isinstance(example, Mapping):
        if wrong := next((key for key in example if not isinstance(key, str)), None):
            raise TypeError(
                f"example: expected a mapping of keyword inputs by name, got the key {wrong!r} "
                "(for a model that takes a dict, give a list with the dict)"
            )
        return (), dict(example)
    if isinstance(example, Sequence) and not isinstance(example, str):
        return tuple(example), {}
    raise TypeError(
        "example: expected a tensor, a sequence of positional inputs or a mapping of keyword inputs, got "
        f"{type(example).__name__}"
    )


def tensors(value: Any) -> Iterator[Tensor]:
    """The tensors in nested sequences and mappings, in their order."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        yield from tensors(list(value.values()))
    elif isinstance(value, list | tuple):
        for item in value:
            yield from tensors(item)


class Samples:
    """The samples of a model with several inputs, ``[N, ...]`` each, by the names of its arguments: ``samples[index]`` is a
    batch, the mapping that the model is called with.

    Raises ``ValueError`` or ``TypeError`` for inputs that are no tensors, of other lengths, or none at all.
    """

    def __init__(self, inputs: Mapping[str, Any]) -> None:
        _, self.inputs = arguments(inputs)
        for name, x in self.inputs.items():
            if not isinstance(x, Tensor):
                raise TypeError(f"samples: expected tensors by name, got {type(x).__name__} as {name!r}")
        lengths = {name: len(x) if x.ndim else 0 for name, x in self.inputs.items()}
        if len(set(lengths.values())) != 1:
            raise ValueError(f"samples: expected inputs of one length, got {lengths or 'none'}")

    def __len__(self) -> int:
        return len(next(iter(self.inputs.values())))

    def __getitem__(self, index: Any) -> dict[str, Tensor]:
        return {name: x[index] for name, x in self.inputs.items()}

    def each(self, function: Callable[[Tensor], Tensor]) -> "Samples":
        """The samples with the function's results in place of their inputs."""
        return Samples({name: function(x) for name, x in self.inputs.items()})
