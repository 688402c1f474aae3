"""What ``--policy`` says: methods with commas between them, each of one or several parts with plus signs between them, as in
``dense,wus,meprop:ratio=.1:scope=both+sieve:keep=.8``."""

import contextlib
import re
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields
from typing import Any

import torch.nn as nn
from torch.optim import Optimizer

from wuskern.common.example import Example
from wuskern.policies import METHODS, WUS, Compose, Policy, SievingSampler, SpFDE
from wuskern.train.controls import Frozen
from wuskern.train.order import LEAST

DENSE = "dense"
PARTS: dict[str, Any] = METHODS | {Frozen.name: Frozen}
REQUIRED = MISSING
Number = int | float
Value = bool | Number | str | list[str] | tuple[Number, ...] | None


@dataclass(frozen=True)
class Part:
    """One policy, or sampler, with the arguments that the user gave it."""

    name: str
    arguments: Mapping[str, Value]


@dataclass(frozen=True)
class Method:
    """A method of one or several parts; without parts: dense training. ``label``: what the user wrote, and results show."""

    label: str
    parts: tuple[Part, ...] = ()

    def has(self, name: str) -> bool:
        return any(part.name == name for part in self.parts)

    @property
    def skips(self) -> bool:
        """Whether the method may skip the weight gradients of whole steps."""
        return any(issubclass(PARTS[part.name], WUS) for part in self.parts)


@dataclass(frozen=True)
class Given:
    """What a run gives to the parts of its method, by the names of their arguments.

    Args:
        model: with converted layers. example: a batch of its inputs, if a part asks for one. samples: how many the training
            data have.
        leader: the policy whose windows ``frozen`` repeats.
    """

    model: nn.Module
    optimizer: Optimizer
    example: Example | None
    samples: int
    seed: int
    rank: int = 0
    world: int = 1
    leader: WUS | None = None

    def to(self, kind: Any) -> dict[str, Any]:
        """The arguments that a part of this kind takes from the run."""
        known = {name: getattr(self, name) for name in GIVEN} | {"size": self.samples}
        return {argument.name: known[argument.name] for argument in fields(kind) if argument.name in known}


GIVEN = {field.name for field in fields(Given)}


@dataclass(frozen=True)
class Built:
    """A method on one model.

    Attributes:
        parts: the policies one by one, in their order. separate_sampler: the sampler, if no policy steps and saves it.
    """

    policy: Policy | None = None
    sampler: SievingSampler | None = None
    parts: tuple[Policy, ...] = ()
    separate_sampler: SievingSampler | None = None

    @property
    def wus(self) -> WUS | None:
        return next((policy for policy in self.parts if isinstance(policy, WUS)), None)


def parse(text: str) -> tuple[Method, ...]:
    """The methods that the text names, each once, in its order.

    Raises:
        ValueError: an unknown name or argument, or one that is no ``key=value``.
    """
    labels = ["".join(label.split()) for label in text.split(",")]
    return tuple(Method(label, _parts(label)) for label in dict.fromkeys(labels))


def _parts(label: str) -> tuple[Part, ...]:
    if label == DENSE:
        return ()
    texts = re.sub(r"(^|\+)wus\+lr(?=$|[:+])", r"\1wus/lr", label).split("+")
    parts = tuple(_part(text.replace("wus/lr", "wus+lr")) for text in texts)
    names = [part.name for part in parts]
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"--policy: expected each part of a method once, got {name} twice in {label!r}")
    if "frozen" in names and len(names) > 1:
        raise ValueError(f"--policy: expected frozen alone, which is PyTorch's own way, got {label!r}")
    return parts


def _part(text: str) -> Part:
    name, *arguments = text.split(":")
    if name not in PARTS:
        raise ValueError(f"--policy: expected one of {', '.join((DENSE, *PARTS))}, got {name!r}")
    values: dict[str, Value] = {}
    for argument in arguments:
        key, value = _argument(name, argument)
        if key in values:
            raise ValueError(f"--policy: expected {key}= once, got {text!r}")
        values[key] = value
    for key, default in defaults(name).items():
        if default is REQUIRED and key not in values and key != "epochs":
            raise ValueError(f"--policy: expected {name}:{key}=, which has no default, got {text!r}")
    return Part(name, values)


