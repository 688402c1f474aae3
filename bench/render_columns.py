"""The sections about parts of a weight: columns, the optimizer of a part, embeddings."""

from typing import Any

from bench.render import machine, mean, number, rows_of, table, worst

PEERS = ("foreach", "fused")

HEADER = [
    "columns trained", "dtype", "over dense", "worst", "over a stock freeze", "over a slice in plain PyTorch", "worst",
    "of the ideal", "worst",
]  # fmt: skip


def columns(content: dict[str, Any]) -> str:
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


def optim_part(content: dict[str, Any]) -> str:
    """The steps of optimizers that keep moments of a part, and what they keep, as Markdown."""
    rows = rows_of(content, "optim part")
    body = [
        [row["case"], *(f"{row['milliseconds'][name]:.2f}" for name in ("ours", *PEERS)), number(row, "over_best"), _share(row)]
        for row in rows
    ]
    header = [
        "AdamW, the part that trains",
        "ours ms",
        *(f"torch's {name} ms" for name in PEERS),
        "faster than the best",
        "moments",
    ]
    return f"{table(header, body)}\n\n{machine(content)}, {min(row['rounds'] for row in rows)} rounds."


def _share(row: dict[str, Any]) -> str:
    return f"{row['derived']['of_state']['median']:.1%} of torch's"
