"""What every policy has: its layers, and an optimizer hook that keeps a skipped weight where it is."""

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping
from typing import Any

import torch.nn as nn
from torch.optim import Optimizer

from wuskern.choices import DEFAULTS, Parts, Plan, RowChoice
from wuskern.modules import skippable_layers
from wuskern.plans import check_plan
from wuskern.policies.attach import Attachment

# What one policy alone can decide of a layer.
CLAIMS = {
    "frozen": "when it is frozen",
    "rows": "which rows have gradients",
    "zeros": "which weights are zero",
    "tokens": "which tokens its weight gradient sums over",
    "shape": "its shape, which a frozen one keeps",
}


class Wants(Parts, total=False):
    """What a policy wants of a layer; a part of its plan that it has no word on is missing. A frozen layer has no backward at
    all, whatever the others say. ``density``: the share of its weights that no mask keeps zero, a fact that only savings are
    counted by."""

    frozen: bool
    density: float


def parts_of(wanted: Wants) -> Parts:
    """What of it belongs into a layer's plan."""
    return {name: value for name, value in wanted.items() if name in DEFAULTS}  # type: ignore[return-value]


class Policy(ABC):
    """Decides and remembers; never computes a gradient and never touches ``requires_grad``.

    A decision holds from one optimizer step to the next, for all micro-batches in between: call ``before_step`` ahead of the
    first one and ``after_step`` after the optimizer, where a method acts in each step, and ``step`` after an evaluation.
    Several policies on one model: :class:`wuskern.policies.Compose`.

    ``layers`` are the converted layers of the model, by name.
    """

    part_of: "Policy | None" = None

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.layers = skippable_layers(model)

    @abstractmethod
    def step(self, metric: float | None = None) -> bool:
        """Takes the metric of the period that just ended; returns whether the next period skips."""

    def before_step(self) -> None:  # noqa: B027  # most methods have nothing to do
        """Decides about the optimizer step that begins now."""

    def after_step(self) -> None:  # noqa: B027
        """Counts the optimizer step that has ended."""

    @property
    def claims(self) -> Mapping[str, Collection[str]]:
        """What the policy decides, now or later, and no other may: of each of ``CLAIMS`` the names of the layers."""
        return {}

    @property
    def whole(self) -> "Policy":
        """The policy that sets the layers' flags: this one, or the ``Compose`` that it is a part of."""
        return self if self.part_of is None else self.part_of.whole

    @abstractmethod
    def wants(self, name: str) -> Wants:
        """What is wanted of the layer of that name, as the policy's state has them."""

    def trains(self, name: str) -> bool:
        """Whether the layer of that name neither skips nor is frozen now, whichever policy wants that."""
        wanted = self.whole.wants(name)
        return not (wanted.get("frozen") or wanted.get("skip"))

    def apply(self) -> None:
        """Sets the layers' plans to what the policy wants. Idempotent."""
        for name, layer in self.layers.items():
            layer.plan = layer.plan.replace(**parts_of(self.wants(name)))

    def release(self) -> None:
        """Turns the policy off: layers that it has a word on are dense again, and nothing of it is left on the model. ``apply``
        turns it on again. What ``attach`` returned is to be removed by itself."""
        for name, layer in self.layers.items():
            layer.plan = layer.plan.replace(**{part: DEFAULTS[part] for part in parts_of(self.wants(name))})

    def observe(self) -> None:  # noqa: B027
        """Reads the gradients that an attached optimizer is about to use; those of skipped weights are None."""

    def watch(self, optimizer: Optimizer) -> None:  # noqa: B027
        """Told by ``attach`` which optimizer moves the weights: of a wrapper the one inside."""

    def frozen_parameters(self) -> Collection[nn.Parameter]:
        """Those that have no backward now, of layers and of whatever lies between them."""
        return ()

    @abstractmethod
    def state_dict(self) -> dict[str, Any]: ...

    @abstractmethod
    def load_state_dict(self, state: dict[str, Any]) -> None: ...

    def check_state(self, state: dict[str, Any]) -> None:  # noqa: B027
        """Raises ``ValueError`` for what ``load_state_dict`` refuses, and changes nothing: ``Compose`` asks all of its policies
        before one of them loads."""

    def names_or_last(self, dense: Collection[str] | None) -> tuple[str, ...]:
        """The converted layers of these names, in the order of ``named_modules``; of None the last one, as the output layer.

        Raises:
            TypeError, ValueError: no list, a name that is no converted layer, or all of them: some layer has to be left.
        """
        layers = tuple(self.layers)
        dense = layers[-1:] if dense is None else dense
        if isinstance(dense, str) or not isinstance(dense, Collection):
            raise TypeError(f"dense: expected a list of names of layers, got {dense!r}")
        for name in dense:
            if name not in layers:
                raise ValueError(f"dense: expected names of converted layers ({', '.join(layers)}), got {name!r}")
        if set(dense) == set(layers):
            raise ValueError(f"dense: expected some converted layer not to be dense, got all {len(layers)}")
        return tuple(name for name in layers if name in dense)

    def check_choice(self, name: str, rows: RowChoice) -> None:
        """Raises, with the layer's name, where it cannot have these rows."""
        check_plan(self.layers[name], Plan(rows=rows), f"{name or 'the model itself'}: ")

    def attach(self, optimizer: Optimizer) -> Attachment:
        """Makes a skip a skip for this optimizer: before it moves anything, gradients of skipped weights and of frozen
        parameters become ``None``. Returns what ``remove`` can be called on.

        A skipped layer leaves ``weight.grad`` alone, but plain DDP and ``zero_grad(set_to_none=False)`` put zeros
        there, and zeros still let momentum and weight decay move the weight. A weight that some other module shares is
        left alone unless all its owners are skipping layers; what a weight is computed from, by a parametrization or a hook
        such as pruning's, counts as the weight. What counts is each layer's flag when the optimizer steps: let the policy
        decide after that, not between backward and step.

        ``step(closure)`` is looked at behind the closure. Of a wrapper (accelerate's, a Lookahead, SAM) the optimizer inside
        counts. The order of ``attach`` and of loading states does not matter.

        Args:
            optimizer: one of torch's or derived from it, or a wrapper that has it as its ``optimizer``.

        Raises:
            ValueError: the optimizer holds none of the layers' weights, or flattens parameters, or a layer of the policy was
                replaced in the model. TypeError: no optimizer.
        """
        return Attachment(self, optimizer)
