"""Policies that freeze the first layers: a mechanism, and one file of schedules per source."""

from wuskern.policies.freezing.autofreeze import AutoFreeze
from wuskern.policies.freezing.base import Freezing
from wuskern.policies.freezing.cache import ActivationCache
from wuskern.policies.freezing.composer import ComposerFreezing
from wuskern.policies.freezing.pipetransformer import PipeTransformerFreezing
from wuskern.policies.freezing.prefix import Prefix
from wuskern.policies.freezing.samples import Indexed
from wuskern.policies.freezing.spfde import DelayedFreezing, PeriodicFreezing, ProgressiveFreezing, SingleShotFreezing

__all__ = [
    "ActivationCache",
    "AutoFreeze",
    "ComposerFreezing",
    "DelayedFreezing",
    "Freezing",
    "Indexed",
    "PeriodicFreezing",
    "PipeTransformerFreezing",
    "Prefix",
    "ProgressiveFreezing",
    "SingleShotFreezing",
]
