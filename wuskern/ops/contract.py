"""How an op is declared, to PyTorch and to its backends, and how it is called."""

from collections.abc import Callable, Sequence
from typing import Any

import torch

from wuskern.common.flops import register_flops
from wuskern.kernels import backends
from wuskern.ops import checks

NAMES: list[str] = []  # of all ops

_contract = torch.library.Library("wuskern", "DEF")
_native = torch.library.Library("wuskern_native", "DEF")
for _name in ("cpu_capability", "cuda_architectures"):  # what the two libraries say of themselves
    _native.define(f"{_name}() -> str")
_runs: dict[str, Callable[..., Any]] = {}


def declare(
    name: str,
    signature: str,
    check: checks.Check,
    fake: Callable[..., Any],
    flops: Callable[..., int],
    written: int = 0,
    elsewhere: Sequence[str] = (),
) -> None:
    """Declares an op in both namespaces. ``written``: how many of its first arguments it writes to. ``elsewhere``: see
    checks.of_schema."""
    for library in (_contract, _native):
        library.define(name + signature, tags=torch.Tag.pt2_compliant_tag)
        register_flops(getattr(getattr(torch.ops, library.ns), name), flops)
    fits_schema = checks.of_schema(getattr(torch.ops.wuskern, name).default._schema, elsewhere)

    def checked_fake(*arguments: Any) -> Any:
        fits_schema(*arguments)
        check(*arguments)
        return fake(*arguments)

    def run(*arguments: Any) -> Any:
        fits_schema(*arguments)
        check(*arguments)
        first = arguments[0]
        device = "cpu" if first.is_cpu else first.device.type
        result = backends.choose(name, device, first.numel()).run(*arguments)
        if written:
            torch.autograd.graph.increment_version([t for t in arguments[:written] if t is not None])
        return result

    for library in (_contract, _native):
        torch.library.register_fake(f"{library.ns}::{name}", checked_fake, lib=library)
    _contract.impl(name, run, "CompositeExplicitAutograd")
    _runs[name] = run
    NAMES.append(name)


def call(name: str, *arguments: Any) -> Any:
    """The result of an op, with the arguments in its schema's order."""
    if torch.compiler.is_compiling() or torch._C._len_torch_dispatch_stack():  # a mode, such as FlopCounterMode, sees the op
        return getattr(torch.ops.wuskern, name).default(*arguments)
    return _runs[name](*arguments)
