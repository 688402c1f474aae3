"""The layers that ``convert(model, memory=True)`` makes: PyTorch's own, with equal results, that keep less for backward."""

from typing import ClassVar

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from wuskern.memory import functions
from wuskern.memory.functions import RELU, RELU6, Piecewise


class Lean(nn.Module):
    """What the layers are that keep less for backward than the class that they are derived from, which is ``stock``."""

    stock: ClassVar[type[nn.Module]]


class BitReLU(Lean, nn.ReLU):
    """An ``nn.ReLU`` that keeps a bit for each element in place of its output."""

    stock = nn.ReLU

    def forward(self, input: Tensor) -> Tensor:
        if torch.jit.is_scripting():  # type: ignore[attr-defined]
            return F.relu(input, self.inplace)
        return functions.piecewise(input, RELU, self.inplace)


class BitReLU6(Lean, nn.ReLU6):
    """An ``nn.ReLU6`` that keeps a bit for each element in place of its input. Behind a NaN it passes the gradient on, as
    PyTorch's does on GPUs and in some places on CPUs."""

    stock = nn.ReLU6

    def forward(self, input: Tensor) -> Tensor:
        if torch.jit.is_scripting():  # type: ignore[attr-defined]
            return F.relu6(input, self.inplace)
        return functions.piecewise(input, RELU6, self.inplace)


class BitLeakyReLU(Lean, nn.LeakyReLU):
    """An ``nn.LeakyReLU``, of any slope, that keeps a bit for each element in place of its input."""

    stock = nn.LeakyReLU

    def forward(self, input: Tensor) -> Tensor:
        if torch.jit.is_scripting():  # type: ignore[attr-defined]
            return F.leaky_relu(input, self.negative_slope, self.inplace)
        activation = Piecewise("leaky_relu", nan=False, outside=float(self.negative_slope))
        return functions.piecewise(input, activation, self.inplace)


class BitDropout(Lean, nn.Dropout):
    """An ``nn.Dropout`` that keeps a bit for each element in place of a number, and drops what PyTorch's would."""

    stock = nn.Dropout

    def forward(self, input: Tensor) -> Tensor:
        if torch.jit.is_scripting():  # type: ignore[attr-defined]
            return F.dropout(input, self.p, self.training, self.inplace)
        if not self.training:
            return F.dropout(input, self.p, False, self.inplace)
        return functions.dropout(input, self.p, self.inplace)


class _LeanBatchNorm(Lean, nn.modules.batchnorm._BatchNorm):
    """A BatchNorm that keeps a number for each channel in place of its input, wherever that is enough: in evaluation mode, with
    a weight that does not train (``requires_grad=False``) or none. Elsewhere, and in compiled code, whose compiler decides what
    is kept, it is PyTorch's."""

    def forward(self, input: Tensor) -> Tensor:
        if torch.jit.is_scripting():  # type: ignore[attr-defined]
            if self.training:
                raise RuntimeError("a BatchNorm that keeps less cannot train in TorchScript: call wuskern.revert(model) first")
            of_batch = self.running_mean is None and self.running_var is None
            return F.batch_norm(input, self.running_mean, self.running_var, self.weight, self.bias, of_batch, 0.0, self.eps)
        if self.training or torch.compiler.is_compiling():
            return super().forward(input)
        mean, var = self.running_mean, self.running_var
        trains = self.weight is not None and self.weight.requires_grad
        if mean is None or var is None or trains or not functions.needs_own_path(input, self.weight, self.bias):
            return super().forward(input)
        self._check_input_dim(input)
        return functions.batch_norm(input, self.weight, self.bias, mean, var, self.eps)


class LeanBatchNorm1d(_LeanBatchNorm, nn.BatchNorm1d):
    """An ``nn.BatchNorm1d`` that keeps nothing for a weight which does not train, in evaluation mode."""

    stock = nn.BatchNorm1d


class LeanBatchNorm2d(_LeanBatchNorm, nn.BatchNorm2d):
    """An ``nn.BatchNorm2d`` that keeps nothing for a weight which does not train, in evaluation mode."""

    stock = nn.BatchNorm2d


class LeanBatchNorm3d(_LeanBatchNorm, nn.BatchNorm3d):
    """An ``nn.BatchNorm3d`` that keeps nothing for a weight which does not train, in evaluation mode."""

    stock = nn.BatchNorm3d


LEAN: dict[type[nn.Module], type[Lean]] = {
    cls.stock: cls for cls in (BitReLU, BitReLU6, BitLeakyReLU, BitDropout, LeanBatchNorm1d, LeanBatchNorm2d, LeanBatchNorm3d)
}
