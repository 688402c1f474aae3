"""What the freezing methods share: a prefix of the model, and a count of epochs."""

from abc import abstractmethod
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any, ClassVar

from torch.nn import Parameter

from wuskern.common import states
from wuskern.common.example import Example
from wuskern.policies.base import KEEPS, Policy, Wants
from wuskern.policies.freezing.prefix import Prefix


@dataclass(eq=False)
class Freezing(Policy):
    """Freezes the first converted layers in the order of execution, and all that runs before the next one: see
    :class:`Prefix`. The last layer always trains. Call ``after_epoch`` after each epoch, and ``attach`` the optimizer, so that
    momentum and weight decay do not move what is frozen. ``policy.prefix.set(0)`` thaws all, and leaves a stock model.

    Args:
        model: a model with converted layers. example: its input, of one sample or more, a sequence of its positional inputs, or
            a mapping of its keyword inputs.

    Attributes:
        epoch: epochs trained. count: how many converted layers ran in a forward of the example.
    """

    decides: ClassVar[Collection[str]] = ("frozen", KEEPS)
    needs: ClassVar[Collection[str]] = ("after_epoch", "attach")

    example: Example = field(repr=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.prefix = Prefix(self.model, self.example)
        self.count = len(self.prefix.order)
        self.epoch = 0

    @abstractmethod
    def wanted(self, epoch: int) -> int:
        """How many layers are to be frozen after ``epoch`` epochs; more than the model allows are cut off."""

    @staticmethod
    def floor(value: float) -> int:
        """The number of layers rounded down; a number that is whole but for a rounding error stays."""
        return int(value + 1e-9)

    @property
    def depth(self) -> int:
        """How many converted layers are frozen now."""
        return self.prefix.depth

    @property
    def claims(self) -> dict[str, Collection[str]]:
        return {"frozen": self.layers, KEEPS: self.layers}

    def on_epoch_end(self) -> None:
        """Counts an epoch, and freezes what is to be frozen now."""
        self.epoch += 1
        self.apply()

    def apply(self) -> None:
        """Freezes what is to be frozen now. Idempotent."""
        self.on = True
        self.prefix.set(self.wanted(self.epoch))

    def release(self) -> None:
        """Thaws all layers."""
        self.on = False
        self.prefix.set(0)

    def wants(self, name: str) -> Wants:
        return {"frozen": name in self.prefix.order[: self.depth]}

    def frozen_parameters(self) -> tuple[Parameter, ...]:
        return self.prefix.parameters

    def state_dict(self) -> dict[str, Any]:
        """A name and a number, safe for ``torch.load(weights_only=True)``."""
        return {"policy": type(self).__name__, "epoch": self.epoch}

    def check_state(self, state: dict[str, Any]) -> None:
        """Raises ``ValueError`` as every policy does, and also where another policy has frozen a part of the model."""
        states.of_policy(self, state)
        states.count("epoch", state["epoch"])
        self.prefix.check()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continues where the state was taken, and freezes as then. Raises ``ValueError`` for what is no such state; nothing
        has changed then."""
        self.check_state(state)
        self.epoch = state["epoch"]
        self.apply()
