"""The function ``summary``: how many parameters a model has, and how many of them train now."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch.nn as nn
from torch.nn import Parameter, UninitializedParameter

from wuskern.choices import Plan, Rows, TopK
from wuskern.modules import Skippable, SkippableLayer, plain_name, weight_owners
from wuskern.policies.freezing.forwards import Forward


@dataclass(frozen=True)
class Summary:
    """Numbers of parameters, tied ones once; prints as a few lines.

    Attributes:
        total: all. trainable: those that require a gradient. frozen: those that do not.
        train_now: trainable ones that the next backward gives a gradient that is not zero by the plans: all but what layers
            skip, what lies outside of chosen rows and columns, and what a freezing policy froze.
        layers: converted ones. covered: their weights.
        skipped: trainable weights that the layers skip now. frozen_by_policy: trainable parameters in a frozen prefix.
        parts: weights that train in some rows or columns alone. parts_train: of these what trains.
        rows, columns: layers with chosen rows, with chosen columns. tokens: layers that sum over chosen tokens.
        embeddings: weights of embeddings, converted or not, that no other layer has as its own.
    """

    total: int
    trainable: int
    frozen: int
    train_now: int
    layers: int
    covered: int
    skipped: int
    frozen_by_policy: int
    parts: int
    parts_train: int
    rows: int
    columns: int
    tokens: int
    embeddings: int

    def __str__(self) -> str:
        lines = [
            f"parameters  {self._of_all(self.total)}, {self._of_all(self.frozen)} of them frozen (requires_grad is False)",
            f"train now   {self._of_all(self.train_now)}",
            f"converted   {self._of_all(self.covered)} in the weights of {_count(self.layers, 'layer')}{self._now()}",
        ]
        if not self.layers:
            lines[-1] = "converted   none: see wuskern.convert"
        if self.embeddings:
            lines.append(f"embeddings  {self._of_all(self.embeddings)}")
        return "\n".join(lines)

    __repr__ = __str__

    def _of_all(self, number: int) -> str:
        return f"{number:,}" + (f" ({number / self.total:.1%})" if 0 < number < self.total else "")

    def _now(self) -> str:
        """What the converted layers leave out now."""
        said = [f"{number:,} {what}" for number, what in self._left_out() if number]
        if self.parts:
            of = {"rows": self.rows, "columns": self.columns}
            where = " and ".join(f"{name} of {_count(layers, 'layer')}" for name, layers in of.items() if layers)
            said.append(f"{self.parts_train:,} of {self.parts:,} train ({where})")
        if self.tokens:
            said.append(f"chosen tokens in {_count(self.tokens, 'layer')}")
        return f": {', '.join(said)}" if said else ": all dense"

    def _left_out(self) -> tuple[tuple[int, str], ...]:
        return (self.skipped, "skipped"), (self.frozen_by_policy, "frozen by a policy")


def summary(model: nn.Module) -> Summary:
    """How many parameters a model has, how many of them train now, and what its converted layers leave out; print it.

    Args:
        model: any module, converted or not, compiled or wrapped.

    Raises:
        TypeError: ``model`` is no module. ValueError: a lazy parameter that has no size yet, by name.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: expected a torch.nn.Module, got {type(model).__name__}")
    sizes, by_policy = _sizes(model), _frozen_by_policies(model)
    layers: dict[str, Any] = {name: module for name, module in model.named_modules() if isinstance(module, Skippable)}
    trainable = {parameter for parameter in sizes if parameter.requires_grad}
    open_to_plans = {weight: own for weight, own in weight_owners(model, layers) if weight in trainable - by_policy}
    skipped = {weight for weight, own in open_to_plans.items() if all(layer.skip for layer in own)}
    planned = {weight: _train(weight, own) for weight, own in open_to_plans.items()}
    parts = {weight for weight, train in planned.items() if train < sizes[weight]} - skipped
    covered = _weights(layer for layer in layers.values() if not isinstance(layer, nn.Embedding))
    covered |= {weight for weight, own in weight_owners(model, layers) if not any(isinstance(o, nn.Embedding) for o in own)}
    embeddings = _weights(m for m in model.modules() if isinstance(m, nn.Embedding | nn.EmbeddingBag)) - covered
    plans = [layer.plan for layer in layers.values() if not layer.skip]

    def count(chosen: Iterable[Parameter]) -> int:
        return sum(sizes[parameter] for parameter in chosen)

    return Summary(
        total=count(sizes),
        trainable=count(trainable),
        frozen=count(sizes.keys() - trainable),
        train_now=sum(planned.get(parameter, sizes[parameter]) for parameter in trainable - by_policy),
        layers=len(layers),
        covered=count(covered),
        skipped=count(skipped),
        frozen_by_policy=count(by_policy & trainable),
        parts=count(parts),
        parts_train=sum(planned[parameter] for parameter in parts),
        rows=sum(plan.rows is not None for plan in plans),
        columns=sum(plan.columns is not None for plan in plans),
        tokens=sum(plan.tokens is not None for plan in plans),
        embeddings=count(embeddings),
    )


def _sizes(model: nn.Module) -> dict[Parameter, int]:
    """The number of elements of each parameter, once."""
    for name, parameter in model.named_parameters():
        if isinstance(parameter, UninitializedParameter):
            raise ValueError(f"model: expected parameters with sizes, got a lazy {plain_name(model, name)}: run the model once")
    return {parameter: parameter.numel() for parameter in model.parameters()}


def _weights(modules: Iterable[nn.Module]) -> set[Parameter]:
    found = (module._parameters.get("weight") for module in modules)
    return {weight for weight in found if weight is not None}


def _frozen_by_policies(model: nn.Module) -> set[Parameter]:
    """The parameters that freezing policies have made constants."""
    forwards = (module.__dict__.get("forward") for module in model.modules())
    active = (forward for forward in forwards if isinstance(forward, Forward) and forward.active)
    return {parameter for forward in active for holder in forward.holders for _, parameter in holder.parameters()}


def _train(weight: Parameter, layers: Iterable[SkippableLayer]) -> int:
    """How many elements of a weight the plans of its layers give a gradient; all of it where they differ."""
    of_layers = {_share(weight, layer, layer.plan) for layer in layers if not layer.skip}
    return next(iter(of_layers), 0) if len(of_layers) < 2 else weight.numel()


def _share(weight: Parameter, layer: SkippableLayer, plan: Plan) -> int:
    """How many elements of a weight a plan gives a gradient. What each example or batch chooses is not known: all."""
    units = layer.units
    if layer._parameters.get("weight") is not weight:  # what a parametrization computes the weight from
        return weight.numel()
    rows = plan.rows.count(units.out, units.groups) if isinstance(plan.rows, TopK | Rows) else units.out
    columns = units.inputs if plan.columns is None else plan.columns.count(units.inputs, units.groups)
    return weight.numel() * rows * columns // (units.out * units.inputs)


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'s' * (number != 1)}"
