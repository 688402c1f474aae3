"""Checks that all processes have set the same flags: one that skips what another computes would halve a gradient, or hang."""

import hashlib
import textwrap

import torch
import torch.distributed as dist
import torch.nn as nn

from wuskern.modules import SkippableLayer, skippable_layers

NAMED, MOST_SAID = 3, 160  # layers in the message, characters of each plan


def check_names(names: list[str], group: "dist.ProcessGroup") -> None:
    """Raises ``RuntimeError`` in all processes if one has converted layers of other names, or in another order."""
    everyone: list[list[str]] = [[] for _ in range(dist.get_world_size(group))]
    dist.all_gather_object(everyone, names, group)
    for rank, rank_names in enumerate(everyone):
        if rank_names != everyone[0]:
            odd = sorted(set(rank_names) ^ set(everyone[0])) or ["another order"]
            raise RuntimeError(f"ddp_model: expected the same converted layers in all processes, got {odd} in rank {rank} only")


def check_flags(model: nn.Module, group: "dist.ProcessGroup | None" = None) -> None:
    """Compares the plan of each converted layer over the processes, which all call this: a small all_gather.

    ``prepare`` does so before each forward. With FSDP2, which hangs or fails where plans differ, call it where they change.
    Raises ``RuntimeError`` in all processes, with the layer and what each process has, if one differs.
    """
    layers = skippable_layers(model)
    compare(layers, group, next(iter(layers.values())).weight.device)


def compare(layers: dict[str, SkippableLayer], group: "dist.ProcessGroup | None", device: torch.device) -> None:
    """Does what :func:`check_flags` does, for the given layers by name, with the comparison on ``device``: of one number for
    all layers, so that a step has one small message however many there are."""
    digests = {name: layer.plan.digest for name, layer in layers.items()}
    hashed = hashlib.blake2b(repr(digests).encode(), digest_size=8).digest()
    mine = torch.tensor([int.from_bytes(hashed, "little", signed=True)], device=device)
    everyone = [torch.empty_like(mine) for _ in range(dist.get_world_size(group))]
    dist.all_gather(everyone, mine, group)
    if len(set(torch.cat(everyone).tolist())) > 1:
        _report(digests, layers, group)


def _report(digests: dict[str, int], layers: dict[str, SkippableLayer], group: "dist.ProcessGroup | None") -> None:
    of_all: list[dict[str, int]] = [{} for _ in range(dist.get_world_size(group))]
    dist.all_gather_object(of_all, digests, group)
    known = dict.fromkeys(name for of_rank in of_all for name in of_rank)
    names = [name for name in known if len({of_rank.get(name) for of_rank in of_all}) > 1]
    mine = [_said(layers.get(name)) for name in names[:NAMED]]
    everyone: list[list[str]] = [[] for _ in of_all]
    dist.all_gather_object(everyone, mine, group)
    differences = [
        f"{name or 'the model itself'}: " + ", ".join(f"rank {rank} has {said[i]}" for rank, said in enumerate(everyone))
        for i, name in enumerate(names[:NAMED])
    ]
    more = f"; and {len(names) - NAMED} more" if len(names) > NAMED else ""
    raise RuntimeError(f"layers: expected the same plan in all processes, got {'; '.join(differences)}{more}")


def _said(layer: SkippableLayer | None) -> str:
    return "no such layer" if layer is None else textwrap.shorten(str(layer.plan), MOST_SAID)
