"""One training run: a model, an optimizer, a policy, and the record of each epoch."""

import math
import time
from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from wuskern.convert import convert
from wuskern.policies import WUS
from wuskern.train.controls import Frozen
from wuskern.train.data import Data
from wuskern.train.models import MODELS

POLICIES = ("dense", "wus", "frozen")
OPTIMIZERS = ("sgd", "adamw")


@dataclass(frozen=True)
class Settings:
    """Everything that decides a run but its policy and its seed."""

    model: str
    width: float
    epochs: int
    batch: int
    optimizer: str
    lr: float
    momentum: float
    weight_decay: float
    channels_last: bool
    device: str
    wus: dict[str, Any]  # keyword arguments of WUS

    @property
    def memory_format(self) -> torch.memory_format:
        return torch.channels_last if self.channels_last else torch.contiguous_format


@dataclass(frozen=True)
class Epoch:
    """One epoch: accuracies in [0, 1]; seconds of training, without evaluation."""

    number: int
    mode: str  # "full" or "skip"
    loss: float
    train_accuracy: float
    test_accuracy: float
    steps: int
    seconds: float
    total_seconds: float

    def as_dict(self) -> dict[str, Any]:
        """For JSON, which has no NaN: the loss of a run that diverged is None."""
        return asdict(self) | {"loss": self.loss if math.isfinite(self.loss) else None}


class Run:
    """Trains one model under one policy, epoch by epoch.

    Runs of one seed start from the same weights and see the same batches. The metric that WUS watches is the accuracy
    on the training batches: it costs nothing and leaks nothing from the test set.

    Args:
        policy: one of POLICIES. leader: for "frozen", a WUS run of the same seed whose windows it repeats.
    """

    def __init__(self, policy: str, settings: Settings, data: Data, seed: int, leader: "Run | None" = None) -> None:
        self.policy_name, self.settings, self.data, self.seed = policy, settings, data, seed
        torch.manual_seed(seed)
        channels, *size = data.x_train.shape[1:]
        model = MODELS[settings.model](channels, size, data.classes, settings.width)
        self.model = model.to(settings.device, memory_format=settings.memory_format)  # type: ignore[call-overload]
        self.optimizer = self._optimizer()
        self.order = torch.Generator().manual_seed(seed)
        self.epochs: list[Epoch] = []

        self.policy: WUS | None = None
        if policy != "dense":
            convert(self.model)
            if policy == "wus":
                self.policy = WUS(self.model, **settings.wus)
                self.policy.attach(self.optimizer)
            else:
                self.policy = Frozen(self.model, leader=leader.policy if leader else None, **settings.wus)

    def _optimizer(self) -> torch.optim.Optimizer:
        s, parameters = self.settings, self.model.parameters()
        if s.optimizer == "adamw":
            return torch.optim.AdamW(parameters, lr=s.lr, weight_decay=s.weight_decay)
        return torch.optim.SGD(parameters, lr=s.lr, momentum=s.momentum, weight_decay=s.weight_decay)

    def epoch(self) -> Epoch:
        """Trains one epoch, evaluates, lets the policy decide about the next one."""
        skipping = self.policy is not None and self.policy.skipping
        batches = torch.randperm(len(self.data.x_train), generator=self.order).split(self.settings.batch)
        batches = batches[:-1] if len(batches[-1]) == 1 < len(batches) else batches  # batch norm needs two images
        self.model.train()
        device = self.data.x_train.device
        loss_sum, correct = torch.zeros((), device=device), torch.zeros((), device=device, dtype=torch.long)
        start = self._clock()
        for batch in batches:
            x, y = self.data.x_train[batch], self.data.y_train[batch]
            if self.settings.channels_last:
                x = x.contiguous(memory_format=torch.channels_last)
            logits, loss = self._step(x, y)
            loss_sum += loss.detach() * len(batch)
            correct += (logits.detach().argmax(1) == y).sum()
        seconds = self._clock() - start

        images = sum(map(len, batches))
        train_accuracy = correct.item() / images
        record = Epoch(
            number=len(self.epochs) + 1,
            mode="skip" if skipping else "full",
            loss=loss_sum.item() / images,
            train_accuracy=train_accuracy,
            test_accuracy=self._test_accuracy(),
            steps=len(batches),
            seconds=seconds,
            total_seconds=seconds + (self.epochs[-1].total_seconds if self.epochs else 0.0),
        )
        self.epochs.append(record)
        if self.policy is not None:
            self.policy.step(train_accuracy)
        return record

    def _step(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        logits = self.model(x)
        loss = F.cross_entropy(logits, y)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return logits, loss

    @torch.no_grad()
    def _test_accuracy(self) -> float:
        self.model.eval()
        correct = 0
        for x, y in zip(self.data.x_test.split(256), self.data.y_test.split(256), strict=True):
            correct += int((self.model(x).argmax(1) == y).sum())
        return correct / len(self.data.x_test)

    def _clock(self) -> float:
        if self.data.x_train.is_cuda:
            torch.cuda.synchronize(self.data.x_train.device)
        return time.perf_counter()
