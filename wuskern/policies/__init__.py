"""Training policies: they decide when layers skip, which rows they compute from which tokens, which layers are frozen and which
weights are zero, and remember. One file per method."""

from wuskern.policies.base import Policy
from wuskern.policies.column_row import ColumnRowSampling
from wuskern.policies.compose import Compose
from wuskern.policies.freezing import (
    ActivationCache,
    AutoFreeze,
    ComposerFreezing,
    DelayedFreezing,
    Freezing,
    PeriodicFreezing,
    PipeTransformerFreezing,
    ProgressiveFreezing,
    SingleShotFreezing,
)
from wuskern.policies.meprop import MeProp
from wuskern.policies.mesimp import MeSimp
from wuskern.policies.savings import Saved, Savings
from wuskern.policies.score_memory import ScoreMemory
from wuskern.policies.sieving import SievingSampler
from wuskern.policies.sparse import MEST, RigL, SparseTraining
from wuskern.policies.spfde import SpFDE
from wuskern.policies.ssprop import SsProp
from wuskern.policies.tinyprop import TinyProp
from wuskern.policies.wus import WUS
from wuskern.policies.wus_lr import WUSLR

__all__ = [
    "MEST",
    "WUS",
    "WUSLR",
    "ActivationCache",
    "AutoFreeze",
    "ColumnRowSampling",
    "Compose",
    "ComposerFreezing",
    "DelayedFreezing",
    "Freezing",
    "MeProp",
    "MeSimp",
    "PeriodicFreezing",
    "PipeTransformerFreezing",
    "Policy",
    "ProgressiveFreezing",
    "RigL",
    "Saved",
    "Savings",
    "ScoreMemory",
    "SievingSampler",
    "SingleShotFreezing",
    "SpFDE",
    "SparseTraining",
    "SsProp",
    "TinyProp",
]
