"""The sections about columns: means over layers by share of the columns and dtype."""

from typing import Any

from bench.render import machine, mean, rows_of, table, worst

HEADER = [
    "columns trained", "dtype", "over dense", "worst", "over a stock freeze", "over a slice in plain PyTorch", "worst",
    "of the ideal", "worst",
]  # fmt: skip


def render(content: dict[str, Any]) -> str:
    """Means and worst cases of Linears and of convolutions, as Markdown."""
    return f"{_layers('columns linear', content)}\n\n{_layers('columns conv2d', content)}"


def _layers(group: str, content: dict[str, Any]) -> str:
    rows, body = rows_of(content, group), []
    for ratio, dtype in dict.fromkeys((row["ratio"], row["dtype_name"]) for row in rows):
        alike = [row for row in rows if (row["ratio"], row["dtype_name"]) == (ratio, dtype)]
        over = [function(alike, name) for name in ("over_dense", "over_frozen", "faster") for function in (mean, worst)]
        del over[3]  # the worst over a freeze, which computes less
        body.append([f"{ratio:.0%}", dtype, *over, mean(alike, "of_ideal"), worst(alike, "of_ideal")])
    layers = "Linears" if group == "columns linear" else "Conv2ds, in both memory formats"
    rounds = min(row["rounds"] for row in rows)
    return f"{table(HEADER, body)}\n\n{len(rows)} cases of {layers}; {machine(content)}, {rounds} rounds."
