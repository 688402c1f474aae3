"""What the tests of the Lightning callback share: a module, its data, and a trainer that says nothing."""

import contextlib
import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader, Sampler, TensorDataset

import wuskern as wk

L: Any = pytest.importorskip("lightning.pytorch", reason="lightning is not installed: make test-more installs it")

SAMPLES, BATCH = 24, 4
X = torch.randn(SAMPLES, 8, generator=torch.Generator().manual_seed(1))
Y = torch.randint(3, (SAMPLES,), generator=torch.Generator().manual_seed(2))


class ByEpoch(Sampler[int]):
    """Another order in each epoch, which depends on nothing else."""

    def __init__(self, samples: int = SAMPLES) -> None:
        self.samples, self.epoch = samples, 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __iter__(self):
        return iter(torch.randperm(self.samples, generator=torch.Generator().manual_seed(self.epoch)).tolist())

    def __len__(self) -> int:
        return self.samples


def loader(x: Tensor = X, y: Tensor = Y, sampler: Any = None, batch: int = BATCH) -> DataLoader:
    data = TensorDataset(torch.arange(len(x)), x, y)
    return DataLoader(data, batch, sampler=ByEpoch(len(x)) if sampler is None else sampler)


def network() -> nn.Module:
    torch.manual_seed(3)
    parts = nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.2), nn.Linear(16, 12), nn.ReLU(), nn.Linear(12, 3)
    return wk.convert(nn.Sequential(*parts))


def sgd(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=0.01)


def seed_of(epoch: int, batch: int) -> int:
    """What the dropout of a batch is drawn by, in a resumed training as well."""
    return 100 * epoch + batch


class Lit(L.LightningModule):
    """``metric``: what each validation says."""

    def __init__(self, net: nn.Module | None = None, optimizer: Any = sgd, metric: float = 0.5) -> None:
        super().__init__()
        self.net = network() if net is None else net
        self.make_optimizer, self.metric = optimizer, metric
        self.sampler: Any = None  # that keeps a record

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        index, x, y = batch
        torch.manual_seed(seed_of(self.current_epoch, batch_idx))
        logits = self(x)
        if self.sampler is not None:
            self.sampler.record(index, logits.detach().argmax(1) == y)
        return F.cross_entropy(logits, y)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("accuracy", self.metric, batch_size=1)

    def configure_optimizers(self) -> Any:
        return self.make_optimizer(self.net)


@contextlib.contextmanager
def without_advice() -> Iterator[None]:
    """A block without Lightning's warnings about worker processes and the like, which are no errors here."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*(bottleneck|lr_scheduler.step|LeafSpec|have no `val_dataloader`).*")
        warnings.filterwarnings("ignore", ".*Checkpoint directory.*exists and is not empty")
        yield


def fit(module: Any, *callbacks: Any, data: Any = None, validation: bool = True, resume: Any = None, **given: Any) -> Any:
    """The trainer, when it is done."""
    chosen = dict(max_epochs=2, accelerator="cpu", devices=1, num_sanity_val_steps=2, enable_checkpointing=False) | given
    quiet = dict(logger=False, enable_progress_bar=False, enable_model_summary=False)
    with without_advice():
        trainer = L.Trainer(callbacks=list(callbacks), **chosen, **quiet)
        trainer.fit(module, data or loader(), loader() if validation else None, ckpt_path=resume)
    return trainer
