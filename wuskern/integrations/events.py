"""How a trainer drives a policy: it makes it once there are a model and an optimizer, tells it of each event, and carries its
state, whenever that is loaded."""

import inspect
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, fields
from typing import Any

import torch.nn as nn
from torch.optim import Optimizer

from wuskern.common import states
from wuskern.common.example import Example
from wuskern.convert import convert
from wuskern.modules import Skippable, weight_owners
from wuskern.policies import Compose, Policy, SievingSampler
from wuskern.policies.attach import Attachment, stepped_inside
from wuskern.train import methods

# A policy, what makes one of a model, or a method as ``wuskern train --policy`` takes it.
Recipe = Policy | Callable[..., Policy] | str
OF_OTHERS = ("sieve", "spfde", "frozen")  # methods that need a loader of their own, or are a control of ``wuskern train``


@dataclass(frozen=True)
class Training:
    """What a trainer knows as its training begins.

    Attributes:
        model: what trains, without DDP or a compiler around it. optimizer: what steps it, or a wrapper of that. others: more
            optimizers; of several, those are attached that hold weights of the policy's layers.
        example: gives a batch of the model's inputs; called where the policy needs one.
        epochs: how many there will be. samplers: what the training data are drawn by.
        metric: the name of the metric that the policy is to see. more_is_better: whether it grows as the model improves; None
            where nobody said.
    """

    model: nn.Module
    optimizer: Any
    example: Callable[[], Example]
    epochs: int
    samplers: Collection[Any] = ()
    metric: str | None = None
    more_is_better: bool | None = None
    others: Collection[Any] = ()
    seed: int = 0
    rank: int = 0
    world: int = 1


class Events:
    """The events of one training, which a trainer's callback passes on to the policy.

    Args:
        recipe: a policy of the model that will be trained; a function of the model, or of arguments named ``model``,
            ``optimizer`` and ``example``, that returns one; or a method in the words of ``wuskern train --policy``, for which
            the model is converted. "dense" is no policy at all.

    Attributes:
        policy: None before :meth:`begin`, if it is yet to be made, and of "dense". epochs: those that it was told of.
        attached: the optimizers that it is attached to.

    Raises:
        TypeError, ValueError: no such recipe; a method that a trainer's callback cannot drive.
    """

    def __init__(self, recipe: Recipe) -> None:
        self._recipe: Policy | Callable[..., Policy] | methods.Method
        self._recipe = _method(recipe) if isinstance(recipe, str) else recipe
        if not isinstance(recipe, str | Policy) and not callable(recipe):
            raise TypeError(f"policy: expected a policy, a function that makes one, or a method's name, got {recipe!r}")
        self.policy = recipe if isinstance(recipe, Policy) else None
        self.epochs = 0
        self.metric: str | None = None
        self.attached: list[Any] = []
        self._made_for: nn.Module | None = None
        self._attachments: list[Attachment] = []
        self._pending: dict[str, Any] | None = None

    @property
    def evaluates(self) -> bool:
        """Whether the policy looks at a metric."""
        return self.policy is not None and self.policy.evaluates

    # ---- as training begins -------------------------------------------------------------------------------------------

    def begin(self, training: Training) -> None:
        """Makes the policy, if it is yet to be made for this model, attaches it to the optimizer, and loads the state that came
        before.

        Raises:
            ValueError, TypeError: a policy of another model, or what making it, attaching it or loading its state raises; a
                policy that looks at a metric, and none that fits; one whose sampler the data are not drawn by.
        """
        self.detach()
        if not isinstance(self._recipe, Policy) and self._made_for is not training.model:
            self.policy, self._made_for = _made(self._recipe, training), training.model
        self.metric, self.epochs = training.metric, 0
        if self.policy is None:
            self._pending = None
            return
        _check_layers(self.policy, training.model)
        for part in parts(self.policy):
            _check_metric(part, training)
            _check_sampler(part, training)
        self.attached = _holding(self.policy, training)
        self._attachments = [self.policy.attach(optimizer) for optimizer in self.attached]
        if self._pending is not None:
            state, self._pending = self._pending, None
            self._load(self.policy, state)

    def detach(self) -> None:
        """Leaves the optimizers alone from now on."""
        for attachment in self._attachments:
            attachment.remove()
        self.attached, self._attachments = [], []

    # ---- while it goes on ---------------------------------------------------------------------------------------------

    def before_step(self) -> None:
        """Tells of an optimizer step that begins, ahead of its first micro-batch."""
        if self.policy is not None:
            self.policy.before_step()

    def after_step(self) -> None:
        """Tells of an optimizer step that has ended."""
        if self.policy is not None:
            self.policy.after_step()

    def after_epochs(self, count: int) -> None:
        """Tells of the epochs up to the number ``count`` that the policy has not been told of yet."""
        while self.epochs < count:
            self.epochs += 1
            if self.policy is not None:
                self.policy.after_epoch()

    def evaluated(self, metrics: Mapping[str, Any]) -> None:
        """Tells a policy that looks at a metric of an evaluation.

        Raises:
            ValueError: the metric is not among these. Whatever the policy raises for a value, such as NaN.
        """
        if self.policy is None or not self.policy.evaluates:
            return
        if self.metric is None or self.metric not in metrics:
            raise ValueError(f"metric: expected one of {', '.join(sorted(metrics)) or 'none'}, got {self.metric!r}")
        self.policy.step(float(metrics[self.metric]))

    # ---- state --------------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """The number of epochs and the policy's state: safe for ``torch.load(weights_only=True)``. What was loaded and waits
        for training to begin is the state until then."""
        if self._pending is not None:
            return self._pending
        return {"epochs": self.epochs, "policy": None if self.policy is None else self.policy.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continues where the state was taken: now, or as soon as training begins and there is a policy.

        Raises:
            ValueError: what is no such state, or one of another policy.
        """
        if not isinstance(state, dict) or not {"epochs", "policy"} <= state.keys():
            states.refuse("epochs and policy", states.said(state))
        states.count("epochs", state["epochs"])
        if self.policy is None or not self._attachments:
            self._pending = state
        else:
            self._load(self.policy, state)

    def _load(self, policy: Policy, state: dict[str, Any]) -> None:
        if not isinstance(state["policy"], dict):
            states.refuse(f"that of a {type(policy).__name__}", "that of a training without a policy")
        policy.load_state_dict(state["policy"])
        self.epochs = state["epochs"]


