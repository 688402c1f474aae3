"""The methods: what of a model trains in two processes, and how gradients are sent.

Peers are what torch and peft have: DDP, its hooks for fp16 and PowerSGD, local SGD, LoRA, a frozen prefix in plain PyTorch.
Ours go through ``wuskern.distributed.prepare``. How a model is changed comes from :mod:`bench.finetune.methods` where it is
fine-tuned; a network that learns from scratch has rows and columns by their scores in each step.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
import torch.nn as nn
from torch import Tensor
from torch.distributed.algorithms.ddp_comm_hooks import default_hooks, post_localSGD_hook, powerSGD_hook
from torch.nn.parallel import DistributedDataParallel

import wuskern as wk
from bench.finetune import methods as finetune
from bench.finetune.methods import Prepared
from bench.finetune.tasks import Task

SCRATCH = ("vgg11", "small vgg11")  # tasks
RATIO, STAYS = 0.05, 8  # of rows and columns; steps for which a choice by scores stays
LOCAL_FROM, LOCAL_STEPS = 10, 8  # local SGD
POWER_RANK, POWER_FROM = 2, 10  # PowerSGD
WINDOWS = dict(warmup=1, window=2, threshold=0.02, patience=3)  # WUS, in rounds
Hook = Callable[[DistributedDataParallel], object]
Wrap = Callable[[torch.optim.Optimizer, nn.Module], torch.optim.Optimizer]


class Step(nn.Module):
    """A model whose forward takes the numbers of samples, so that DDP is around whatever a method computes from these."""

    def __init__(self, prepared: Prepared) -> None:
        super().__init__()
        self.model = prepared.model
        self.compute = prepared.forward

    def forward(self, index: Tensor) -> Tensor:
        return self.compute(index)


@dataclass
class Together:
    """What trains in each process.

    Attributes:
        prepared: the model, as for one process. ours: whether ``prepare`` is called, with ``options``. hook: registers one of
            torch's communication hooks. wrap: what is put around the optimizer. unused: whether DDP looks for parameters that
            get no gradient. by_rounds: a policy that is told the loss after each round of steps.
    """

    prepared: Prepared
    ours: bool = False
    options: dict[str, Any] = field(default_factory=dict)
    hook: Hook | None = None
    wrap: Wrap | None = None
    unused: bool = False
    by_rounds: wk.policies.WUS | None = None

    def ddp(self) -> DistributedDataParallel:
        made = DistributedDataParallel(Step(self.prepared), find_unused_parameters=self.unused)
        if self.hook is not None:
            self.hook(made)
        if self.ours:
            wk.distributed.prepare(made, **self.options)
        return made


# ---- peers -------------------------------------------------------------------------------------------------------------


def dense(model: nn.Module, task: Task, seed: int) -> Together:
    """Stock DDP: everything trains, everything is sent."""
    return Together(finetune.dense(model, task, seed))


def fp16(model: nn.Module, task: Task, seed: int) -> Together:
    """The same, by torch's hook that sends half precision."""

    def hook(ddp: DistributedDataParallel) -> None:
        ddp.register_comm_hook(None, default_hooks.fp16_compress_hook)

    return Together(finetune.dense(model, task, seed), hook=hook)


def power_sgd(model: nn.Module, task: Task, seed: int) -> Together:
    """PowerSGD of rank 2, by torch's hook."""

    def hook(ddp: DistributedDataParallel) -> None:
        state = powerSGD_hook.PowerSGDState(None, matrix_approximation_rank=POWER_RANK, start_powerSGD_iter=POWER_FROM)
        ddp.register_comm_hook(state, powerSGD_hook.powerSGD_hook)

    return Together(finetune.dense(model, task, seed), hook=hook)


