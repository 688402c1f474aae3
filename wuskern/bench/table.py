"""What ``wuskern bench`` prints."""

from collections.abc import Iterator

import torch

from wuskern.bench.measure import Facts, Measured, baseline
from wuskern.bench.variants import SAID

HEAD = ("", "ms", "spread", "vs dense", "of floor", "")


def lines(measured: Measured) -> Iterator[str]:
    """The layer, the rates that the floor is made of, and a line for each variant: its median time, how many times faster than
    dense (the last one: than the sum) it is, and the share of its time that its floor is."""
    asked, dtype = measured.asked, str(measured.asked.dtype).removeprefix("torch.")
    threads = torch.get_num_threads()
    on_cpu = f"{threads} thread" + "s" * (threads > 1)
    where = on_cpu if asked.device == "cpu" else torch.cuda.get_device_name()
    columns = f" and {asked.columns} of {asked.inputs} columns" if asked.columns else ""
    yield ""
    yield f"{asked.title}, {dtype}, {where}; {asked.rows} of {asked.out} rows{columns} train"
    if not measured.facts:
        yield f"{len(measured.variants.runs)} variants are right; nothing was timed"
        return
    rates = ", ".join(f"{name} {rate:g}" for name, rate in measured.ceilings.as_dict().items())
    rounds, verified = len(measured.seconds), "" if measured.is_short else f", verified on {measured.verified} of the batch"
    yield f"forward and backward, median of {rounds} round{'s' * (rounds > 1)}{verified}; the last two: the sum over dY alone"
    yield f"floor: bytes and FLOPs at the rates that were measured: {rates}"
    yield ""
    rows = [_row(name, facts) for name, facts in measured.facts.items()]
    widths = [max(len(row[i]) for row in (HEAD, *rows)) for i in range(len(HEAD))]
    first = next(i for i, name in enumerate(measured.facts) if baseline(name) == name and i)
    for row in (HEAD, *rows[:first], ("",) * len(HEAD), *rows[first:]):
        yield _line(row, widths)


def _row(name: str, facts: Facts) -> tuple[str, ...]:
    faster, share = f"{facts['times_faster']:.2f}x", f"{facts['share_of_floor']:.0%}"
    return name, f"{facts['milliseconds']:.3f}", f"{facts['spread']:.0%}", faster, share, SAID[name]


def _line(row: tuple[str, ...], widths: list[int]) -> str:
    name, *numbers, said = row
    cells = [name.ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(numbers, widths[1:-1], strict=True)), said]
    return "  ".join(cells).rstrip()