def _argument(name: str, text: str) -> tuple[str, Value]:
    key, equals, value = text.partition("=")
    known = defaults(name)
    if key not in known or not equals or not value:
        raise ValueError(f"--policy: expected {name} with {', '.join(f'{k}=' for k in known)}, got {text!r}")
    if isinstance(known[key], bool) and value.lower() not in ("true", "false"):
        raise ValueError(f"--policy: expected {name}:{key}=true or false, got {text!r}")
    return key, value.split("/") if key == "dense" else _value(value, isinstance(known[key], tuple))


def _value(text: str, several: bool = False) -> Value:
    """The value of an argument. Numbers with slashes between them are a tuple; with ``several``, one number is a tuple, too."""
    parts = [_plain(part) for part in text.split("/")]
    if (several or len(parts) > 1) and all(isinstance(part, Number) and not isinstance(part, bool) for part in parts):
        return tuple(parts)  # type: ignore[arg-type]
    return _plain(text)


def _plain(text: str) -> bool | Number | str | None:
    plain: dict[str, bool | None] = {"true": True, "false": False, "none": None}
    if text.lower() in plain:
        return plain[text.lower()]
    for kind in (int, float):
        with contextlib.suppress(ValueError):
            return kind(text)
    return text


def defaults(name: str) -> dict[str, Any]:
    """The arguments that a user can give to a part, and their defaults; REQUIRED for an argument without one."""
    arguments = [f for f in fields(PARTS[name]) if f.name not in {*GIVEN, "size"} and not f.metadata.get("from_python")]
    return {f.name: f.default for f in arguments}


def build(method: Method, given: Given, epochs: int) -> Built:
    """The method's policies on a converted model, and its sampler.

    Args:
        epochs: how many the run has, for a part that asks and that the user did not tell.

    Raises:
        ValueError, TypeError: what a policy raises for its arguments, or ``Compose`` for two of them; two that sieve data.
    """
    policies: list[Policy] = []
    samplers: list[SievingSampler] = []
    samples, world = given.samples, given.world
    for part in method.parts:
        kind = PARTS[part.name]
        arguments: dict[str, Any] = dict(part.arguments)
        if defaults(part.name).get("epochs") is REQUIRED or arguments.get("saving") is not None:
            arguments.setdefault("epochs", epochs)
        made = kind(**given.to(kind), **arguments)
        (samplers if kind is SievingSampler else policies).append(made)
    of_policies = [policy.sampler for policy in policies if isinstance(policy, SpFDE)]
    if len(samplers + of_policies) > 1:
        raise ValueError("--policy: expected one part that sieves data, got sieve and spfde, which does it by itself")
    for sieve in samplers + of_policies:
        if int(sieve.keep * samples) < LEAST * world:
            raise ValueError(f"keep: expected to leave at least {LEAST * world} of {samples} samples, got {sieve.keep!r}")
    sampler, separate = next(iter(samplers + of_policies), None), next(iter(samplers), None)
    if not policies:
        return Built(None, sampler, (), separate)
    parts = (part for policy in policies for part in (policy.policies if isinstance(policy, Compose) else (policy,)))
    return Built(policies[0] if len(policies) == 1 else Compose(policies), sampler, tuple(parts), separate)


def describe() -> str:
    """A line per part, with its arguments and their defaults, for ``--help``."""
    lines = [f"  {DENSE}: everything is computed"]
    for name in PARTS:
        shown = (f"{k}=" if v is REQUIRED else f"{k}={_text(v)}" for k, v in defaults(name).items())
        lines.append(f"  {name}: {' '.join(shown)}")
    return "\n".join(lines)


def _text(value: Any) -> str:
    if isinstance(value, tuple):
        return "/".join(map(_text, value))
    return f"{value:g}" if isinstance(value, float) else str(value).lower() if isinstance(value, bool | None) else str(value)
