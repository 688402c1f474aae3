"""What each converted layer costs in a training step, counted by torch's ``FlopCounterMode`` in one forward of an example.

The three products of a layer multiply the same numbers in another order, so that each costs what the forward does. Torch itself
counts the backward of a convolution in groups for one without: what it says of that is not asked for.
"""

import warnings
from dataclasses import dataclass, field
from typing import Any

import torch.nn as nn
from torch import Tensor

from wuskern.common.example import Example, arguments, tensors
from wuskern.modules import SkippableLayer, product_layers
from wuskern.policies.recorded_run import recorded_run


@dataclass(frozen=True)
class Cost:
    """What a layer costs for one sample.

    Attributes:
        fprop, dgrad, wgrad: FLOPs, a multiplication and an addition as two; dgrad is 0 where nothing before the layer trains.
        rows: output units. tokens: how many a weight gradient sums over. leaves: what trains before the layer.
    """

    fprop: int
    dgrad: int
    wgrad: int
    rows: int
    tokens: int = 1
    leaves: frozenset[Tensor] = field(default=frozenset(), compare=False, repr=False)


def costs(model: nn.Module, example: Example) -> dict[str, Cost]:
    """The cost of each converted layer by name, in the order of execution. The runs of a layer that runs several
    times add up, at the place of its first; a layer that did not run is missing.

    The model runs once, in evaluation mode, and is left as it was; no random state moves.

    Args:
        example: the model's input, a sequence of its positional inputs, or a mapping of its keyword inputs. The first tensor's
            first dimension is the batch; numbers, which have none, do not count.

    Raises:
        ValueError: the model has no converted layer, or none of them ran. TypeError: an example of another kind. Whatever the
            model itself raises.
    """
    batch = next((len(x) for x in tensors(arguments(example)) if x.ndim), 0)
    if batch == 0:
        raise ValueError("example: expected a batch of at least one sample, got none")
    from torch.utils.flop_counter import FlopCounterMode  # brings Triton along

    by_name: dict[str, Cost] = {}
    counter, before_layer = FlopCounterMode(display=False), dict[SkippableLayer, int]()

    def begin(layer: SkippableLayer, _args: Any) -> None:
        before_layer[layer] = counter.get_total_flops()

    def count(name: str) -> Any:
        def hook(layer: SkippableLayer, args: tuple[Tensor, ...], kwargs: dict[str, Tensor], output: Tensor) -> None:
            x = next(tensors((args, kwargs)))
            fprop = (counter.get_total_flops() - before_layer[layer]) // batch
            before = by_name.get(name, Cost(0, 0, 0, 0))
            dgrad = before.dgrad + fprop * x.requires_grad
            leaves = before.leaves | _leaves(x)
            tokens = max(1, layer.kind.count_tokens(output) // batch)
            by_name[name] = Cost(before.fprop + fprop, dgrad, before.wgrad + fprop, layer.units.out, tokens, leaves)

        return hook

    layers = product_layers(model)
    hooks = [layer.register_forward_hook(count(name), with_kwargs=True) for name, layer in layers.items()]
    hooks += [layer.register_forward_pre_hook(begin) for layer in layers.values()]
    with warnings.catch_warnings(), counter:
        warnings.filterwarnings("ignore", "Using `torch.compile.* when there are global hooks", UserWarning)
        recorded_run(model, example, hooks)
    if not by_name:
        raise ValueError("example: expected an input that runs through a converted layer, got none")
    return by_name


def _leaves(x: Tensor) -> frozenset[Tensor]:
    """The leaves of the graph of ``x`` that gradients would reach."""
    if x.grad_fn is None:
        return frozenset([x] if x.requires_grad else [])
    nodes, to_visit, leaves = {x.grad_fn}, [x.grad_fn], set()
    while to_visit:
        node = to_visit.pop()
        if hasattr(node, "variable"):
            leaves.add(node.variable)
        new = {before for before, _ in node.next_functions if before is not None} - nodes
        nodes |= new
        to_visit += new
    return frozenset(leaves)
