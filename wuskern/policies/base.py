"""What every policy has: its layers, its events, its state, and a hook that keeps a skipped weight where it is."""

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch.nn as nn
from torch.optim import Optimizer

from wuskern.choices import CHOICES, DEFAULTS, Parts, Plan
from wuskern.common import describe
from wuskern.modules import product_layers
from wuskern.plans import check_plan, layers_of
from wuskern.policies.attach import Attachment
from wuskern.policies.calls import Calls

# What only one policy can decide about a layer.
CLAIMS = {
    "frozen": "when it is frozen",
    "rows": "which rows have gradients",
    "zeros": "which weights are zero",
    "columns": "which columns have gradients",
    "tokens": "which tokens its weight gradient sums over",
    "shape": "its shape, which a frozen one and one with fixed columns keep",
}
KEEPS = "keeps"  # of the shape: several policies may ask that it stays, none beside one that changes it


# Metadata of a field that is an argument only in Python, not on the command line.
FROM_PYTHON = {"from_python": True}


class Wants(Parts, total=False):
    """What a policy wants of a layer; parts of the plan that it does not decide are missing.

    Attributes:
        frozen: whether the layer has no backward at all, whatever the other parts say.
        density: the share of its weights that no mask keeps zero; only the count of savings reads it.
    """

    frozen: bool
    density: float


def parts_of(wanted: Wants) -> Parts:
    """The parts of ``wanted`` that belong to a layer's plan."""
    return {name: value for name, value in wanted.items() if name in DEFAULTS}  # type: ignore[return-value]


def _in_words(wanted: Wants) -> str:
    """What is wanted of a layer, without its numbers."""
    if wanted.get("frozen") or wanted.get("skip"):
        return "frozen" if wanted.get("frozen") else "skip"
    chosen = [part for part in CHOICES if wanted.get(part) is not None]
    return " and ".join(chosen + ["zeros"] * (wanted.get("density", 1.0) < 1)) or "dense"