def local_sgd(model: nn.Module, task: Task, seed: int) -> Together:
    """Local SGD, as torch's post_localSGD has it: weights are averaged every eight steps, gradients only at first."""
    from torch.distributed.algorithms.model_averaging.averagers import PeriodicModelAverager
    from torch.distributed.optim import PostLocalSGDOptimizer  # which compiles, and warns, when it is imported

    def hook(ddp: DistributedDataParallel) -> None:
        state = post_localSGD_hook.PostLocalSGDState(None, dist.group.WORLD, LOCAL_FROM, post_local_gradient_allreduce=False)
        ddp.register_comm_hook(state, post_localSGD_hook.post_localSGD_hook)

    def wrap(optimizer: torch.optim.Optimizer, _: nn.Module) -> torch.optim.Optimizer:
        return PostLocalSGDOptimizer(optimizer, PeriodicModelAverager(period=LOCAL_STEPS, warmup_steps=LOCAL_FROM))

    return Together(finetune.dense(model, task, seed), hook=hook, wrap=wrap)


def lora(model: nn.Module, task: Task, seed: int) -> Together:
    """LoRA of rank 8, by peft, under stock DDP."""
    return Together(finetune.lora(model, task, seed))


def plain_prefix(model: nn.Module, task: Task, seed: int) -> Together:
    """The front is frozen, and runs once ahead of training; plain PyTorch under stock DDP."""
    return Together(finetune.plain_prefix(model, task, seed))


# ---- ours --------------------------------------------------------------------------------------------------------------


def wus(model: nn.Module, task: Task, _: int) -> Together:
    """WUS: windows of rounds in which no weight of a converted layer trains, nor is sent."""
    policy = wk.policies.WUS(wk.convert(model), **WINDOWS)
    prepared = Prepared(model, finetune._whole(model, task), policy=policy)
    return Together(prepared, ours=True, by_rounds=policy)


def bitfit(model: nn.Module, task: Task, seed: int) -> Together:
    """Biases, norms and the head."""
    return Together(finetune.bitfit(model, task, seed))


def rows(model: nn.Module, task: Task, seed: int) -> Together:
    """5 % of the rows: drawn once where a model is fine-tuned, else by their scores, for eight steps each time."""
    if task.name not in SCRATCH:
        return Together(finetune.rows(model, task, seed), ours=True)
    wk.set_rows(wk.convert(model), wk.TopK(ratio=RATIO))
    return Together(Prepared(model, finetune._whole(model, task), wk.optim.AdamW), ours=True, options={"every": STAYS})


def rows_fp16(model: nn.Module, task: Task, seed: int) -> Together:
    """The same rows in half precision."""
    made = rows(model, task, seed)
    made.options["comm_hook"] = (None, default_hooks.fp16_compress_hook)
    return made


def columns(model: nn.Module, task: Task, seed: int) -> Together:
    """5 % of the columns: drawn once where a model is fine-tuned, else by the input's squares, for eight steps each time."""
    if task.name not in SCRATCH:
        return Together(finetune.columns(model, task, seed), ours=True)
    wk.set_columns(wk.convert(model), wk.TopColumns(ratio=RATIO))
    return Together(Prepared(model, finetune._whole(model, task), wk.optim.AdamW), ours=True, options={"every": STAYS})


def prefix(model: nn.Module, task: Task, seed: int) -> Together:
    """The same front is frozen, and each process keeps its outputs for its own samples."""
    return Together(finetune.prefix_and_cache(model, task, seed), ours=True, unused=True)


Method = Callable[[nn.Module, Task, int], Together]
METHODS: dict[str, Method] = {
    "dense": dense,
    "fp16 hook": fp16,
    "PowerSGD": power_sgd,
    "local SGD": local_sgd,
    "LoRA r8": lora,
    "prefix, plain PyTorch": plain_prefix,
    "BitFit": bitfit,
    "WUS": wus,
    "rows 5 %": rows,
    "rows 5 %, fp16 hook": rows_fp16,
    "columns 5 %": columns,
    "prefix+cache": prefix,
}
PEERS = tuple(METHODS)[:6]
NOT_FROM_SCRATCH = ("LoRA r8", "prefix, plain PyTorch", "BitFit", "prefix+cache")  # of a model that has learned something
