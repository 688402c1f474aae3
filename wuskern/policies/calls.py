"""What a trainer has called of a policy, and what the policy says, once, about calls that it needs and never got."""

import logging
from collections import Counter
from collections.abc import Collection
from typing import TYPE_CHECKING
from weakref import WeakSet

if TYPE_CHECKING:
    from wuskern.policies.base import Policy

# What a trainer tells a policy, and when.
CALLS = {
    "before_step": "ahead of the first micro-batch of each optimizer step",
    "after_step": "after each optimizer step",
    "after_epoch": "after each epoch",
    "step": "with the metric, after each evaluation",
    "attach": "once, with the optimizer, so that what skips, is frozen or is masked does not move",
}
# After how many epochs or evaluations without it a call that is needed is taken for forgotten.
PATIENCE = {"before_step": 2, "after_step": 2, "after_epoch": 3, "step": 3}

_log = logging.getLogger("wuskern")
_living: "WeakSet[Policy]" = WeakSet()


class Calls:
    """The calls that one policy got, and which of ``CALLS`` it needs. Everything is said to the logger "wuskern"."""

    def __init__(self, policy: "Policy", needs: Collection[str]) -> None:
        self.needs = needs
        self.attached = False
        self._got: Counter[str] = Counter()
        self._said: set[str] = set()
        _living.add(policy)

    def got(self, call: str, policy: "Policy") -> None:
        """Counts a call that the policy has acted on, and says what is missing by now."""
        self._got[call] += 1
        if self._got[call] == 1:
            self._say_others(policy)
        if self._got[call] == 1 or call in ("after_epoch", "step"):
            self._say_replaced(policy)
        for need in self.needs:
            if need in self._said or self._got[need]:
                continue
            if need == "attach":
                if not self.attached and policy.attach_matters():
                    self._say(policy, need, "the optimizer is not attached")
            elif self._rounds() >= PATIENCE[need]:
                self._say(policy, need, f"{self._rounds()} rounds without a call of it")

    def _say_replaced(self, policy: "Policy") -> None:
        """Warns of layers that the model has no longer: nobody hears what the policy sets there."""
        inside = set(policy.model.modules())
        gone = [name or "the model itself" for name, layer in policy.layers.items() if layer not in inside]
        if gone and "replaced" not in self._said:
            self._said.add("replaced")
            _log.warning(
                "%s: expected the layers that the policy was made for, got a model in which %s was replaced: convert the model "
                "again and make the policy anew", type(policy).__name__, ", ".join(gone),
            )  # fmt: skip

    def _rounds(self) -> int:
        """The number of epochs or of evaluations so far, whichever is larger: so long a call may have been missing."""
        return max(self._got["after_epoch"], self._got["step"])

    def _say(self, policy: "Policy", need: str, why: str) -> None:
        self._said.add(need)
        _log.warning("%s: expected %s to be called %s, got none: %s", type(policy).__name__, need, CALLS[need], why)

    def _say_others(self, policy: "Policy") -> None:
        """Warns of another policy on the same layers: policies that are not composed undo each other's plans."""
        if "others" in self._said:
            return
        layers = set(policy.layers.values())
        for other in list(_living):
            if other.on and other.whole is not policy.whole and not layers.isdisjoint(other.layers.values()):
                self._said.add("others")
                other.calls._said.add("others")
                _log.warning(
                    "%s: expected no other policy on the same layers, got a %s that decides of them too: put both into one "
                    "wuskern.policies.Compose, or release() the one that is over", type(policy).__name__, type(other).__name__,
                )  # fmt: skip
                return
