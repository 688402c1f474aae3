"""A block that leaves a model as it was, bit for bit, whatever ran in it."""

import random
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn as nn
from torch import Tensor

_AS_NUMBERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}  # by the bytes of an element


@contextmanager
def untouched(model: nn.Module) -> Iterator[None]:
    """A block after which the model is as it was before, also where an exception leaves it: the classes and attributes of its
    modules (converted or not, plans, hooks, train or eval), the bits of its parameters, buffers and other tensors, ``grad``,
    hooks of parameters, and the random states of torch, Python and numpy. Generators that a module holds, too.

    Within the block no parameter has a ``grad`` or a hook of its own: an optimizer that steps in backward does not. It costs a
    copy of all tensors.
    """
    undo: list[Callable[[], None]] = []
    try:
        _keep_random_states(undo)
        for module in model.modules():
            _keep_module(module, undo)
        for parameter in model.parameters():
            _keep_gradient(parameter, undo)
        undo += [_writer(tensor, tensor.detach().clone(memory_format=torch.preserve_format)) for tensor in _tensors(model)]
        yield
    finally:
        for restore in reversed(undo):
            restore()


def _keep_random_states(undo: list[Callable[[], None]]) -> None:
    python, cpu = random.getstate(), torch.get_rng_state()
    undo += [lambda: random.setstate(python), lambda: torch.set_rng_state(cpu)]
    if torch.cuda.is_initialized():
        gpus = torch.cuda.get_rng_state_all()
        undo.append(lambda: torch.cuda.set_rng_state_all(gpus))
    if (numpy := sys.modules.get("numpy")) is not None:
        state = numpy.random.get_state()
        undo.append(lambda: numpy.random.set_state(state))


def _keep_module(module: nn.Module, undo: list[Callable[[], None]]) -> None:
    """Keeps the class, the attributes, and what is in those that are tables or lists."""
    kind, attributes = module.__class__, dict(module.__dict__)
    contents = [(value, _copied(value)) for value in attributes.values() if isinstance(value, dict | list | set)]
    generators = [(value, value.get_state()) for value in attributes.values() if isinstance(value, torch.Generator)]

    def restore() -> None:
        module.__class__ = kind
        module.__dict__.clear()
        module.__dict__.update(attributes)
        for container, content in contents:
            container.clear()
            (container.extend if isinstance(container, list) else container.update)(content)
        for generator, state in generators:
            generator.set_state(state)

    undo.append(restore)


def _copied(container: Any) -> Any:
    return dict(container) if isinstance(container, dict) else list(container)


def _keep_gradient(parameter: nn.Parameter, undo: list[Callable[[], None]]) -> None:
    """Puts the gradient and the hooks of the parameter aside; of the tables of hooks, which autograd has, what is in them."""
    grad, flag = parameter.grad, parameter.requires_grad
    tables = [parameter._backward_hooks, parameter._post_accumulate_grad_hooks]
    hooks = [(table, dict(table)) for table in tables if table]

    def restore() -> None:
        parameter.requires_grad_(flag)
        parameter.grad = grad
        for table, content in hooks:
            table.clear()
            table.update(content)

    undo.append(restore)
    parameter.grad = None
    for table, _ in hooks:
        table.clear()


def _tensors(model: nn.Module) -> Iterator[Tensor]:
    """The parameters, buffers and other tensors that modules hold, each once."""
    seen: set[int] = set()
    for module in model.modules():
        for holder in (module._parameters, module._buffers, module.__dict__):
            for tensor in holder.values():
                if isinstance(tensor, Tensor) and id(tensor) not in seen:
                    seen.add(id(tensor))
                    if tensor.layout == torch.strided and tensor.device.type != "meta":
                        yield tensor


def _writer(tensor: Tensor, kept: Tensor) -> Callable[[], None]:
    """What writes the kept values back, where any bit differs: a write that changes nothing would spoil the user's graphs."""

    def restore() -> None:
        with torch.no_grad():
            if not _same_bits(tensor.detach(), kept):
                tensor.copy_(kept)

    return restore


def _same_bits(a: Tensor, b: Tensor) -> bool:
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    if a.is_complex():
        a, b = torch.view_as_real(a), torch.view_as_real(b)
    numbers = None if a.is_quantized else _AS_NUMBERS.get(a.element_size())
    return torch.equal(a, b) if numbers is None else torch.equal(a.view(numbers), b.view(numbers))
