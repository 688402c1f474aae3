"""Whether a way to train gives the gradients that it says: looked at before anything is timed."""

from collections.abc import Mapping

import torch
import torch.nn as nn
from torch import Tensor

from wuskern.choices import Plan
from wuskern.modules import SkippableLayer, weight_owners
from wuskern.profile.variants import Way

CLOSE, CLOSE_IN_16_BITS = 1e-3, 5e-2  # of a gradient's norm
NOISE = 1e-5  # of the norm of all gradients: some are zero but for rounding, such as those of biases in front of a norm
Gradients = Mapping[nn.Parameter, Tensor | None]


class Checker:
    """What compares gradients with those of stock PyTorch.

    Args:
        stock: its gradients. names: of the parameters. rounds: whether some numbers have 16 bits.
    """

    def __init__(self, stock: Gradients, names: Mapping[nn.Parameter, str], rounds: bool) -> None:
        self.stock, self.names = stock, names
        self.close = CLOSE_IN_16_BITS if rounds else CLOSE
        norms = [float(_dense(grad).double().norm()) for grad in stock.values() if grad is not None]
        self.noise = NOISE * float(torch.tensor(norms).norm()) if norms else 0.0
        self.repeats = True  # whether two steps from the same random numbers give the same gradients

    def same_as_stock(self, found: Gradients) -> str | None:
        """What is wrong with the gradients of a way that leaves nothing out; None if nothing is."""
        for parameter, grad in found.items():
            expected = self.stock[parameter]
            if (grad is None) != (expected is None):
                return f"{self.names[parameter]}: expected {_described(expected)} as its gradient, got {_described(grad)}"
            if grad is not None and expected is not None and (error := self._error(_dense(grad), _dense(expected))):
                return f"{self.names[parameter]}: {error}"
        return None

    def obstacle(self, way: Way, model: nn.Module, layers: Mapping[str, SkippableLayer], found: Gradients) -> str | None:
        """What is wrong with the gradients of ``way``; None if nothing is."""
        if way.prefix is not None:
            with way.on(layers):
                frozen = set(way.prefix.parameters)
            return self._frozen(frozen, found)
        plans, others = _plans_of_weights(way, model, layers)
        for parameter, grad in found.items():
            expected, name = self.stock[parameter], self.names[parameter]
            plan, layer = plans.get(parameter, (None, None))
            if parameter in others:
                continue
            if plan is not None and plan.skip:
                if grad is not None:
                    return f"{name}: expected no gradient, got one"
                continue
            if (expected is None) != (grad is None):
                return f"{name}: expected {'no' if expected is None else 'a'} gradient, got {_described(grad)}"
            if expected is None or grad is None:
                continue
            whole, part = _dense(expected), _dense(grad)
            if plan is not None and layer is not None:
                chosen = part != 0
                share, most = float(chosen.double().mean()), _share(plan, layer)
                if share > most * (1 + 1e-9):
                    return f"{name}: expected a gradient of at most {most:.2%} of the weights, got {share:.2%}"
                whole, part = whole[chosen], part[chosen]
            if error := self._error(part, whole):
                return f"{name}: {error}"
        return None

    def _frozen(self, frozen: set[nn.Parameter], found: Gradients) -> str | None:
        if not frozen:
            return "expected some frozen parameters, got none"
        for parameter, grad in found.items():
            wanted = self.stock[parameter] is not None and parameter not in frozen
            if wanted != (grad is not None):
                return f"{self.names[parameter]}: expected {'a' if wanted else 'no'} gradient, got {_described(grad)}"
        return None

    def _error(self, found: Tensor, expected: Tensor) -> str | None:
        if not self.repeats:
            return None
        found, expected = found.double(), expected.double()
        error, norm = float((found - expected).norm()), float(expected.norm())
        if error <= self.close * norm + self.noise or (error != error and norm != norm):
            return None
        return f"expected stock's gradient, of norm {norm:.3g}, got one that differs by {error:.3g}"


def _plans_of_weights(
    way: Way, model: nn.Module, layers: Mapping[str, SkippableLayer]
) -> tuple[dict[nn.Parameter, tuple[Plan, SkippableLayer]], set[nn.Parameter]]:
    """The plan of each weight that one layer alone has, or several that skip; and the weights with a plan of which less can be
    said: what something else adds to the gradient of a tied one, or the gradient of what a weight is computed from."""
    by_layer = {layers[name]: plan for name, plan in way.plans.items()}
    plans: dict[nn.Parameter, tuple[Plan, SkippableLayer]] = {}
    for parameter, owners in weight_owners(model, layers):
        planned = [by_layer[owner] for owner in owners if owner in by_layer]
        alone = len(owners) == 1 and owners[0]._parameters.get("weight") is parameter
        if owners and len(planned) == len(owners) and (alone or all(plan.skip for plan in planned)):
            plans[parameter] = planned[0], owners[0]
    of_layers = {p for layer in by_layer for name, p in layer.named_parameters() if name != "bias"}
    return plans, of_layers - set(plans)


def _share(plan: Plan, layer: SkippableLayer) -> float:
    units, share = layer.units, 1.0
    if plan.rows is not None:
        share *= plan.rows.count(units.out, units.groups) / units.out  # type: ignore[union-attr]
    if plan.columns is not None:
        share *= plan.columns.count(units.inputs, units.groups) / units.inputs
    return share


def _dense(grad: Tensor) -> Tensor:
    return grad.detach().to_dense() if grad.layout != torch.strided else grad.detach()


def _described(grad: Tensor | None) -> str:
    return "none" if grad is None else "one"
