"""The tables of bench/results/memory.json."""

from typing import Any

MIB = 2**20
MODES = {"batch statistics": "", "evaluation": ", BatchNorm in evaluation"}


def render(content: dict[str, Any]) -> str:
    """What forward keeps and the peak of the process, then the times of the layers."""
    parts = [_bytes(content["bytes"])] if content.get("bytes") else []
    parts += [_times(content["times"])] if content.get("times") else []
    return "\n\n".join(parts)


def _bytes(part: dict[str, Any]) -> str:
    lines = ["| network | what trains | kept by forward, MiB | of dense | process peak of a step, MiB | of dense |"]
    lines.append("| " + " | ".join(["---"] * 6) + " |")
    dense = {row["network"]: row for row in part["rows"] if row["way"] == "dense" and row["mode"] == "batch statistics"}
    for row in part["rows"]:
        base = dense[row["network"]]
        cells = [row["network"] + MODES[row["mode"]], row["way"]]
        for size in ("kept_bytes", "peak_bytes"):
            cells += [f"{row[size] / MIB:.0f}", f"{row[size] / base[size]:.2f}x"]
        lines.append(f"| {' | '.join(cells)} |")
    e = part["environment"]
    return "\n".join(lines) + f"\n\nfloat32, {e['processor']}, {e['threads']} threads, torch {e['torch']}."


def _times(part: dict[str, Any]) -> str:
    lines = ["| layer | input | dtype | memory format | PyTorch's, ms | keeping less, ms | ratio |"]
    lines.append("| " + " | ".join(["---"] * 7) + " |")
    for row in part["rows"]:
        form = "channels_last" if row["channels_last"] else "contiguous"
        slower = " **slower**" if round(row["over_stock"], 2) > 1 else ""
        cells = [row["layer"], " x ".join(map(str, row["shape"])), row["dtype"], form]
        cells += [f"{row['stock_ms']:.2f}", f"{row['ours_ms']:.2f}", f"{row['over_stock']:.2f}x{slower}"]
        lines.append(f"| {' | '.join(cells)} |")
    e = part["environment"]
    return "\n".join(lines) + f"\n\n{e['processor']}, {e['threads']} threads, torch {e['torch']}, {part['rounds']} rounds."
