"""The sparse methods: masks that hold through the optimizer and change with time, and what PyTorch's kernels make of them."""

from wuskern.policies.sparse.base import SparseTraining
from wuskern.policies.sparse.mest import MEST
from wuskern.policies.sparse.packed import PackedLinear, pack
from wuskern.policies.sparse.rigl import RigL

__all__ = ["MEST", "PackedLinear", "RigL", "SparseTraining", "pack"]
