"""A policy in a loop with accelerate: one block, and nothing else. Policies, their ``attach`` and ``wuskern.optim`` take what
``accelerator.prepare`` gives, and ``accelerator.register_for_checkpointing(policy)`` saves and loads the policy."""

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch.nn as nn

from wuskern.policies import Policy

if TYPE_CHECKING:
    from accelerate import Accelerator


@contextlib.contextmanager
def accumulate(accelerator: "Accelerator", policy: Policy, *models: nn.Module) -> Iterator[None]:
    """A block around each micro-batch, in place of ``accelerator.accumulate(*models)``, that also tells the policy of each
    optimizer step: ``before_step`` ahead of its first micro-batch, ``after_step`` behind its last.

    Whether a micro-batch is the first of a step follows from the accelerator's own count, which it saves and loads.

    Args:
        accelerator: accelerate's, whose ``gradient_accumulation_steps`` count. models: what ``accelerator.accumulate`` takes.
    """
    if accelerator.step % accelerator.gradient_accumulation_steps == 0:
        policy.before_step()
    with accelerator.accumulate(*models):
        yield
    if accelerator.sync_gradients:
        policy.after_step()
