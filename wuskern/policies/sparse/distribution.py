"""How sparse each layer is, for a given sparsity of all layers together."""

from collections.abc import Mapping

from torch import Tensor

from wuskern.common.arguments import number, one_of

DISTRIBUTIONS = ("uniform", "erk")


def check_sparsity(name: str, value: object) -> None:
    """Refuses what is no number from 0 and under 1."""
    number(name, value)
    if not 0 <= value < 1:  # type: ignore[operator]
        raise ValueError(f"{name}: expected a number from 0 and under 1, got {value!r}")


def sparsities(weights: Mapping[str, Tensor], sparsity: float | Mapping[str, float], distribution: str) -> dict[str, float]:
    """The share of zeros in each weight, by name. Where ``sparsity`` is a mapping it says so itself, without ``distribution``.

    Raises:
        ValueError, TypeError: a share out of its range, or names that are not those of the weights.
    """
    one_of("distribution", distribution, DISTRIBUTIONS)
    if isinstance(sparsity, Mapping):
        if set(sparsity) != set(weights):
            raise ValueError(f"sparsity: expected the layers {', '.join(weights)}, got {', '.join(map(str, sparsity))}")
        for name, value in sparsity.items():
            check_sparsity(f"sparsity of {name}", value)
        return {name: float(sparsity[name]) for name in weights}
    check_sparsity("sparsity", sparsity)
    return dict.fromkeys(weights, float(sparsity)) if distribution == "uniform" else _erk(weights, sparsity)


def _erk(weights: Mapping[str, Tensor], sparsity: float) -> dict[str, float]:
    """The sparsities of the Erdos-Renyi-kernel (Evci et al., arXiv 1911.11134): a weight's density is proportional to the sum
    of its dimensions over their product. Where that would be over 1 the weight is dense, and the others share the rest."""
    raw = {name: sum(weight.shape) / weight.numel() for name, weight in weights.items()}
    dense: set[str] = set()
    while len(dense) < len(weights):
        to_share = (1 - sparsity) * sum(w.numel() for w in weights.values()) - sum(weights[name].numel() for name in dense)
        scale = to_share / sum(raw[name] * weights[name].numel() for name in weights if name not in dense)
        most = max(raw[name] for name in weights if name not in dense)
        if scale * most <= 1:
            return {name: 0.0 if name in dense else 1 - scale * raw[name] for name in weights}
        dense |= {name for name in weights if raw[name] == most}
    return dict.fromkeys(weights, 0.0)