# ---- making a policy ------------------------------------------------------------------------------------------------


def _method(text: str) -> methods.Method:
    try:
        parsed = methods.parse(text)
    except ValueError as error:
        raise ValueError(str(error).removeprefix("--")) from None
    if len(parsed) != 1:
        raise ValueError(f"policy: expected one method, with + between its parts, got {len(parsed)}: {text!r}")
    for name in OF_OTHERS:
        if parsed[0].has(name):
            why = "is a control of wuskern train" if name == "frozen" else "chooses the data, which this trainer loads itself"
            raise ValueError(f"policy: expected methods that decide about layers, got {name!r}, which {why}")
    return parsed[0]


def _made(recipe: Callable[..., Policy] | methods.Method, training: Training) -> Policy | None:
    if isinstance(recipe, methods.Method):
        return _built(recipe, training)
    named = inspect.signature(recipe).parameters
    given: dict[str, Any] = {}
    if "optimizer" in named:
        given["optimizer"] = moving(training.optimizer)
    if "example" in named:
        given["example"] = training.example()
    policy = recipe(training.model, **given)
    if not isinstance(policy, Policy):
        raise TypeError(f"policy: expected the function to return a policy, got {type(policy).__name__}")
    return policy


def _built(method: methods.Method, training: Training) -> Policy | None:
    if not method.parts:
        return None
    if not any(isinstance(module, Skippable) for module in training.model.modules()):
        convert(training.model)
    asks = any(field.name == "example" for part in method.parts for field in fields(methods.PARTS[part.name]))
    given = methods.Given(
        training.model,
        moving(training.optimizer),
        training.example() if asks else None,
        samples=0,
        seed=training.seed,
        rank=training.rank,
        world=training.world,
    )
    return methods.build(method, given, training.epochs).policy


def moving(optimizer: Any) -> Optimizer:
    """The optimizer that moves the parameters: of a wrapper the one inside."""
    return stepped_inside(optimizer)[-1]


def _holding(policy: Policy, training: Training) -> list[Any]:
    """The optimizers that hold weights of the policy's layers; a single one, whatever it holds."""
    weights = {id(p) for p, _ in weight_owners(policy.model, policy.layers)}
    optimizers = [training.optimizer, *training.others]
    holding = [o for o in optimizers if any(id(p) in weights for group in moving(o).param_groups for p in group["params"])]
    return holding or optimizers[:1]


def parts(policy: Policy) -> tuple[Policy, ...]:
    """The policy and all that it is composed of."""
    inner = policy.policies if isinstance(policy, Compose) else ()
    return (policy, *(part for each in inner for part in parts(each)))


# ---- what does not fit the training -----------------------------------------------------------------------------------


def _check_layers(policy: Policy, model: nn.Module) -> None:
    modules = set(model.modules())
    for name, layer in policy.layers.items():
        if layer not in modules:
            raise ValueError(
                f"policy: expected one of the model that is trained, got one of a model with another layer {name!r}"
            )


def _check_metric(policy: Policy, training: Training) -> None:
    if not policy.evaluates or isinstance(policy, Compose):
        return
    kind = type(policy).__name__
    if training.metric is None:
        raise ValueError(f"metric: expected the name of one, which {kind} looks at, got none: give metric=")
    mode = getattr(policy, "mode", None)
    wanted = "max" if training.more_is_better else "min"
    if mode in ("max", "min") and training.more_is_better is not None and mode != wanted:
        better = "more" if training.more_is_better else "less"
        raise ValueError(
            f"mode: expected {wanted!r} of {kind} for {training.metric!r}, of which {better} is better, got {mode!r}: say so, "
            "and give threshold and guard in the metric's unit"
        )


def _check_sampler(policy: Policy, training: Training) -> None:
    sampler = getattr(policy, "sampler", None)
    if isinstance(sampler, SievingSampler) and not any(own is sampler for own in training.samplers):
        raise ValueError(
            f"policy: expected a data loader with the sampler of {type(policy).__name__}, got one that draws from all samples"
        )
