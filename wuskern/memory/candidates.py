"""Which layers of a model can keep less for backward, and why others cannot. Told by exact type."""

from typing import Any

import torch.nn as nn

from wuskern.memory.layers import LEAN, Lean

# Their gradient needs more than a bit, or they keep little. So do all that transformers has of its own.
_NO_BITS = (
    nn.GELU, nn.SiLU, nn.Mish, nn.ELU, nn.SELU, nn.CELU, nn.Hardswish, nn.Hardtanh, nn.Softplus, nn.PReLU, nn.RReLU, nn.GLU,
    nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout, nn.SyncBatchNorm,
)  # fmt: skip
_LAZY = nn.LazyBatchNorm1d, nn.LazyBatchNorm2d, nn.LazyBatchNorm3d
_OF_TRANSFORMERS = "transformers.activations"


def is_candidate(module: nn.Module) -> bool:
    """Whether the module is, is derived from or resembles a layer that can keep less."""
    return isinstance(module, (*LEAN, *_NO_BITS, *_LAZY)) or type(module).__module__ == _OF_TRANSFORMERS


def obstacle(module: nn.Module) -> str | None:
    """Why a candidate cannot keep less; None where it can, or does."""
    if isinstance(module, Lean):
        return None
    if type(module) in LEAN:
        return "its forward was replaced on the object" if "forward" in module.__dict__ else None
    if isinstance(module, _LAZY):
        return "it is lazy: run the model once before converting"
    if isinstance(module, tuple(LEAN)):
        return f"{type(module).__name__} is a subclass with a behaviour of its own"
    return f"there is no {type(module).__name__} that keeps less"


def make_lean(module: nn.Module) -> None:
    """Has a layer of a class that is in the table keep less."""
    if type(module) in LEAN:
        module.__class__ = LEAN[type(module)]


def make_stock(module: nn.Module) -> None:
    """Has a layer that keeps less be PyTorch's again."""
    stock: Any = getattr(type(module), "stock", None)
    if isinstance(module, Lean) and LEAN.get(stock) is type(module):
        module.__class__ = stock