@dataclass(eq=False)
class Policy(ABC):
    """A method that decides what the backward of layers computes; it never computes a gradient or touches ``requires_grad``.

    A policy is a dataclass: its fields are its arguments, of which the command line, ``--help`` and the documentation are
    made. ``name`` is what ``--policy`` calls it, ``source`` where the method comes from, ``reported`` what the source says of
    its worth, ``decides`` which of ``CLAIMS`` it may make, ``needs`` the calls without which it has no effect, and ``trial``
    arguments, as ``--policy`` takes them, that make it act within three epochs.

    A trainer tells a policy of its events, each apart: ``before_step`` and ``after_step`` around each optimizer step, for all
    of its micro-batches; ``after_epoch``; and ``step`` with the metric of each evaluation. A policy overrides the ``on_``
    method of those that it acts on. If it never gets a call that it needs, it says so, once, to the logger "wuskern".
    Several policies on one model: :class:`wuskern.policies.Compose`.

    ``layers`` are the converted layers of the model, by name, but for embeddings: those keep the plan that they were given.
    """

    name: ClassVar[str] = ""  # a policy without a name is no method of its own
    source: ClassVar[str] = ""
    reported: ClassVar[str] = ""
    decides: ClassVar[Collection[str]] = ()
    needs: ClassVar[Collection[str]] = ()
    trial: ClassVar[str] = ""

    model: nn.Module = field(repr=False)

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        cls.__repr__ = cls.__repr__  # type: ignore[method-assign]  # dataclass keeps what the class itself has

    def __post_init__(self) -> None:
        self.layers = product_layers(self.model)
        self.part_of: Policy | None = None  # the Compose that has this policy
        self.on = False  # until ``apply`` is first called
        self.calls = Calls(self, self.needs)

    def __repr__(self) -> str:
        return f"{self.call}: {self._now()}"

    @property
    def call(self) -> str:
        """The policy as the call that makes it, without the model and what else is large."""
        return describe.call(self)

    def _now(self) -> str:
        """What the policy wants of its layers now, in a few words."""
        if not getattr(self, "on", False):
            return "off"
        words = describe.counted(map(_in_words, map(self.wants, self.layers)))
        return f"{len(self.layers)} layer{'s' * (len(self.layers) > 1)}: {words}"

    # ---- events: a trainer calls these ------------------------------------------------------------------------------

    def before_step(self) -> None:
        """Decides about the optimizer step that begins now."""
        self.on_step_begin()
        self.calls.got("before_step", self)

    def after_step(self) -> None:
        """Counts the optimizer step that has ended."""
        self.on_step_end()
        self.calls.got("after_step", self)

    def after_epoch(self) -> None:
        """Counts the epoch that has ended."""
        self.on_epoch_end()
        self.calls.got("after_epoch", self)

    def step(self, metric: float | None = None) -> bool:
        """Takes the metric of an evaluation; returns whether what follows skips. Policies that look at no metric may be called
        without one, as a scheduler's ``step``: that is ``after_epoch``."""
        if metric is None:
            if self.evaluates:
                raise TypeError("metric: expected a number, got None")
            self.after_epoch()
            return False
        skips = self.on_evaluation(metric)
        self.calls.got("step", self)
        return skips

    # ---- what a policy does then: a subclass overrides these --------------------------------------------------------

    def on_step_begin(self) -> None:  # noqa: B027  # most methods have nothing to do
        """Acts ahead of an optimizer step."""

    def on_step_end(self) -> None:  # noqa: B027
        """Acts after an optimizer step."""

    def on_epoch_end(self) -> None:  # noqa: B027
        """Acts after an epoch."""

    def on_evaluation(self, metric: float) -> bool:
        """Acts on a metric; returns whether what follows skips."""
        return False

    @property
    def evaluates(self) -> bool:
        """Whether the policy needs a metric."""
        return "step" in self.needs

    def attach_matters(self) -> bool:
        """Whether an optimizer that is not attached can undo now what the policy wants."""
        wanted = [self.wants(name) for name in self.layers]
        return any(w.get("skip") or w.get("frozen") or w.get("density", 1.0) < 1 for w in wanted)

    # ---- what is wanted ---------------------------------------------------------------------------------------------

    @property
    def claims(self) -> Mapping[str, Collection[str]]:
        """What only this policy may decide, now or later: for each of ``CLAIMS`` the names of the layers."""
        return {}

    @property
    def whole(self) -> "Policy":
        """The policy that sets the layers' plans: this one, or the ``Compose`` that it is a part of."""
        return self if self.part_of is None else self.part_of.whole

    @abstractmethod
    def wants(self, name: str) -> Wants:
        """What the policy, in its present state, wants of the layer ``name``."""

    def trains(self, name: str) -> bool:
        """Whether the layer ``name`` neither skips nor is frozen now, whichever policy wants that."""
        wanted = self.whole.wants(name)
        return not (wanted.get("frozen") or wanted.get("skip"))

    def apply(self) -> None:
        """Sets the layers' plans to what the policy wants. Idempotent."""
        self.on = True
        for name, layer in self.layers.items():
            layer.plan = layer.plan.replace(**parts_of(self.wants(name)))

    def release(self) -> None:
        """Turns the policy off: the layers that it decides about are dense again, and nothing of it is left on the model.
        ``apply`` turns it on again. What ``attach`` returned has to be removed by its own ``remove``."""
        self.on = False
        for name, layer in self.layers.items():
            layer.plan = layer.plan.replace(**{part: DEFAULTS[part] for part in parts_of(self.wants(name))})

    def observe(self) -> None:  # noqa: B027
        """Reads the gradients that an attached optimizer is about to use; those of skipped weights are None."""

    def watch(self, optimizer: Optimizer) -> None:
        """Takes note of the optimizer that moves the weights, as ``attach`` found it; of a wrapper the one inside."""
        self.calls.attached = True

    def frozen_parameters(self) -> Collection[nn.Parameter]:
        """The parameters that have no backward now, of layers and of whatever lies between them."""
        return ()

    @abstractmethod
    def state_dict(self) -> dict[str, Any]: ...

    @abstractmethod
    def load_state_dict(self, state: dict[str, Any]) -> None: ...

    def check_state(self, state: dict[str, Any]) -> None:  # noqa: B027
        """Raises ``ValueError`` for a state that ``load_state_dict`` refuses, and changes nothing: ``Compose`` asks all of its
        policies before one of them loads."""

    def names_or_last(self, dense: Collection[str] | None) -> tuple[str, ...]:
        """The names of the layers that ``dense`` names, or that lie in a module that it names, in the order of
        ``named_modules``; for None that of the last layer, taken as the output layer.

        Raises:
            TypeError, ValueError: no list, a name of no converted layer, or the names of all of them.
        """
        layers = tuple(self.layers)
        taken = layers[-1:] if dense is None else layers_of("dense", dense, self.layers)
        if set(taken) == set(layers):
            raise ValueError(f"dense: expected some converted layer not to be dense, got all {len(layers)}")
        return taken

    def all_but(self, dense: Collection[str]) -> list[str]:
        """The names of the converted layers that are not in ``dense``."""
        return [name for name in self.layers if name not in dense]

    def rows_of(self, name: str) -> tuple[int, int]:
        """The number of rows of the layer of that name, and of their groups."""
        units = self.layers[name].units
        return units.out, units.groups

    def check_choice(self, name: str, plan: Plan) -> None:
        """Raises, with the layer's name, where it cannot have this plan."""
        check_plan(self.layers[name], plan, f"{name or 'the model itself'}: ")

    def attach(self, optimizer: Optimizer) -> Attachment:
        """Makes a skip a skip for this optimizer: before it moves anything, gradients of skipped weights and of frozen
        parameters become ``None``. Returns an object whose ``remove`` ends that.

        A skipped layer leaves ``weight.grad`` alone, but plain DDP and ``zero_grad(set_to_none=False)`` put zeros
        there, and zeros still let momentum and weight decay move the weight. A weight that some other module shares is
        left alone unless all its owners are skipping layers; what a weight is computed from, by a parametrization or a hook
        such as pruning's, counts as the weight. What counts is each layer's flag when the optimizer steps: let the policy
        decide after that, not between backward and step.

        With ``step(closure)`` gradients are cleared behind the closure. In a wrapper (accelerate's, a Lookahead, SAM) the
        optimizer inside counts. The order of ``attach`` and of loading states does not matter.

        Args:
            optimizer: one of torch's or derived from it, or a wrapper that has it as its ``optimizer``.

        Raises:
            ValueError: the optimizer holds none of the layers' weights, or flattens parameters, or a layer of the policy was
                replaced in the model. TypeError: no optimizer.
        """
        return Attachment(self, optimizer)
