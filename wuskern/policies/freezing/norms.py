"""The norm layers of a frozen prefix: their statistics are fixed until somebody has them estimated anew."""

from typing import Any

import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _NormBase

from wuskern.policies.freezing.forwards import Calls, PrefixForward


class NormForward(PrefixForward):
    """The forward of a norm layer with running statistics, which it leaves as they are, unless somebody resets them to estimate
    them anew, as ``torch.optim.swa_utils.update_bn`` does: by ``reset_running_stats()``, by other tensors, in place on a CPU,
    or by ``momentum = None``. The layer then has the mode that its user gives it, until it is evaluated, or a training step
    follows forwards without gradients or with ``momentum = None``. Not seen as a reset: writes through ``.data``, those in
    place on a GPU, which would have to be waited for, and in a compiled model other tensors and writes in place.
    """

    def __init__(self, module: _NormBase, calls: Calls, **arguments: Any) -> None:
        super().__init__(module, calls, **arguments)
        self.averages = module.momentum is None  # from the start, so that it says nothing of a reset
        self.anew = self.estimated = False
        self._seen, self._fresh = self._versions(), self._is_fresh()
        module.__dict__["reset_running_stats"] = self.reset

    def remove(self) -> None:
        super().remove()
        if getattr(self.module.__dict__.get("reset_running_stats"), "__self__", None) is self:
            del self.module.__dict__["reset_running_stats"]

    def reset(self) -> None:
        type(self.module).reset_running_stats(self.module)  # type: ignore[attr-defined]
        self._begin()

    def prepare(self) -> None:
        averages = self.module.momentum is None and not self.averages
        if (averages and not self.anew) or self._was_reset():
            self._begin()
        if self.anew and self.module.training and (averages or not (self.estimated and torch.is_grad_enabled())):
            self.estimated = self.estimated or averages or not torch.is_grad_enabled()
            return
        self.anew = False
        super().prepare()

    def _begin(self) -> None:
        self.anew, self.estimated = True, False
        if self.switched:
            self.module.training, self.switched = True, False

    def _was_reset(self) -> bool:
        if torch.compiler.is_compiling():
            return False
        seen = self._versions()
        if seen == self._seen:
            return False
        fresh, self._seen = self._fresh, seen
        self._fresh = self._is_fresh()
        return self._fresh and not fresh

    def _statistics(self) -> tuple[Tensor, Tensor]:
        return self.module.running_mean, self.module.running_var  # type: ignore[return-value]

    def _versions(self) -> list[tuple[int, int]]:
        """Numbers that change with other tensors, and with every write on a CPU. (DDP writes before each forward.)"""
        return [(id(t), t._version if t.is_cpu and not t.is_inference() else 0) for t in self._statistics()]

    def _is_fresh(self) -> bool:
        """Whether the statistics are those of a layer that has seen no input."""
        mean, var = self._statistics()
        return not mean.any() and bool((var == 1).all())
