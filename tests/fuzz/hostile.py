"""Calls of every op as an enemy makes them: some arguments of a right call are replaced by wrong ones, in the public functions,
in both namespaces of torch.ops, and, where they are built, in the CUDA kernels that run on the CPU. A call is refused in words,
with nothing written, or it gives what plain PyTorch gives in float64. ``make sanitize-cpu`` runs it beside sanitizers."""

import argparse
import collections
import random
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

import wuskern as wk
from tests import emulation
from tests.fuzz import answers, right_calls, timebox, wrong_values
from wuskern import ops
from wuskern.kernels.cpu import native

# What torch says of what does not fit a schema, of devices without a kernel, and of memory that there is not.
FOREIGN = (
    "expected a value of type", "expected tensor but got none", "there were no tensor arguments", "missing value for",
    "could not run", "not implemented for", "with meta tensors, but there was no fake", "index out of range",
    "out of data bounds", "overflow", "can't allocate", "out of memory", "not enough memory", "bad_alloc", "aten::new_empty",
)  # fmt: skip
BACKWARDS = ("linear_backward", "conv2d_backward")
REFUSALS = (ValueError, TypeError, RuntimeError, IndexError, NotImplementedError, MemoryError, OverflowError)


def targets(emulated: bool) -> list[tuple[str, str, Callable[..., Any]]]:
    """(namespace, op, what is called)."""
    found: list[tuple[str, str, Callable[..., Any]]] = []
    for name in ops.NAMES:
        found.append(("public", name, getattr(ops, name)))
        found.append(("wuskern", name, getattr(torch.ops.wuskern, name).default))
        if emulated:
            found.append(("emulated", name, emulation.op(name)))
    compiled = [n for n in right_calls.OF if n not in BACKWARDS and _has_kernel(n)]
    found += [("native", name, getattr(torch.ops.wuskern_native, name).default) for name in compiled]
    return found + [("public", name, getattr(wk.functional, name)) for name in BACKWARDS]


def _has_kernel(name: str) -> bool:
    return torch._C._dispatch_has_kernel_for_dispatch_key(f"wuskern_native::{name}", "CPU")


def bits(t: Any) -> Tensor | None:
    """A copy of the memory of a tensor, as far as it can be had."""
    if not isinstance(t, Tensor) or not t.is_cpu or t.layout is not torch.strided or t.is_nested:
        return None
    return torch.tensor([], dtype=torch.uint8).set_(t.untyped_storage()).clone()


def first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {[*str(error).splitlines(), ''][0]}"


def in_words(error: Exception) -> bool:
    text = str(error).lower()
    return isinstance(error, REFUSALS) and (": expected" in text or any(words in text for words in FOREIGN))


class Hostile:
    """Makes calls, and counts how they end."""

    def __init__(self, emulated: bool) -> None:
        self.targets, self.ended = targets(emulated), collections.Counter[str]()

    def __call__(self, r: random.Random) -> str | None:
        namespace, name, function = r.choice(self.targets)
        arguments = right_calls.OF[name](r)
        written = range(*answers.WRITTEN.get(name, slice(0)).indices(len(arguments) if namespace != "public" else 0))
        for _ in range(r.choice([0, 1, 1, 1, 2, 3])):
            wrong_values.put(r, arguments, namespace != "emulated", written)
        if namespace == "emulated" and right_calls.undefined_on_a_gpu(name, arguments):
            return None
        given = ", ".join(wrong_values.show(a) for a in arguments)
        fault = self._fault(namespace, name, function, arguments)
        return fault and f"{namespace} {name}({given}): {fault}"

    def _fault(self, namespace: str, name: str, function: Callable[..., Any], arguments: list[Any]) -> str | None:
        before = [bits(a) for a in arguments]
        copies = [a.detach().clone() if isinstance(a, Tensor) else a for a in arguments]
        try:
            result = function(*arguments)
        except Exception as error:
            self.ended[f"{namespace}: refused"] += 1
            if not in_words(error):
                return first_line(error)
            same = all(b is None or torch.equal(b, bits(a)) for a, b in zip(arguments, before, strict=True))
            return None if same else f"wrote before it refused: {first_line(error)}"
        self.ended[f"{namespace}: answered"] += 1
        return answers.compare(name, arguments, result, answers.expected(name, copies))


def main() -> int:
    parser = timebox.parser(__doc__)
    parser.add_argument("--emulated", action=argparse.BooleanOptionalAction, default=True, help="the CUDA kernels too")
    chosen = parser.parse_args()
    timebox.load_library(chosen)
    hostile = Hostile(chosen.emulated and emulation.obstacle() is None)
    status = timebox.run(chosen, hostile)
    print(", ".join(f"{how} {count}" for how, count in sorted(hostile.ended.items())), f"({native.vectors()})")
    return status


if __name__ == "__main__":
    raise SystemExit(main())
