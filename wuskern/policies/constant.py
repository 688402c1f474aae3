"""What the methods share that want the same in every step."""

from typing import Any

from wuskern.policies.base import Policy


class Constant(Policy):
    """Decides nothing over time, and remembers nothing."""

    def step(self, metric: float | None = None) -> bool:
        """False: whatever the metric, the next period skips no step."""
        return False

    def state_dict(self) -> dict[str, Any]:
        """Empty: there is nothing but the arguments. What is random is drawn from torch's generator."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Sets the layers' flags. Raises ``ValueError`` for a state that is not empty."""
        if state:
            raise ValueError(f"state: expected no keys, got {sorted(state)}")
        self.apply()
