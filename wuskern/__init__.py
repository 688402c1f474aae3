"""The package wuskern: training that does not compute the weight gradients nobody will use."""

from importlib.metadata import PackageNotFoundError, version

from wuskern import distributed, functional, ops, optim, policies
from wuskern.choices import BatchRows, Columns, PerExample, Plan, Rows, Tokens, TopColumns, TopK
from wuskern.convert import convert, revert, survey
from wuskern.cuda_graphs import GraphedStep
from wuskern.delivery.column_grad import ColumnGrad
from wuskern.delivery.observer import ColumnObserver, Observer
from wuskern.doctor import doctor
from wuskern.kernels.backends import backend
from wuskern.kernels.triton.tuning import autotune
from wuskern.layers.embedding import SkippableEmbedding
from wuskern.modules import SkippableConv2d, SkippableLinear
from wuskern.optim import load_part_, part_state_dict, unscale_
from wuskern.plans import set_columns, set_plan, set_rows, set_skip, set_tokens, skipping
from wuskern.profile import profile
from wuskern.simplify import fit_, simplify, simplify_
from wuskern.sparse_grad import RowGrad
from wuskern.summary import summary

try:
    __version__ = version("wuskern")
except PackageNotFoundError:  # a bare checkout
    __version__ = "0+checkout"

__all__ = [
    "BatchRows",
    "ColumnGrad",
    "ColumnObserver",
    "Columns",
    "GraphedStep",
    "Observer",
    "PerExample",
    "Plan",
    "RowGrad",
    "Rows",
    "SkippableConv2d",
    "SkippableEmbedding",
    "SkippableLinear",
    "Tokens",
    "TopColumns",
    "TopK",
    "autotune",
    "backend",
    "convert",
    "distributed",
    "doctor",
    "fit_",
    "functional",
    "load_part_",
    "ops",
    "optim",
    "part_state_dict",
    "policies",
    "profile",
    "revert",
    "set_columns",
    "set_plan",
    "set_rows",
    "set_skip",
    "set_tokens",
    "simplify",
    "simplify_",
    "skipping",
    "summary",
    "survey",
    "unscale_",
]


def __dir__() -> list[str]:
    return __all__
