"""How several policies work on one model."""

import itertools
from collections.abc import Sequence
from typing import Any

import torch.nn as nn
from torch.optim import Optimizer

from wuskern.choices import merge
from wuskern.common import states
from wuskern.policies.base import CLAIMS, KEEPS, Policy, Wants, parts_of


class Compose(Policy):
    """Asks each policy in turn, and sets what they want together: a layer is frozen, or skips, if one of them wants it to, and
    has the rows, columns and tokens of the one policy that claims them. Frozen goes over skip, and skip over all. What only one
    policy can decide about a layer is in ``CLAIMS``.

    Call its methods in place of those of the policies, which are then decided, attached and saved together.

    Args:
        policies: on one model, in the order in which they are asked.

    Raises:
        ValueError, TypeError: no policy, one twice, another model, or two that claim the same of one layer, by name.
    """

    def __init__(self, policies: Sequence[Policy]) -> None:
        _check_each(policies)
        super().__init__(policies[0].model)
        self._take(policies)

    def _take(self, policies: Sequence[Policy]) -> None:
        self.policies = tuple(policies)
        self.calls.needs = ()  # each policy says itself what it misses
        self._refuse_two_claims()
        for policy in self.policies:
            policy.part_of = self
        self.apply()

    @property
    def call(self) -> str:
        return f"{type(self).__name__}([{', '.join(policy.call for policy in self.policies)}])"

    def _refuse_two_claims(self) -> None:
        for kind, name in itertools.product(CLAIMS, self.layers):
            deciding = [policy for policy in self.policies if name in policy.claims.get(kind, ())]
            keeping = [policy for policy in self.policies if kind == "shape" and name in policy.claims.get(KEEPS, ())]
            if len(deciding) > 1 or (deciding and keeping):
                layer = f"layer {name}" if name else "the model itself"
                names = " and ".join(type(policy).__name__ for policy in self.policies if policy in deciding + keeping)
                raise ValueError(f"policies: expected one to decide of {layer} {CLAIMS[kind]}, got {names}")

    @property
    def evaluates(self) -> bool:
        return any(policy.evaluates for policy in self.policies)

    def on_evaluation(self, metric: float) -> bool:
        """Gives each policy the metric; returns whether one of them skips in what follows. Where a policy refuses the metric,
        those before it have taken it already."""
        skips = [policy.step(metric) for policy in self.policies]
        self.apply()
        return any(skips)

    def on_epoch_end(self) -> None:
        for policy in self.policies:
            policy.after_epoch()
        self.apply()

    def on_step_begin(self) -> None:
        for policy in self.policies:
            policy.before_step()
        self._set_flags()

    def on_step_end(self) -> None:
        for policy in self.policies:
            policy.after_step()
        self._set_flags()

    def apply(self) -> None:
        """Applies each policy, and then what they want together. Idempotent."""
        for policy in self.policies:
            policy.apply()
        self._set_flags()

    def release(self) -> None:
        for policy in self.policies:
            policy.release()
        self.on = False

    def _set_flags(self) -> None:
        super().apply()

    def observe(self) -> None:
        for policy in self.policies:
            policy.observe()

    def watch(self, optimizer: Optimizer) -> None:
        super().watch(optimizer)
        for policy in self.policies:
            policy.watch(optimizer)

    def frozen_parameters(self) -> list[nn.Parameter]:
        return [parameter for policy in self.policies for parameter in policy.frozen_parameters()]

    @property
    def claims(self) -> dict[str, frozenset[str]]:
        return {
            kind: frozenset().union(*(policy.claims.get(kind, ()) for policy in self.policies)) for kind in (*CLAIMS, KEEPS)
        }

    def wants(self, name: str) -> Wants:
        wishes = [policy.wants(name) for policy in self.policies]
        claims = [{kind for kind, names in policy.claims.items() if name in names} for policy in self.policies]
        merged: Wants = {**merge(zip(map(parts_of, wishes), claims, strict=True))}  # type: ignore[typeddict-item]
        for wanted in wishes:
            if "frozen" in wanted:  # only one policy claims it, and density too
                merged["frozen"] = wanted["frozen"]
            if "density" in wanted:
                merged["density"] = wanted["density"]
        return merged

    def state_dict(self) -> dict[str, Any]:
        """The states of the policies, in their order."""
        return {"policy": type(self).__name__, "policies": [policy.state_dict() for policy in self.policies]}

    def check_state(self, state: dict[str, Any]) -> None:
        states.of_policy(self, state)
        states.items("policies", state["policies"], len(self.policies))
        for policy, part in zip(self.policies, state["policies"], strict=True):
            policy.check_state(part)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continues where the state was taken. Raises ``ValueError`` for what is no such state; nothing has changed then in any
        of the policies."""
        self.check_state(state)
        for policy, part in zip(self.policies, state["policies"], strict=True):
            policy.load_state_dict(part)
        self.apply()


def _check_each(policies: Any) -> None:
    if isinstance(policies, Policy) or not isinstance(policies, Sequence):
        raise TypeError(f"policies: expected a list of policies, got {type(policies).__name__}")
    if not policies:
        raise ValueError("policies: expected at least one, got none")
    for i, policy in enumerate(policies):
        if not isinstance(policy, Policy):
            raise TypeError(f"policies: expected policies, got {type(policy).__name__}")
        if policy.model is not policies[0].model:
            raise ValueError(f"policies: expected all on one model, got {type(policy).__name__} on another")
        if policy in policies[:i]:
            raise ValueError(f"policies: expected each once, got {type(policy).__name__} twice")
