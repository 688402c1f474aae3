"""What makes a skip a skip for an optimizer, however it is stepped: ``step()``, ``step(closure)``, or inside of a wrapper."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from wuskern.layers.embedding import SkippableEmbedding
from wuskern.modules import SkippableLayer, weight_owners

if TYPE_CHECKING:
    from wuskern.policies.base import Policy

FLATTENING = ("LBFGS", "ZeroRedundancyOptimizer")  # names of optimizers that step all parameters as one vector
INSIDE = ("optimizer", "_optimizer", "base_optimizer", "_base_optimizer")  # where wrappers keep the optimizer that they step


class Attachment:
    """The hooks of a policy on an optimizer, and on those inside of it. ``remove`` takes them away."""

    def __init__(self, policy: "Policy", optimizer: Any) -> None:
        stepped = stepped_inside(optimizer)
        self._embeddings: dict[str, Any] = {
            name: module for name, module in policy.model.named_modules() if isinstance(module, SkippableEmbedding)
        }
        self._policy, self._moving = policy, stepped[-1]
        owned = {id(p) for p, _ in weight_owners(policy.model, self._layers()) if p.requires_grad}
        owned = owned or set(map(id, policy.model.parameters()))  # adapters alone train, and biases
        if not any(id(p) in owned for group in stepped[-1].param_groups for p in group["params"]):
            raise ValueError(
                f"optimizer: expected one that holds weights of the converted layers, got {type(optimizer).__name__} "
                "with other parameters (a flattening wrapper such as FSDP1 replaces them)"
            )
        policy.watch(stepped[-1])
        self._handles: list[RemovableHandle] = [wrapper.register_step_pre_hook(self._before_step) for wrapper in stepped]

    def remove(self) -> None:
        for handle in self._handles:
            handle.remove()

    def _layers(self) -> dict[str, SkippableLayer]:
        """The layers whose skip counts: the policy's, and embeddings, which skip by themselves and may share its weights."""
        return {**self._embeddings, **self._policy.layers}

    def _before_step(self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Acts now, or behind each call of a closure, which computes the gradients that count; returns new arguments."""
        closure = args[1] if len(args) > 1 else kwargs.get("closure")
        if closure is None:
            self._act(optimizer)
            return None
        self._drop()

        def acting() -> Any:
            loss = closure()
            self._act(optimizer)
            return loss

        return ((args[0], acting, *args[2:]), kwargs) if len(args) > 1 else (args, kwargs | {"closure": acting})

    def _act(self, optimizer: Optimizer) -> None:
        self._drop()
        if optimizer is self._moving:
            self._policy.observe()

    def _drop(self) -> None:
        policy, own = self._policy, self._layers()
        skips = {layer: getattr(layer, "skip", False) for layer in own.values()}  # a reverted layer has none
        if any(skips.values()):
            for parameter, layers in weight_owners(policy.model, own):
                if all(skips[layer] for layer in layers):
                    parameter.grad = None
        for parameter in policy.frozen_parameters():
            parameter.grad = None


def stepped_inside(optimizer: Any) -> list[Optimizer]:
    """The optimizers whose ``step`` calls hooks, from the outermost to the one that moves parameters."""
    stepped: list[Optimizer] = []
    inside: Any = optimizer
    passed: list[Any] = []
    while inside is not None and inside not in passed:
        passed.append(inside)
        _refuse_flattening(inside)
        if isinstance(inside, Optimizer) and _calls_hooks(inside):
            stepped.append(inside)
        wrapped = [getattr(inside, name, None) for name in INSIDE]
        inside = next((inner for inner in wrapped if isinstance(inner, Optimizer)), None)
    if not stepped:
        raise TypeError(
            f"optimizer: expected a torch.optim.Optimizer, or a wrapper with one as its {INSIDE[0]}, got "
            f"{type(optimizer).__name__}"
        )
    return stepped


def _calls_hooks(optimizer: Optimizer) -> bool:
    """Whether the optimizer's ``step`` calls hooks: not that of a wrapper that never ran ``Optimizer.__init__``."""
    step: Callable[..., Any] = type(optimizer).step
    return "_optimizer_step_pre_hooks" in vars(optimizer) and getattr(step, "hooked", False)


def _refuse_flattening(optimizer: Any) -> None:
    for cls in type(optimizer).__mro__:
        if cls.__name__ in FLATTENING:
            raise ValueError(
                f"optimizer: expected one that steps each parameter by itself, got {type(optimizer).__name__}, which "
                "flattens them: a skipped weight would move with the others"
            )
