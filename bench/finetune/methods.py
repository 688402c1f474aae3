"""The methods: each gets a pretrained model, and says what trains, by which optimizer, and how a batch is computed.

What a method does before its first step (converting, caching, drawing a part) counts into its time.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn as nn
from torch import Tensor

import wuskern as wk
from bench.finetune.tasks import Task, logits
from wuskern.modules import skippable_layers

RATIO, RANK, BLOCK = 0.05, 8, 16
THAW = 0.6  # the share of the budget after which a prefix thaws, where it does


@dataclass
class Prepared:
    """A model that is ready to train.

    Attributes:
        forward: the logits of the training samples of these indices. optimizer: its class. policy: called at each step.
        saved: what a file of the result would hold. at: what happens after a share of the budget, once.
    """

    model: nn.Module
    forward: Callable[[Tensor], Tensor]
    optimizer: Callable[..., torch.optim.Optimizer] = torch.optim.AdamW
    policy: wk.policies.Policy | None = None
    saved: Callable[[], Mapping[str, Tensor]] = dict
    at: dict[float, Callable[[], None]] = field(default_factory=dict)

    @property
    def trained(self) -> list[nn.Parameter]:
        return [p for p in self.model.parameters() if p.requires_grad]


def _whole(model: nn.Module, task: Task) -> Callable[[Tensor], Tensor]:
    return lambda index: logits(model(**task.train.batch(index)))


def _trained_state(model: nn.Module) -> Callable[[], Mapping[str, Tensor]]:
    return lambda: {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}


def dense(model: nn.Module, task: Task, _: int) -> Prepared:
    """Everything trains: stock PyTorch."""
    return Prepared(model, _whole(model, task), saved=_trained_state(model))


def lora(model: nn.Module, task: Task, _: int) -> Prepared:
    """LoRA of rank 8 on the Linears (the 1x1 convolutions) of the body, by peft; the head trains."""
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(r=RANK, lora_alpha=2 * RANK, target_modules=task.adapted, modules_to_save=[task.head])
    adapted = get_peft_model(model, config)
    return Prepared(adapted, _whole(adapted, task), saved=_trained_state(adapted))


def bitfit(model: nn.Module, task: Task, _: int) -> Prepared:
    """Biases, norms and the head train: stock PyTorch."""
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(parameter.ndim == 1 or name.startswith(task.head))
    return Prepared(model, _whole(model, task), saved=_trained_state(model))


def plain_prefix(model: nn.Module, task: Task, _: int) -> Prepared:
    """The control: the front runs once, ahead of training, and the rest trains on what it gave; plain PyTorch."""
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(not name.startswith(task.front))
    model.eval()
    with torch.no_grad():
        parts = torch.arange(len(task.train)).split(64)
        features = torch.cat([task.begin(model, task.train.batch(index)) for index in parts])
    model.train()
    return Prepared(model, lambda index: task.end(model, features[index], task.train.batch(index)), saved=_trained_state(model))


def _prefix(model: nn.Module, task: Task) -> tuple[wk.policies.SingleShotFreezing, wk.policies.ActivationCache]:
    wk.convert(model)
    example = task.train.batch(torch.arange(2))
    layers = skippable_layers(model)
    share = sum(name.startswith(task.front) for name in layers) / len(layers)
    policy = wk.policies.SingleShotFreezing(model, example, at=0, share=share)
    return policy, wk.policies.ActivationCache(policy, task.train.inputs, limit=2**32)


def prefix_and_cache(model: nn.Module, task: Task, _: int) -> Prepared:
    """The same front is frozen, and its outputs are kept as the samples come."""
    policy, cache = _prefix(model, task)

    return Prepared(
        model, lambda index: logits(cache(index)), policy=policy,
        saved=lambda: wk.part_state_dict(model, frozen=policy.frozen_parameters()),
    )  # fmt: skip


def thawed_prefix(model: nn.Module, task: Task, _: int) -> Prepared:
    """The same, and after 60 % of the budget everything trains."""
    policy, cache = _prefix(model, task)
    return Prepared(
        model, lambda index: logits(cache(index)), policy=policy, saved=lambda: dict(model.named_parameters()),
        at={THAW: policy.release},
    )  # fmt: skip


def _part(
    model: nn.Module, task: Task, index: Callable[[Any, torch.Generator], dict[str, Any]], chosen: Any, seed: int
) -> Prepared:
    """Of the chosen layers a fixed part trains, and the head; nothing else of the body, of whose weights none is computed."""
    wk.convert(model)
    for name, parameter in model.named_parameters():
        owner = name.rpartition(".")[0]
        parameter.requires_grad_(name.startswith(task.head) or (parameter.ndim > 1 and owner in chosen))
    draw = torch.Generator().manual_seed(seed)
    for name, layer in skippable_layers(model).items():
        if name in chosen:
            wk.set_plan(layer, **index(layer, draw))
    return Prepared(model, _whole(model, task), wk.optim.AdamW, saved=lambda: wk.part_state_dict(model))


def _of_body(model: nn.Module, task: Task) -> set[str]:
    return {
        name for name, module in model.named_modules()
        if name.startswith(task.body) and isinstance(module, nn.Linear | nn.Conv2d) and getattr(module, "groups", 1) == 1
    }  # fmt: skip


def _drawn(size: int, draw: torch.Generator, block: int) -> Tensor:
    blocks = torch.randperm(size // block, generator=draw)[: max(1, round(RATIO * size / block))]
    return (blocks[:, None] * block + torch.arange(block)).flatten()


def _inputs_of(layer: Any) -> int:
    return int(layer.weight.shape[1])


def columns(model: nn.Module, task: Task, seed: int) -> Prepared:
    """PaCA: 5 % of the input units of each layer of the body, drawn once, in blocks of 16 where the layer is large."""

    def index(layer: Any, draw: torch.Generator) -> dict[str, Any]:
        return {"columns": wk.Columns(_drawn(_inputs_of(layer), draw, BLOCK if _inputs_of(layer) >= 320 else 1))}

    return _part(model, task, index, _of_body(model, task), seed)


def rows(model: nn.Module, task: Task, seed: int) -> Prepared:
    """5 % of the output units of each layer of the body, drawn once."""
    return _part(
        model, task, lambda layer, draw: {"rows": wk.Rows(_drawn(len(layer.weight), draw, 1))}, _of_body(model, task), seed
    )


def s2ft(model: nn.Module, task: Task, seed: int) -> Prepared:
    """S2FT: input units of the output and down projections, drawn once, so many that as many weights train as with columns."""
    body = _of_body(model, task)
    chosen = {name for name in body if name.endswith(task.projections)}
    sizes = {name: model.get_submodule(name).weight.numel() for name in body}
    more = sum(sizes.values()) / sum(sizes[name] for name in chosen)

    def index(layer: Any, draw: torch.Generator) -> dict[str, Any]:
        size = _inputs_of(layer)
        return {
            "columns": wk.Columns(
                torch.randperm(size, generator=draw)[: max(1, min(size, round(RATIO * more * size)))].sort().values
            )
        }

    return _part(model, task, index, chosen, seed)


def lisa(model: nn.Module, task: Task, seed: int) -> Prepared:
    """LISA: embeddings and head always train, and of the body's blocks two, drawn anew every 20 steps."""
    policy = wk.policies.Blocks(wk.convert(model), steps=20, train=2, order="sampled", state="keep", others="still", seed=seed)
    return Prepared(model, _whole(model, task), wk.optim.AdamW, policy, saved=lambda: dict(model.named_parameters()))


METHODS: dict[str, Callable[[nn.Module, Task, int], Prepared]] = {
    "dense": dense,
    "LoRA r8": lora,
    "BitFit, stock": bitfit,
    "prefix, plain PyTorch": plain_prefix,
    "prefix+cache": prefix_and_cache,
    "prefix+cache, thawed": thawed_prefix,
    "columns 5 %": columns,
    "rows 5 %": rows,
    "S2FT": s2ft,
    "LISA": lisa,
}
OURS = ("prefix+cache", "prefix+cache, thawed", "columns 5 %", "rows 5 %", "S2FT", "LISA")
