"""A profile for a terminal of 100 columns."""

import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from wuskern.profile.result import LayerTimes, LeftAlone, Profile

WIDTH = 100
MOST_SHAPES, MOST_REASONS = 8, 6
MIB = 2**20


def text_of(profile: "Profile") -> str:
    """All that a reader needs: the verdict first."""
    parts = [_filled(profile.verdict), _what(profile), _coverage(profile), _ways(profile), _layers(profile), _rest(profile)]
    return "\n\n".join(part for part in parts if part)


def _filled(text: str) -> str:
    return textwrap.fill(text, WIDTH, subsequent_indent="  ")


def _what(p: "Profile") -> str:
    e = p.environment
    return _filled(
        f"{p.model}, {e['dtype']}, on {e['device']} with {e['threads']} threads. A step is forward and backward, without the "
        f"optimizer's; its loss is {p.loss}. Medians of {p.rounds} rounds, {p.took:.0f} s in all."
    )


def _coverage(p: "Profile") -> str:
    head = f"{len(p.covered)} layers with {p.share:.1%} of the weights of layers ({p.of_parameters:.1%} of all parameters)"
    lines = [_filled(f"Converted: {head}.")]
    reasons: dict[tuple[str, str], list[LeftAlone]] = {}
    for layer in p.left_alone:
        reasons.setdefault((layer.kind, layer.reason), []).append(layer)
    for (kind, reason), layers in [*reasons.items()][:MOST_REASONS]:
        weights = sum(layer.weights for layer in layers)
        lines.append(_filled(f"Left alone: {len(layers)} {kind}, {weights:,} weights: {reason} ({_names(layers)})."))
    if len(reasons) > MOST_REASONS:
        lines.append(f"Left alone: {len(reasons) - MOST_REASONS} more kinds.")
    return "\n".join(lines)


def _names(layers: "Sequence[LeftAlone]") -> str:
    names = ", ".join(layer.name or "the model itself" for layer in layers[:3])
    return names + (", ..." if len(layers) > 3 else "")


def _ways(p: "Profile") -> str:
    head = ["way to train", "time", "step, ms", "quartiles", "kept, MiB", "peak, MiB", "GFLOP", "policies"]
    rows = [
        [
            way.name + ("*" if way.left_dense else ""),
            f"{way.of_dense:.0%}",
            _ms(way.seconds),
            f"{_ms(way.low)}-{_ms(way.high)}",
            f"{way.kept / MIB:.1f}",
            f"{way.peak / MIB:.1f}",
            f"{way.flops / 1e9:.3g}",
            way.methods,
        ]
        for way in p.ways
    ]
    most = max((way.left_dense for way in p.ways), default=0)
    foot = f"\n* up to {most} layers cannot, and were dense" if most else ""
    return _table(head, rows, left=(0, 7)) + foot


def _layers(p: "Profile") -> str:
    if not p.layers or p.outside is None:
        return ""
    shapes: dict[str, list[LayerTimes]] = {}
    for layer in p.layers:
        shapes.setdefault(layer.shape, []).append(layer)
    ordered = sorted(shapes.items(), key=lambda item: -sum(layer.saved for layer in item[1]))
    rows = [_row(shape, layers) for shape, layers in ordered[:MOST_SHAPES]]
    if rest := [layer for _, layers in ordered[MOST_SHAPES:] for layer in layers]:
        rows.append(_row(f"{len(ordered) - MOST_SHAPES} other shapes", rest))
    rows.append(_row("all", list(p.layers)))
    head = ["layers, ms of a step", "number", "forward", "dgrad", "wgrad", "a skip saves"]
    dense = p.ways[0].seconds
    end = f"Outside of these layers: {_ms(p.outside)} ms, {p.outside / dense:.0%} of a dense step."
    if p.composed is not None and p.measured is not None:
        end += f" A skip saves {p.composed:.1%} of it, composed of its layers; {p.measured:.1%}, of whole steps."
    return f"{_table(head, rows)}\n{_filled(end)}"


def _row(shape: str, layers: "Sequence[LayerTimes]") -> list[str]:
    sums = (sum(getattr(layer, name) for layer in layers) for name in ("forward", "dgrad", "wgrad", "saved"))
    return [shape, str(len(layers)), *map(_ms, sums)]


def _rest(p: "Profile") -> str:
    lines = [f"Did not fit into the time: {', '.join(p.did_not_fit)}."] if p.did_not_fit else []
    return "\n".join(map(_filled, [*lines, *p.notes]))


def _ms(seconds: float) -> str:
    """Milliseconds with three digits or more."""
    value = 1e3 * seconds
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"


def _table(head: list[str], rows: list[list[str]], left: tuple[int, ...] = (0,)) -> str:
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    lines = [
        [c.ljust(w) if i in left else c.rjust(w) for i, (c, w) in enumerate(zip(r, widths, strict=True))] for r in [head, *rows]
    ]
    return "\n".join("  ".join(line).rstrip() for line in lines)
