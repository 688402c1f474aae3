"""The file with all results of an experiment."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from wuskern import ops
from wuskern.doctor import environment as of_machine
from wuskern.kernels.backends import choose
from wuskern.train.files import opened, replacing
from wuskern.train.methods import DENSE
from wuskern.train.records import Record
from wuskern.train.summary import control, policy_records, summarise, verdict


def environment(device: str = "cpu") -> dict[str, Any]:
    """What a reader needs to know to judge the seconds; nothing that names a machine."""
    backends = {op: choose(op, torch.device(device).type).backend for op in ops.NAMES}
    return of_machine(device) | {"backends": backends}


def save(
    path: Path, about: dict[str, Any], device: str, test_labels: int, records: list[Record], peaks: dict[str, int]
) -> None:
    """Replaces the file in one step.

    Args:
        about: ``experiment``, its identity whatever its arguments; ``arguments``; ``files``, checksums of the user's own;
            ``complete``, whether nothing of the plan is missing.
        peaks: bytes of a step, by method.
    """
    rows = summarise(records, test_labels)
    content = {
        "experiment": about["experiment"],
        "arguments": about["arguments"],
        "files": about["files"],
        "environment": environment(device),
        "complete": about["complete"],
        "summary": [asdict(row) for row in rows],
        "verdict": verdict(rows, test_labels),
        "peak_bytes": peaks,
        "runs": [_run(record) for record in policy_records(records)],
        "controls": _controls(records),
    }
    replace(path, json.dumps(content, indent=1))


def experiment_of(path: Path) -> str | None:
    """The identity of the experiment that wrote the file; None if the file does not say, or is not there."""
    try:
        with opened(path) as handle:
            content = json.load(handle)
    except (OSError, ValueError, RecursionError):
        return None
    identity = content.get("experiment") if isinstance(content, dict) else None
    return identity if isinstance(identity, str) else None


def _run(record: Record) -> dict[str, Any]:
    return {"policy": record.policy, "seed": record.seed, "epochs": [epoch.as_dict() for epoch in record.epochs]}


def _controls(records: list[Record]) -> list[dict[str, Any]]:
    """The dense run in the time of each method's run: the same one where two methods took the same number of epochs."""
    methods = [record for record in policy_records(records) if record.policy != DENSE]
    paired = [(method, control(records, method.policy, method.seed)) for method in methods]
    return [{"control_of": m.policy, "planned": record.planned, **_run(record)} for m, record in paired if record is not None]


def replace(path: Path, text: str) -> None:
    with replacing(path) as handle:
        handle.write(text.encode() + b"\n")
