"""What a profile comes to, in one line."""

from collections.abc import Sequence

from wuskern.profile.result import Measured
from wuskern.profile.variants import SKIP_NAME

WORTH = 0.05  # of a step's time: less is lost in the noise, and in what a method costs
WORTH_KEPT = 0.1  # of what forward keeps
NEARLY = 0.8  # of what a skip saves: then a part of each weight, which trains all the time, is the better bargain


def verdict(ways: Sequence[Measured], outside: float | None, obstacle: str | None) -> str:
    """What to use, or "do not bother".

    Args:
        ways: measured ones, dense first. outside: seconds of a dense step outside of converted layers, if that was measured.
        obstacle: why nothing but dense was measured.
    """
    dense, *others = ways
    if not others:
        return f"do not bother: {obstacle}" if obstacle else "no verdict: there was time for dense steps alone"
    best = max(others, key=_saved)
    if _saved(best) < WORTH:
        return _without_time(dense, others, best, outside)
    return _with_time(dense, others)


def _without_time(dense: Measured, others: Sequence[Measured], best: Measured, outside: float | None) -> str:
    thrifty = min(others, key=lambda way: (way.kept, way.of_dense))
    if _kept(thrifty, dense) >= WORTH_KEPT:
        return (
            f"for memory alone: {thrifty.name} ({thrifty.methods}) keeps {_kept(thrifty, dense):.0%} less for backward, "
            f"in {thrifty.of_dense:.0%} of the time"
        )
    why = "" if outside is None else f"; {max(0.0, outside) / dense.seconds:.0%} of a step is outside of the layers"
    return f"do not bother: the best of these, {best.name}, saves {max(0.0, _saved(best)):.0%} of a step{why}"


def _with_time(dense: Measured, others: Sequence[Measured]) -> str:
    skip = next((way for way in others if way.name == SKIP_NAME), None)
    parts = [way for way in others if way.name.startswith(("rows", "columns"))]
    part = max(parts, key=_saved, default=None)
    head = skip or part or others[0]
    if part is not None and _saved(part) >= max(WORTH, NEARLY * _saved(head)):
        head = part
    if _saved(head) < WORTH:  # then what is frozen saves more
        head = min((way for way in others if _saved(way) >= WORTH), key=_saved)
    while_it_lasts = " of each step that skips" if head is skip else " of each step"
    kept = _kept(head, dense)
    memory = f" and {kept:.0%} of what forward keeps" if kept >= 0.01 else ""
    line = f"use {head.name} ({head.methods}): it saves {_saved(head):.0%}{while_it_lasts}{memory}"
    more = sorted((way for way in others if _saved(way) > _saved(head) + WORTH), key=_saved, reverse=True)[:2]
    return line + "".join(f"; {way.name} ({way.methods}) {_saved(way):.0%}" for way in more)


def _saved(way: Measured) -> float:
    return 1 - way.of_dense


def _kept(way: Measured, dense: Measured) -> float:
    return 1 - way.kept / dense.kept if dense.kept else 0.0
