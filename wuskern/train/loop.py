"""One training run: a model, an optimizer, a method, and the record of each epoch."""

import contextlib
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

from wuskern.choices import CHOICES
from wuskern.common.memory import peak_bytes
from wuskern.convert import convert
from wuskern.distributed import Prepared, prepare
from wuskern.optim import unscale_
from wuskern.policies import Saved, Savings
from wuskern.policies.freezing import ActivationCache, Freezing
from wuskern.simplify import fit_
from wuskern.train import inputs, methods, order, processes
from wuskern.train.data import Data
from wuskern.train.evaluation import evaluate
from wuskern.train.loader import Batches, Fetched
from wuskern.train.methods import Method
from wuskern.train.models import model_for
from wuskern.train.phases import Phases
from wuskern.train.random_state import RandomState
from wuskern.train.records import Epoch, Record
from wuskern.train.settings import AMP, SCHEDULES, Settings, check_states


class Run:
    """A training of one model under one method, epoch by epoch.

    Runs of one seed start from the same weights and see the same batches, as long as no sampler leaves samples out. Each has a
    random state of its own (torch's, on the CPU and the CUDA device), so that its numbers do not depend on what else runs in
    between. The metric that WUS watches is the accuracy on the training batches: it costs nothing and leaks nothing from the
    test set.

    Each of several processes computes an equal part of every batch; all have the record of the first.

    Args:
        leader: for ``frozen``, a run of the same seed with WUS in it, whose windows it repeats.
    """

    limit: int | None = None  # at most so many steps in an epoch of a run that is thrown away

    def __init__(self, method: Method, settings: Settings, data: Data, seed: int, leader: "Run | None" = None) -> None:
        self.method, self.settings, self.data = method, settings, data
        self.record = Record(method.label, seed, settings.epochs, [])
        self.losses: list[float] = []  # of the last epoch's steps, in this process
        self.device = torch.device(settings.device)
        self.random = RandomState(self.device)
        with self.random.seeded(seed):
            model = model_for(settings.model, data.x_train, data.classes, settings.width)
            if processes.rank() > 0:  # so that dropout differs between processes
                torch.manual_seed(seed + 1_000_003 * processes.rank())
        self.model = model.to(self.device, memory_format=settings.memory_format)  # type: ignore[call-overload]
        if method.parts:
            convert(self.model)
        self.optimizer = settings.optimizer_of(self.model)
        self.order = torch.Generator().manual_seed(seed)
        self.schedule = SCHEDULES[settings.schedule](self.optimizer, settings.epochs)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=settings.amp == "fp16")
        self.built = self._build(leader)
        self.policy, self.sampler = self.built.policy, self.built.sampler
        self.savings = self._savings()
        self.trained, self.prepared = self._distributed()
        self.batches = Batches(
            data.x_train,
            data.y_train,
            self.device,
            host=settings.host,
            workers=settings.workers,
            memory_format=settings.memory_format,
        )
        self.cache = self._cache()

    @property
    def epochs(self) -> list[Epoch]:
        return self.record.epochs

    @property
    def mode(self) -> str:
        """The mode of the next epoch, as in ``Epoch``."""
        if self.policy is None:
            return "full"
        wanted = [self.policy.wants(name) for name in self.policy.layers]
        if all(flags.get("skip") or flags.get("frozen") for flags in wanted):
            return "skip"
        if any(flags.get("frozen") for flags in wanted):
            return "frozen"
        return next((kind for kind in CHOICES if any(flags.get(kind) is not None for flags in wanted)), "full")

    def _build(self, leader: "Run | None") -> methods.Built:
        if not self.method.parts:
            return methods.Built()
        built = methods.build(
            self.method,
            methods.Given(
                self.model,
                self.optimizer,
                self._example(),
                samples=len(self.data.x_train),
                seed=self.record.seed,
                rank=processes.rank(),
                world=processes.world(),
                leader=leader.built.wus if leader else None,
            ),
            self.settings.epochs,
        )
        if built.policy is not None and not self.method.has("frozen"):
            built.policy.attach(self.optimizer)
        return built

    def _example(self) -> inputs.Batch:
        return inputs.each(self.data.x_train[:2], lambda x: x.to(self.device))

    def _savings(self) -> Savings | None:
        """What counts savings; None without a policy, and for PyTorch's own freezing, whose savings are not known."""
        if self.policy is None or self.method.has("frozen"):
            return None
        return Savings(self.policy, self._example(), samples=len(self.data.x_train) // processes.world())

    def _saved(self, samples: int) -> dict[str, float] | None:
        """The shares that an epoch saved; None where nobody counts. ``samples``: how many all processes trained on."""
        if self.savings is not None:
            return asdict(self.savings.report())
        if self.sampler is None:
            return None
        left_out = 1 - samples / len(self.data.x_train)
        return asdict(Saved(0.0, 0.0, 0.0, 0.0, samples=left_out, depth=0, total=left_out))

    def _distributed(self) -> tuple[nn.Module, Prepared | None]:
        """The module to call in training, the model or DDP around it, and what carries DDP's choice of rows."""
        if processes.world() == 1:
            return self.model, None
        unused = self._freezing is not None  # what is frozen gets no gradient
        ddp = DistributedDataParallel(self.model, device_ids=self.random.cuda or None, find_unused_parameters=unused)
        return ddp, prepare(ddp) if self.policy is not None else None

    @property
    def _freezing(self) -> Freezing | None:
        return next((policy for policy in self.built.parts if isinstance(policy, Freezing)), None)

    def _cache(self) -> ActivationCache | None:
        if self._freezing is None or self.settings.host or processes.world() > 1 or self.settings.cache == 0:
            return None
        return ActivationCache(self._freezing, self.data.x_train, limit=self.settings.cache * 2**20)

    # ---- an epoch ---------------------------------------------------------------------------------------------------

    def epoch(self, bar: "tqdm[Any] | None" = None) -> Epoch:
        """Trains an epoch, evaluates, lets the method decide about the next one, and returns the record. ``bar``: of steps."""
        mode = self.mode
        lr = float(self.optimizer.param_groups[0]["lr"])
        self.trained.train()
        with self.random.own():
            loss, train_accuracy, steps, samples, seconds = self._train(bar)
        total = sum(seconds.values())
        test_loss, test_accuracy = evaluate(self.model, self.data.x_test, self.data.y_test, self.device, self.data.classes)
        record = Epoch(
            number=len(self.epochs) + 1,
            mode=mode,
            loss=loss,
            train_accuracy=train_accuracy,
            test_accuracy=test_accuracy,
            test_loss=test_loss,
            steps=steps,
            seconds=total,
            total_seconds=total + (self.epochs[-1].total_seconds if self.epochs else 0.0),
            phase_seconds=seconds,
            saved=self._saved(samples),
            lr=lr,
        )
        record = processes.of_first(record)
        self.epochs.append(record)
        if self.policy is not None:
            self.policy.after_epoch()
            if self.policy.evaluates:
                self.policy.step(record.train_accuracy)
        if self.built.separate_sampler is not None:
            self.built.separate_sampler.step()
        self.schedule.step()
        return record

    def _steps(self) -> order.Steps:
        s = self.settings
        if self.sampler is not None:
            return order.of_sampler(self.sampler, s.batch, s.accumulate)[: self.limit]
        return order.shuffled(len(self.data.x_train), self.order, s.batch, s.accumulate)[: self.limit]

    def _train(self, bar: "tqdm[Any] | None") -> tuple[float, float, int, int, dict[str, float]]:
        """Trains one epoch; the loss and accuracy over its samples, the numbers of steps and samples, and seconds by phase."""
        steps = self._steps()
        losses: list[Tensor] = []
        correct = torch.zeros((), device=self.device, dtype=torch.long)
        if bar is not None:
            bar.reset(len(steps))
        phases = Phases(self.device)
        with contextlib.closing(self.batches.epoch([index for micro in steps for index in micro])) as batches:
            for micro in steps:
                loss, right = self._step(batches, micro, phases)
                losses.append(loss)
                correct += right
                if bar is not None:
                    bar.update()
        seconds = phases.end()
        samples = processes.world() * sum(len(index) for micro in steps for index in micro)
        labels = samples * self.data.y_train[0].numel()
        sums = torch.stack(losses)
        self.losses = (sums / torch.tensor([sum(map(len, micro)) for micro in steps], device=self.device)).tolist()
        loss_mean = processes.total(sums.sum()).item() / samples
        return loss_mean, processes.total(correct).item() / labels, len(steps), samples, seconds

    def _step(self, batches: Iterator[Fetched], micro: tuple[Tensor, ...], phases: Phases) -> Any:
        """Takes one optimizer step; returns the sums of the samples' losses and of the right answers."""
        if self.policy is not None:
            self.policy.before_step()
        self.optimizer.zero_grad()
        size = sum(map(len, micro))
        loss_sum: Tensor | float = 0.0
        correct: Tensor | int = 0
        for i in range(len(micro)):
            index, x, y = next(batches)
            phases.mark("data")
            with self._synchronised(i == len(micro) - 1):
                logits = inputs.logits(self._forward(index, x), y, self.data.classes)
                loss = F.cross_entropy(logits.flatten(0, -2).float(), y.flatten())
                phases.mark("fprop")
                self.scaler.scale(loss * (len(index) / size)).backward()
            phases.mark("backward")
            loss_sum += loss.detach() * len(index)
            right = logits.detach().argmax(-1) == y
            correct += right.sum()
            if self.sampler is not None:
                self.sampler.record(index, right.float().flatten(1).mean(1) >= 0.5 if right.ndim > 1 else right)
            phases.mark("data")
        if self.scaler.is_enabled():
            unscale_(self.scaler, self.optimizer)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        if self.savings is not None:
            self.savings.count(size, cached_layers=self.cache.layers if self.cache else 0)
        if self.policy is not None:
            self.policy.after_step()
        phases.mark("optimizer")
        return loss_sum, correct

    def _forward(self, index: Tensor, x: inputs.Batch) -> Any:
        dtype = AMP[self.settings.amp]
        with torch.autocast(self.device.type, dtype, enabled=dtype is not None):
            return inputs.call(self.trained, x) if self.cache is None else self.cache(index)

    @contextlib.contextmanager
    def _synchronised(self, last: bool) -> Iterator[None]:
        """A block in which several processes exchange gradients only if it is the last micro-batch of a step."""
        if last or not isinstance(self.trained, DistributedDataParallel):
            yield
        else:
            with self.trained.no_sync():
                yield

    def peak_bytes(self) -> int:
        """The peak memory of one training step, above what there was before it. It trains: only for a run to throw away."""
        micro = self._steps()[0]
        self.trained.train()
        with contextlib.closing(self.batches.epoch(list(micro))) as batches:
            return peak_bytes(lambda: self._step(batches, micro, Phases(self.device)), self.device.type)

    def close(self) -> None:
        """Ends the workers that fetch data."""
        self.batches.close()

    # ---- state ------------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """All that the next epoch depends on, but for settings and data; safe for ``torch.load(weights_only=True)``. All
        processes call this at the same time."""
        return {
            "record": self.record.state_dict(),
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "scaler": self.scaler.state_dict(),
            "policy": self.policy.state_dict() if self.policy is not None else None,
            "sampler": self.built.separate_sampler.state_dict() if self.built.separate_sampler is not None else None,
            "order": self.order.get_state(),
            "random": processes.of_all(self.random.states),
            "rows": self.prepared.state_dict() if self.prepared is not None else None,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continues where the state was taken. Raises ``ValueError`` for the state of another run."""
        record = Record.from_state(state["record"])
        if record.key != self.record.key:
            raise ValueError(f"state: expected that of the run {self.record.key}, got {record.key}")
        self.record = record
        fit_(self.model, state["model"])  # a method may have made it smaller
        self.model.load_state_dict(state["model"])
        check_states(self.optimizer, self.schedule, state, len(record.epochs))
        for name in ("optimizer", "schedule", "scaler"):
            getattr(self, name).load_state_dict(state[name])
        for part, name in ((self.policy, "policy"), (self.built.separate_sampler, "sampler"), (self.prepared, "rows")):
            if part is not None:
                part.load_state_dict(state[name])
        self.order.set_state(state["order"])
        length = len(self.random.states)
        self.random.states = list(state["random"])[processes.rank() * length :][:length]
