"""One training run: a model, an optimizer, a policy, and the record of each epoch."""

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.lr_scheduler import ConstantLR, CosineAnnealingLR, LRScheduler

from wuskern.convert import convert
from wuskern.distributed import Prepared, prepare
from wuskern.policies import WUS, WUSLR, MeProp, Policy
from wuskern.train import processes
from wuskern.train.controls import Frozen
from wuskern.train.data import Data
from wuskern.train.flops import computed_share
from wuskern.train.models import MODELS
from wuskern.train.records import Epoch, Record

POLICIES = ("dense", "wus", "wus+lr", "frozen", "topk")
OPTIMIZERS = ("sgd", "adamw")
# Stepped after each epoch; both work from the current rate, so that WUS+LR's reductions stay.
SCHEDULES: dict[str, Callable[[torch.optim.Optimizer, int], LRScheduler]] = {
    "constant": lambda optimizer, _: ConstantLR(optimizer, factor=1.0),
    "cosine": lambda optimizer, epochs: CosineAnnealingLR(optimizer, T_max=epochs),
}


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
    schedule: str = "constant"  # one of SCHEDULES, over all epochs
    lr_factor: float = 0.5  # of WUS+LR
    topk: dict[str, Any] = field(default_factory=dict)  # keyword arguments of MeProp

    @property
    def memory_format(self) -> torch.memory_format:
        return torch.channels_last if self.channels_last else torch.contiguous_format


