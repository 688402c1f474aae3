"""A model for inference whose zeros are left out, where PyTorch has kernels that do."""

import copy
import warnings

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from wuskern.modules import SkippableLinear, plain_name
from wuskern.policies.sparse.base import SparseTraining

CPU_DTYPES = (torch.float32, torch.float64)


class PackedLinear(nn.Module):
    """A linear layer for inference with a weight in a sparse layout: weight and bias are buffers, and nothing has a gradient.

    x: ``[..., in_features]`` -> ``[..., out_features]``.
    """

    weight: Tensor
    bias: Tensor | None

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self.register_buffer("weight", weight)
        self.register_buffer("bias", bias)

    def forward(self, input: Tensor) -> Tensor:
        with torch.no_grad():
            if input.is_cuda:
                return F.linear(input, self.weight, self.bias)
            return self._on_cpu(input.reshape(-1, input.shape[-1])).view(*input.shape[:-1], self.weight.shape[0])

    def _on_cpu(self, x: Tensor) -> Tensor:
        """The output ``[tokens, out]`` of ``x``, ``[tokens, in]``, in down to an eighth of the time that F.linear takes."""
        y = (self.weight @ x.t()).t()
        return y.contiguous() if self.bias is None else torch.add(y, self.bias, out=y.new_empty(y.shape))

    def extra_repr(self) -> str:
        out, features = self.weight.shape
        return f"in_features={features}, out_features={out}, layout={self.weight.layout}"


def pack(policy: SparseTraining) -> nn.Module:
    """A copy of the policy's model in which each masked Linear is a :class:`PackedLinear`: block masks in BSR, unstructured
    ones in CSR, 2:4 in PyTorch's semi-structured form, which needs a GPU. Convolutions and dense layers stay as they are. The
    result is the model's within rounding; whether it is faster, bench/masks.py says of a CPU.

    On a CPU PyTorch multiplies with both by MKL, in float32 and float64, in blocks of any size. What a GPU does is from its
    documentation, and has not been run.

    Raises:
        ValueError: no masked Linear, n:m other than 2:4 or not on a GPU, or a dtype without a kernel, by the layer's name.
    """
    model = copy.deepcopy(policy.model)
    linears = {path: layer for path, layer in model.named_modules() if isinstance(layer, SkippableLinear)}
    masked = {path: layer for path, layer in linears.items() if plain_name(model, path) in policy.masks}
    if not masked:
        raise ValueError("policy: expected one that masks a Linear, got none")
    for path, layer in masked.items():
        bias = None if layer.bias is None else layer.bias.detach()
        weight = _packed(policy, plain_name(model, path), layer.weight.detach())
        packed = PackedLinear(weight, bias).train(layer.training)
        if not path:
            return packed
        parent, _, child = path.rpartition(".")
        setattr(model.get_submodule(parent), child, packed)
    return model


def _packed(policy: SparseTraining, name: str, weight: Tensor) -> Tensor:
    pattern, where = policy.layout, name or "the model itself"
    if pattern.m:
        if (pattern.n, pattern.m) != (2, 4) or not weight.is_cuda:
            raise ValueError(f"{where}: expected 2:4 on a GPU, got {pattern.n}:{pattern.m} on {weight.device.type}")
        return torch.sparse.to_sparse_semi_structured(weight)
    if weight.device.type == "cpu" and weight.dtype not in CPU_DTYPES:
        raise ValueError(f"{where}: expected float32 or float64 on a CPU, got {weight.dtype}")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Sparse (CSR|BSR) tensor support is in beta state")
        return weight.to_sparse_bsr((pattern.block, pattern.block)) if pattern.block > 1 else weight.to_sparse_csr()
