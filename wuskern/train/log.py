"""Every epoch for other programs to read, while the experiment runs: as a CSV file, and for TensorBoard."""

import contextlib
import csv
import io
import math
import urllib.parse
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from wuskern.common.arguments import one_of
from wuskern.policies import Saved
from wuskern.train.files import replacing
from wuskern.train.phases import PHASES
from wuskern.train.records import Epoch, Record

KINDS = ("csv", "tensorboard")
CSV, TENSORBOARD = "log.csv", "tensorboard"  # a file, and a folder, in the experiment's
Key = tuple[str, int, int]  # of a record
NUMBERS = [f.name for f in fields(Epoch) if f.name not in ("number", "phase_seconds", "saved")]
COLUMNS = [
    "policy", "seed", "planned", "epoch", *NUMBERS, *(f"{phase}_seconds" for phase in PHASES),
    *(f"saved_{share.name}" for share in fields(Saved)),
]  # fmt: skip


def files(text: str | None) -> tuple[str, ...]:
    """What the kinds of ``--log`` are called in the experiment's folder."""
    return tuple({"csv": CSV, "tensorboard": TENSORBOARD}[kind] for kind in kinds(text))


def kinds(text: str | None) -> tuple[str, ...]:
    """The kinds that ``--log`` names, with commas between them.

    Raises:
        ValueError: an unknown kind, or TensorBoard's package is not there.
    """
    named = tuple(dict.fromkeys(text.split(","))) if text is not None else ()
    for kind in named:
        one_of("--log", kind, KINDS)
    if "tensorboard" in named:
        _summary_writer()
    return named


def _summary_writer() -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise ValueError("--log: tensorboard needs its package, which is not here (pip install tensorboard)") from error
    return SummaryWriter


def rows(records: list[Record]) -> list[dict[str, Any]]:
    """A row per epoch, by ``COLUMNS``; what a run does not have, or is not finite, is left empty. A control has a smaller
    ``planned`` than the method's runs."""
    return [_row(record, epoch) for record in records for epoch in record.epochs]


def _row(record: Record, epoch: Epoch) -> dict[str, Any]:
    which = {"policy": record.policy, "seed": record.seed, "planned": record.planned, "epoch": epoch.number}
    phases = {f"{phase}_seconds": seconds for phase, seconds in epoch.phase_seconds.items()}
    saved = {f"saved_{kind}": share for kind, share in (epoch.saved or {}).items()}
    values = which | {name: getattr(epoch, name) for name in NUMBERS} | phases | saved
    return {name: "" if isinstance(value, float) and not math.isfinite(value) else value for name, value in values.items()}


@dataclass
class Log:
    """What is logged of an experiment, in its folder ``out``: ``write`` after each round of epochs, ``close`` at the end.

    The CSV file is replaced whole, from all records: after ``--resume`` it goes on where the checkpoint is. TensorBoard's
    events are added, one folder per run; what a killed process wrote behind the checkpoint is marked as void.
    """

    out: Path
    kinds: tuple[str, ...] = ()
    _writers: dict[Key, Any] = field(default_factory=dict)
    _written: dict[Key, int] = field(default_factory=dict)

    def begin(self, records: list[Record]) -> None:
        """Takes the epochs of a checkpoint for written. Without any, events are an older experiment's, and are removed."""
        self._written = {record.key: len(record.epochs) for record in records}
        if "tensorboard" in self.kinds and not records:
            for events in (self.out / TENSORBOARD).glob("*/events.out.tfevents.*"):
                events.unlink()
                with contextlib.suppress(OSError):
                    events.parent.rmdir()

    def write(self, records: list[Record], losses: Mapping[Key, list[float]]) -> None:
        """Writes all that the records have. ``losses``: those of the last epoch's steps, for TensorBoard.

        Raises ``OSError`` where that cannot be written.
        """
        if "csv" in self.kinds:
            text = io.StringIO()
            table = csv.DictWriter(text, COLUMNS, restval="", lineterminator="\n")
            table.writeheader()
            table.writerows(rows(records))
            with replacing(self.out / CSV) as handle:
                handle.write(text.getvalue().encode())
        if "tensorboard" in self.kinds:
            for record in records:
                self._add_events(record, losses.get(record.key, []))

    def _add_events(self, record: Record, losses: list[float]) -> None:
        first = self._written.get(record.key, 0)
        if len(record.epochs) == first:
            return
        if record.key not in self._writers:
            name = f"{urllib.parse.quote(record.policy, safe=' +:=,')}-seed-{record.seed}-epochs-{record.planned}"
            folder = str(self.out / TENSORBOARD / name)
            self._writers[record.key] = _summary_writer()(folder, purge_step=first + 1 if first else None)
        writer = self._writers[record.key]
        for epoch in record.epochs[first:]:
            numbers = {name: value for name, value in _row(record, epoch).items() if isinstance(value, int | float)}
            for name in numbers.keys() - {"seed", "planned", "epoch"}:
                writer.add_scalar(name, numbers[name], epoch.number)
        before = sum(epoch.steps for epoch in record.epochs[:-1])
        for step, loss in enumerate(losses, before + 1):
            writer.add_scalar("step_loss", loss, step)
        writer.flush()
        self._written[record.key] = len(record.epochs)

    def close(self) -> None:
        for writer in self._writers.values():
            writer.close()
