"""wuskern: training that does not compute the weight gradients nobody will use."""

from importlib.metadata import PackageNotFoundError, version

from wuskern import distributed, functional, ops, optim, policies
from wuskern.backends import backend
from wuskern.convert import convert, revert, survey
from wuskern.cuda_graphs import GraphedStep
from wuskern.doctor import doctor
from wuskern.modules import SkippableConv2d, SkippableLinear, set_rows, set_skip, set_tokens, skipping
from wuskern.optim import clip_grad_norm_, unscale_
from wuskern.rows import PerExample, RowGrad, Rows, Scores, TopK
from wuskern.simplify import fit_, simplify, simplify_
from wuskern.tokens import Tokens
from wuskern.tuning import autotune

try:
    __version__ = version("wuskern")
except PackageNotFoundError:  # a bare checkout
    __version__ = "0+checkout"

__all__ = [
    "GraphedStep",
    "PerExample",
    "RowGrad",
    "Rows",
    "Scores",
    "SkippableConv2d",
    "SkippableLinear",
    "Tokens",
    "TopK",
    "autotune",
    "backend",
    "clip_grad_norm_",
    "convert",
    "distributed",
    "doctor",
    "fit_",
    "functional",
    "ops",
    "optim",
    "policies",
    "revert",
    "set_rows",
    "set_skip",
    "set_tokens",
    "simplify",
    "simplify_",
    "skipping",
    "survey",
    "unscale_",
]
