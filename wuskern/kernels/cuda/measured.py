"""Tables of what the ways of ``choice`` were measured to take: ``tables/<architecture>.json`` beside this file, one for each
architecture that somebody measured (``python -m bench.regret --device cuda --fill``). Without a file the table is empty."""

import functools
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from wuskern.kernels.cuda.product import Product, distance

FORMAT = 1
FOLDER = Path(__file__).parent / "tables"
NEIGHBOURS = 3


@dataclass(frozen=True)
class Point:
    """A problem, and the seconds of each way that was measured: pairs, so that it can be a key."""

    product: Product
    seconds: tuple[tuple[str, float], ...]


@functools.cache
def of(architecture: str) -> tuple[Point, ...]:
    """The table of the package."""
    path = FOLDER / f"{architecture}.json"
    return read(path) if path.exists() else ()


def read(path: Path) -> tuple[Point, ...]:
    """Raises ``ValueError`` for a file that :func:`content` did not make."""
    try:
        found = json.loads(path.read_text())
        if found["format"] != FORMAT:
            raise ValueError(f"format {found['format']}")
        return tuple(Point(Product(**row["product"]), tuple(row["seconds"].items())) for row in found["points"])
    except (OSError, KeyError, TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"{path}: expected a table of format {FORMAT}, got {error}") from error


def content(points: Sequence[Point], environment: dict[str, Any]) -> str:
    """Of a file: where it was measured, and the points."""
    rows = [{"product": asdict(point.product), "seconds": dict(point.seconds)} for point in points]
    return json.dumps({"format": FORMAT, "environment": environment, "points": rows}, indent=1)


def slowdown(table: Sequence[Point], p: Product, way: str, floor: Callable[[Product], float]) -> float | None:
    """What ``way`` takes over ``floor`` near ``p``: of the nearest points of its kind, a mean of logarithms, the nearer the
    heavier; the point itself where it was measured. None where the table has no such point."""
    kin = [(point.product, dict(point.seconds)) for point in table if point.product.kind == p.kind]
    near = sorted((distance(q, p), math.log(its[way] / floor(q))) for q, its in kin if way in its)[:NEIGHBOURS]
    if not near:
        return None
    if near[0][0] == 0:
        return math.exp(near[0][1])
    weights = [1 / far**2 for far, _ in near]
    return math.exp(sum(w * value for w, (_, value) in zip(weights, near, strict=True)) / sum(weights))
