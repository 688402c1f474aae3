"""Formulas for ``torch.utils.flop_counter``, which learns them when somebody imports it: that import brings Triton along and
takes a third of a second, so ``import wuskern`` leaves it to those who count."""

import sys
from collections.abc import Callable, Sequence
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any

COUNTER = "torch.utils.flop_counter"

_formulas: dict[Any, Callable[..., int]] = {}  # by op


def register_flops(op: Any, formula: Callable[..., int]) -> None:
    """Has ``FlopCounterMode`` count a call of ``op``, such as ``torch.ops.aten.mm``, by ``formula``, which takes shapes."""
    _formulas[op] = formula
    if COUNTER in sys.modules:
        _teach(sys.modules[COUNTER])


def _teach(counter: ModuleType) -> None:
    for op, formula in _formulas.items():
        if op not in counter.flop_registry:  # taught before, or counted by this torch itself
            counter.register_flop_formula(op)(formula)


class _AtItsImport:
    """Finds the counter where Python would, and has its import end with our formulas."""

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        spec = PathFinder.find_spec(name, path, target) if name == COUNTER else None
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module

            def execute_and_teach(module: ModuleType) -> None:
                execute(module)
                _teach(module)

            spec.loader.exec_module = execute_and_teach  # type: ignore[method-assign]
        return spec


sys.meta_path.insert(0, _AtItsImport())
