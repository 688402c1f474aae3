"""The order of an epoch: which samples each step has, in this process, and in which micro-batches."""

from collections.abc import Sequence

import torch
from torch import Tensor

from wuskern.policies import SievingSampler
from wuskern.train import processes

LEAST = 2  # samples of a batch: batch norm needs as many

Steps = list[tuple[Tensor, ...]]  # by step, the indices of each micro-batch


def shuffled(samples: int, generator: torch.Generator, batch: int, accumulate: int) -> Steps:
    """The steps of an epoch over all samples, in batches that the processes share; without a last batch that is too small."""
    batches = _without_small_rest(torch.randperm(samples, generator=generator).split(batch), LEAST * processes.world())
    return _in_parts(list(map(processes.share, batches)), accumulate)


def of_sampler(sampler: SievingSampler, batch: int, accumulate: int) -> Steps:
    """The steps of an epoch over the samples that the sampler gives this process."""
    batches = torch.tensor(list(sampler)).split(batch // processes.world())
    return _in_parts(_without_small_rest(batches, LEAST), accumulate)


def _without_small_rest(batches: Sequence[Tensor], least: int) -> Sequence[Tensor]:
    return batches[:-1] if len(batches[-1]) < least and len(batches) > 1 else batches


def _in_parts(batches: Sequence[Tensor], accumulate: int) -> Steps:
    return [batch.tensor_split(max(1, min(accumulate, len(batch) // LEAST))) for batch in batches]