class Run:
    """Trains one model under one policy, epoch by epoch.

    Runs of one seed start from the same weights and see the same batches. Each has a random state of its own (torch's, on
    the CPU and the CUDA device), so that its numbers do not depend on what else runs in between. The metric that WUS watches
    is the accuracy on the training batches: it costs nothing and leaks nothing from the test set.

    Of several processes, each computes a part of every batch, as long as everybody's; all have the record of the first.

    Args:
        policy: one of POLICIES. leader: for "frozen", a WUS run of the same seed whose windows it repeats.
    """

    def __init__(self, policy: str, settings: Settings, data: Data, seed: int, leader: "Run | None" = None) -> None:
        self.settings, self.data = settings, data
        self.record = Record(policy, seed, settings.epochs, [])
        device = torch.device(settings.device)
        self.cuda = [device] if device.type == "cuda" else []
        with torch.random.fork_rng(self.cuda):
            torch.manual_seed(seed)
            channels, *size = data.x_train.shape[1:]
            model = MODELS[settings.model](channels, size, data.classes, settings.width)
            if processes.rank() > 0:  # dropout of its own
                torch.manual_seed(seed + 1_000_003 * processes.rank())
            self.random = self._random_state()
        self.model = model.to(device, memory_format=settings.memory_format)  # type: ignore[call-overload]
        self.optimizer = self._optimizer()
        self.order = torch.Generator().manual_seed(seed)
        self.schedule = SCHEDULES[settings.schedule](self.optimizer, settings.epochs)
        self.policy = self._policy(policy, leader)
        if isinstance(self.policy, MeProp):
            some = slice(settings.batch)
            self.record.computed = computed_share(self.policy, data.x_train[some], data.y_train[some])
        self.trained, self.prepared = self._distributed()

    @property
    def epochs(self) -> list[Epoch]:
        return self.record.epochs

    @property
    def mode(self) -> str:
        """Of the next epoch, as in ``Epoch``."""
        if isinstance(self.policy, MeProp):
            return "rows"
        return "skip" if isinstance(self.policy, WUS) and self.policy.skipping else "full"

    def _policy(self, name: str, leader: "Run | None") -> Policy | None:
        if name == "dense":
            return None
        convert(self.model)
        if name == "frozen":
            wus = leader.policy if leader else None
            return Frozen(self.model, leader=wus if isinstance(wus, WUS) else None, **self.settings.wus)
        policy: Policy
        if name == "topk":
            policy = MeProp(self.model, **self.settings.topk)
        elif name == "wus+lr":
            policy = WUSLR(self.model, self.optimizer, factor=self.settings.lr_factor, **self.settings.wus)
        else:
            policy = WUS(self.model, **self.settings.wus)
        policy.attach(self.optimizer)
        return policy

    def _distributed(self) -> tuple[nn.Module, Prepared | None]:
        """What is called in training: the model, or DDP around it, and what carries DDP's choice of rows."""
        if processes.world() == 1:
            return self.model, None
        ddp = DistributedDataParallel(self.model, device_ids=self.cuda or None)
        return ddp, prepare(ddp) if self.policy is not None else None

    def _optimizer(self) -> torch.optim.Optimizer:
        s, parameters = self.settings, self.model.parameters()
        if s.optimizer == "adamw":
            return torch.optim.AdamW(parameters, lr=s.lr, weight_decay=s.weight_decay)
        return torch.optim.SGD(parameters, lr=s.lr, momentum=s.momentum, weight_decay=s.weight_decay)

    def epoch(self) -> Epoch:
        """Trains one epoch, evaluates, lets the policy decide about the next one."""
        mode = self.mode
        lr = float(self.optimizer.param_groups[0]["lr"])
        self.trained.train()
        with self._own_random_state():
            loss, train_accuracy, steps, seconds = self._train()
        record = Epoch(
            number=len(self.epochs) + 1,
            mode=mode,
            loss=loss,
            train_accuracy=train_accuracy,
            test_accuracy=self._test_accuracy(),
            steps=steps,
            seconds=seconds,
            total_seconds=seconds + (self.epochs[-1].total_seconds if self.epochs else 0.0),
            lr=lr,
        )
        record = processes.of_first(record)
        self.epochs.append(record)
        if self.policy is not None:
            self.policy.step(record.train_accuracy)
        self.schedule.step()
        return record

    def _train(self) -> tuple[float, float, int, float]:
        """Loss and accuracy over the epoch's images, steps, seconds."""
        batches = torch.randperm(len(self.data.x_train), generator=self.order).split(self.settings.batch)
        few = len(batches[-1]) < 2 * processes.world() and len(batches) > 1  # batch norm needs two images
        batches = batches[:-1] if few else batches
        device = self.data.x_train.device
        loss_sum, correct = torch.zeros((), device=device), torch.zeros((), device=device, dtype=torch.long)
        start = self._clock()
        for batch in map(processes.share, batches):
            x, y = self.data.x_train[batch], self.data.y_train[batch]
            if self.settings.channels_last:
                x = x.contiguous(memory_format=torch.channels_last)
            logits, loss = self._step(x, y)
            loss_sum += loss.detach() * len(batch)
            correct += (logits.detach().argmax(1) == y).sum()
        seconds = self._clock() - start
        images = processes.world() * sum(len(processes.share(batch)) for batch in batches)
        mean_loss, accuracy = (processes.total(of_mine).item() / images for of_mine in (loss_sum, correct))
        return mean_loss, accuracy, len(batches), seconds

    def _step(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        if self.policy is not None:
            self.policy.before_step()
        logits = self.trained(x)
        loss = F.cross_entropy(logits, y)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        if self.policy is not None:
            self.policy.after_step()
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

    # ---- state ------------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """All that the next epoch depends on but settings and data; safe for ``torch.load(weights_only=True)``. All processes
        call it at the same time."""
        return {
            "record": self.record.state_dict(),
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "policy": self.policy.state_dict() if self.policy is not None else None,
            "order": self.order.get_state(),
            "random": processes.of_all(self.random),
            "rows": self.prepared.state_dict() if self.prepared is not None else None,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continues where the state was taken. Raises ``ValueError`` for the state of another run."""
        record = Record.from_state(state["record"])
        if record.key != self.record.key:
            raise ValueError(f"state: expected that of the run {self.record.key}, got {record.key}")
        self.record = record
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])
        if self.policy is not None:
            self.policy.load_state_dict(state["policy"])
        self.order.set_state(state["order"])
        mine = processes.rank() * len(self.random)
        self.random = list(state["random"])[mine : mine + len(self.random)]
        if self.prepared is not None:
            self.prepared.load_state_dict(state["rows"])

    def _random_state(self) -> list[Tensor]:
        return [torch.get_rng_state(), *(torch.cuda.get_rng_state(device) for device in self.cuda)]

    @contextlib.contextmanager
    def _own_random_state(self) -> Iterator[None]:
        with torch.random.fork_rng(self.cuda):
            torch.set_rng_state(self.random[0])
            for device, state in zip(self.cuda, self.random[1:], strict=True):
                torch.cuda.set_rng_state(state, device)
            yield
            self.random = self._random_state()
