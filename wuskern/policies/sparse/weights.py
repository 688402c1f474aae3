"""The weights of layers by name, as they are now."""

from collections.abc import Iterator, Mapping

from torch.nn import Parameter

from wuskern.modules import SkippableLayer


class Weights(Mapping[str, Parameter]):
    """The Parameter that is each layer's weight at this time: ``load_state_dict(assign=True)`` puts another one there.

    Raises:
        ValueError: on reading a weight that is computed by now, as by a parametrization.
    """

    def __init__(self, layers: Mapping[str, SkippableLayer]) -> None:
        self._layers = layers

    def __getitem__(self, name: str) -> Parameter:
        weight = self._layers[name]._parameters.get("weight")
        if weight is None:
            raise ValueError(f"model: expected weight of {name} to stay a parameter, got one that is computed by now")
        return weight

    def __iter__(self) -> Iterator[str]:
        return iter(self._layers)

    def __len__(self) -> int:
        return len(self._layers)
