"""One training step of a model on a batch: forward, loss and backward, timed as a whole."""

import contextlib
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn as nn
from torch import Tensor

from wuskern.common.example import Example, arguments, tensors

Loss = Callable[[Any], Tensor]
OWN_LOSS, MEAN_SQUARE, GIVEN = "the model's own", "the mean square of the outputs", "the given function"
SEED = 0
CLOCK: Callable[[], float] = time.perf_counter  # process_time is for a machine that is not idle, with one thread


@dataclass(eq=False)
class Step:
    """The step that is measured. Its gradients are those of the last call of :meth:`run`.

    Attributes:
        model, batch: of the profile. autocast: a dtype, or None. loss: of the model's output; None: its own, or the mean
            square.
        used_loss: which one that was, in words, once a step has run. rounds: whether some numbers have 16 bits.
    """

    model: nn.Module
    batch: Example
    autocast: torch.dtype | None = None
    loss: Loss | None = None
    used_loss: str = ""
    clock: Callable[[], float] = field(default_factory=lambda: CLOCK)
    _parameters: list[nn.Parameter] = field(init=False)

    def __post_init__(self) -> None:
        self._parameters = list(self.model.parameters())
        args, kwargs = arguments(self.batch)
        found = [t.device.type for t in (*self._parameters, *tensors((args, kwargs)))]
        self.device = next(iter(found), "cpu")
        sixteen = {torch.bfloat16, torch.float16}
        self.rounds = self.autocast is not None or any(p.dtype in sixteen for p in self._parameters)
        if self.device not in ("cpu", "cuda"):
            raise ValueError(f"model: expected one on a CPU or a CUDA device, got {self.device}")

    def run(self) -> float:
        """The seconds of one step; copies of the batch, and what clears the last gradients, come ahead of them."""
        self.clear()
        args, kwargs = fresh(arguments(self.batch))
        self.wait()
        start = self.clock()
        loss = self.forward(args, kwargs)
        if loss.requires_grad:
            loss.backward()  # type: ignore[no-untyped-call]
        self.wait()
        return self.clock() - start

    def forward(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
        """The loss of one forward. Raises ``ValueError`` where it is no number that can be trained on."""
        context = contextlib.nullcontext() if self.autocast is None else torch.autocast(self.device, self.autocast)
        with torch.enable_grad(), context:
            return self._loss_of(self.model(*args, **kwargs))

    def seeded(self) -> "Step":
        """This step, its next forward with the random numbers that every seeded one has."""
        torch.manual_seed(SEED)
        return self

    def clear(self) -> None:
        for parameter in self._parameters:
            parameter.grad = None

    def gradients(self) -> dict[nn.Parameter, Tensor | None]:
        """The gradients of the last step."""
        return {parameter: parameter.grad for parameter in self._parameters}

    def wait(self) -> None:
        """Waits for what a GPU has still to do."""
        if self.device == "cuda":
            torch.cuda.synchronize()

    def _loss_of(self, output: Any) -> Tensor:
        if self.loss is not None:
            self.used_loss, loss = GIVEN, self.loss(output)
        elif isinstance(own := _own_loss(output), Tensor):
            self.used_loss, loss = OWN_LOSS, own
        else:
            self.used_loss, loss = MEAN_SQUARE, _mean_square(output)
        if not isinstance(loss, Tensor) or loss.numel() != 1 or not loss.is_floating_point():
            got = f"a tensor {tuple(loss.shape)} of {loss.dtype}" if isinstance(loss, Tensor) else type(loss).__name__
            raise ValueError(f"loss: expected a tensor with one floating-point number, got {got}")
        return loss.reshape(())


def _own_loss(output: Any) -> Any:
    """What a model of transformers gives as its loss; None for others, and where it got no labels."""
    return output.get("loss") if isinstance(output, Mapping) else getattr(output, "loss", None)


def _mean_square(output: Any) -> Tensor:
    squares = [t.float().square().mean() for t in tensors(output) if t.is_floating_point() and t.numel()]
    if not squares:
        raise ValueError(
            "loss: expected a function of the output, which has no tensor of floating-point numbers, got None and "
            f"an output of type {type(output).__name__}"
        )
    return torch.stack(squares).sum()


def fresh(value: Any) -> Any:
    """A copy of the tensors in nested sequences and mappings: a model may write to them, and backward to their ``grad``."""
    if isinstance(value, Tensor):
        return value.detach().clone().requires_grad_(value.requires_grad)
    if isinstance(value, Mapping):
        copies = {key: fresh(item) for key, item in value.items()}
        return copies if isinstance(value, dict) else type(value)(copies)  # type: ignore[call-arg]
    if isinstance(value, list | tuple):
        items = [fresh(item) for item in value]
        return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)
    return value
