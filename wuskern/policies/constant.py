"""What the methods share that want the same in every step, and so have no state."""

from dataclasses import dataclass
from typing import Any

from wuskern.common import states
from wuskern.policies.base import Policy


@dataclass(eq=False)
class Constant(Policy):
    """A policy that wants the same in every step, and remembers nothing."""

    def state_dict(self) -> dict[str, Any]:
        """The method's name: there is nothing else but the arguments. What is random is drawn from torch's generator."""
        return {"policy": type(self).__name__}

    def check_state(self, state: dict[str, Any]) -> None:
        states.of_policy(self, state)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Sets the layers' flags. Raises ``ValueError`` for the state of another method."""
        self.check_state(state)
        self.apply()
