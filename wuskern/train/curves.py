"""Curves over seeds as inline SVG: a thin line per seed, a thick one for the mean. Colours are those of the page around it."""

import html
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from wuskern.train.axes import percent, place_of, ticks_between
from wuskern.train.looks import COLOURS, Look

WIDTH, HEIGHT = 760.0, 340.0
LEFT, RIGHT, TOP, BOTTOM = 70.0, 16.0, 14.0, 44.0
SIZE = 5.0  # of a marker
TICKS = 6  # about as many
Point = tuple[float, float]
# Of each marker: corners, where the first one is in degrees, and how far in every second one lies.
SHAPES = {
    "s": (4, 45, 1.0), "D": (4, 0, 1.0), "^": (3, -90, 1.0), "v": (3, 90, 1.0), "<": (3, 180, 1.0), ">": (3, 0, 1.0),
    "p": (5, -90, 1.0), "d": (4, 0, 0.6), "P": (8, 0, 0.5), "X": (8, 45, 0.5), "*": (10, -90, 0.45),
}  # fmt: skip


@dataclass(frozen=True)
class Axis:
    """A scale: ``place`` of a value, any increasing function, its ends, and the values that are written on it."""

    label: str
    low: float
    high: float
    ticks: Sequence[float]
    text: Callable[[float], str]
    place: Callable[[float], float] = float

    def share(self, value: float) -> float:
        low, high = self.place(self.low), self.place(self.high)
        return (self.place(value) - low) / (high - low)


def linear(label: str, values: Sequence[float], text: Callable[[float], str], *, from_zero: bool = False) -> Axis:
    """An axis with round ticks that holds all values."""
    low, high = (0.0 if from_zero else min(values)), max(values)
    if not high > low:
        low, high = low - 0.5 * (not from_zero), high + 0.5
    step = 10.0 ** math.floor(math.log10((high - low) / TICKS))
    step = next(step * factor for factor in (1, 2, 5, 10) if (high - low) / (step * factor) <= TICKS)
    ticks = [n * step for n in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]
    margin = 0.0 if from_zero else 0.04 * (high - low)
    return Axis(label, low - margin, high + 0.02 * (high - low), ticks, text)


def accuracies(label: str, values: Sequence[float]) -> Axis:
    """An axis of accuracies by the logarithm of the error, as in the pictures, so that ends can be told apart."""
    low, high = min(values), max(values)
    if not high > low:
        low, high = max(low - 0.05, 0.0), min(high + 0.05, 1.0)
    return Axis(label, low, high, ticks_between(low, high), percent, place_of)


def chart(title: str, text: str, x: Axis, y: Axis, lines: Mapping[str, list[list[Point]]], looks: Mapping[str, Look]) -> str:
    """The chart as an ``svg`` element, for whose readers ``title`` and ``text`` say what it shows.

    Args:
        lines: by name, the points of each seed.
    """

    def at(point: Point) -> Point:
        return LEFT + x.share(point[0]) * (WIDTH - LEFT - RIGHT), HEIGHT - BOTTOM - y.share(point[1]) * (HEIGHT - TOP - BOTTOM)

    parts = [_grid(x, y, at)]
    for name, seeds in lines.items():
        places = [[at(point) for point in seed] for seed in seeds]
        if len(places) > 1:
            parts += [_line(seed, looks[name], "seed") for seed in places]
        mean = [at(point) for point in _mean(seeds)]
        parts += [_line(mean, looks[name], "mean"), marker(mean[-1], looks[name])] if mean else []
    body = "\n".join(parts)
    return (
        f'<svg class="chart" viewBox="0 0 {WIDTH:g} {HEIGHT:g}" role="img">\n'
        f"<title>{html.escape(title)}</title>\n<desc>{html.escape(text)}</desc>\n{body}\n</svg>"
    )


def swatch(look: Look) -> str:
    """A short line with its marker, for a legend."""
    line = _line([(2, 8), (34, 8)], look, "mean")
    return f'<svg class="swatch" viewBox="0 0 36 16" aria-hidden="true">{line}{marker((18, 8), look)}</svg>'


def marker(centre: Point, look: Look) -> str:
    colour = f'class="c{COLOURS.index(look.colour)} marker"'
    if look.marker not in SHAPES:
        return f'<circle {colour} cx="{centre[0]:.1f}" cy="{centre[1]:.1f}" r="{0.85 * SIZE:g}"/>'
    corners, first, inner = SHAPES[look.marker]
    radii = [SIZE * (inner if corner % 2 else 1.0) for corner in range(corners)]
    angles = [math.radians(first + 360 * corner / corners) for corner in range(corners)]
    points = [(centre[0] + r * math.cos(a), centre[1] + r * math.sin(a)) for r, a in zip(radii, angles, strict=True)]
    return f'<polygon {colour} points="{_points(points)}"/>'


def _mean(seeds: list[list[Point]]) -> list[Point]:
    """The mean of the seeds' points, as far as all of them go."""
    together = zip(*(seed for seed in seeds if seed), strict=False)
    return [(sum(x for x, _ in points) / len(points), sum(y for _, y in points) / len(points)) for points in together]


def _line(points: Sequence[Point], look: Look, kind: str) -> str:
    dashes = "" if isinstance(look.line, str) else f' stroke-dasharray="{" ".join(map(str, look.line[1]))}"'
    return f'<polyline class="c{COLOURS.index(look.colour)} {kind}" points="{_points(points)}"{dashes}/>'


def _points(points: Sequence[Point]) -> str:
    return " ".join(f"{x:.1f},{y:.1f}" for x, y in points)


def _grid(x: Axis, y: Axis, at: Callable[[Point], Point]) -> str:
    bottom, parts = HEIGHT - BOTTOM, []
    for tick in x.ticks:
        place = at((tick, y.low))[0]
        parts.append(f'<line class="grid" x1="{place:.1f}" x2="{place:.1f}" y1="{TOP:g}" y2="{bottom:g}"/>')
        parts.append(f'<text x="{place:.1f}" y="{bottom + 16:g}" text-anchor="middle">{html.escape(x.text(tick))}</text>')
    for tick in y.ticks:
        place = at((x.low, tick))[1]
        parts.append(f'<line class="grid" x1="{LEFT:g}" x2="{WIDTH - RIGHT:g}" y1="{place:.1f}" y2="{place:.1f}"/>')
        parts.append(f'<text x="{LEFT - 6:g}" y="{place + 4:.1f}" text-anchor="end">{html.escape(y.text(tick))}</text>')
    middle = (LEFT + WIDTH - RIGHT) / 2, (TOP + bottom) / 2
    parts.append(f'<text x="{middle[0]:g}" y="{HEIGHT - 8:g}" text-anchor="middle">{html.escape(x.label)}</text>')
    turned = f'transform="rotate(-90 14 {middle[1]:g})"'
    parts.append(f'<text x="14" y="{middle[1]:g}" {turned} text-anchor="middle">{html.escape(y.label)}</text>')
    return "\n".join(parts)
