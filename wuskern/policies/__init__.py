"""The training policies: they decide when layers skip, which rows they compute from which tokens, which layers are frozen and
which weights are zero, and remember. One file per method, which declares its name, source, arguments and claims; ``METHODS``
has all by name, and the command line and the documentation are made of it.

A new policy: its file, its name here, its test in tests/policies, and a row of a recipe in bench/methods.
"""

from wuskern.policies.base import Policy
from wuskern.policies.bitfit import BitFit
from wuskern.policies.blocks import Blocks
from wuskern.policies.column_row import ColumnRowSampling
from wuskern.policies.compose import Compose
from wuskern.policies.freezing import (
    ActivationCache,
    AutoFreeze,
    ComposerFreezing,
    DelayedFreezing,
    Freezing,
    Indexed,
    PeriodicFreezing,
    PipeTransformerFreezing,
    ProgressiveFreezing,
    SingleShotFreezing,
)
from wuskern.policies.meprop import MeProp
from wuskern.policies.mesimp import MeSimp
from wuskern.policies.paca import PaCA
from wuskern.policies.savings import Saved, Savings
from wuskern.policies.score_memory import ScoreMemory
from wuskern.policies.sieving import SievingSampler
from wuskern.policies.sparse import MEST, RigL, SparseTraining
from wuskern.policies.spfde import SpFDE
from wuskern.policies.ssprop import SsProp
from wuskern.policies.tinyprop import TinyProp
from wuskern.policies.wus import WUS
from wuskern.policies.wus_lr import WUSLR

METHODS: dict[str, type[Policy] | type[SievingSampler]] = {
    method.name: method
    for method in (
        WUS,
        WUSLR,
        MeProp,
        SsProp,
        ScoreMemory,
        TinyProp,
        MeSimp,
        ColumnRowSampling,
        ProgressiveFreezing,
        SingleShotFreezing,
        PeriodicFreezing,
        DelayedFreezing,
        ComposerFreezing,
        PipeTransformerFreezing,
        AutoFreeze,
        SievingSampler,
        MEST,
        RigL,
        SpFDE,
        BitFit,
        Blocks,
        PaCA,
    )
}

__all__ = [
    "MEST",
    "METHODS",
    "WUS",
    "WUSLR",
    "ActivationCache",
    "AutoFreeze",
    "BitFit",
    "Blocks",
    "ColumnRowSampling",
    "Compose",
    "ComposerFreezing",
    "DelayedFreezing",
    "Freezing",
    "Indexed",
    "MeProp",
    "MeSimp",
    "PaCA",
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
