"""The section about new tokens of a table: a step of ours against the others', by the table's size."""

from typing import Any

from bench.render import machine, number, rows_of, table

PEERS = {
    "faster": "over torch's dense AdamW",
    "over_sparse": "over SparseAdam",
    "over_plain": "over rows of their own, joined in forward",
    "over_peft": "over peft's trainable tokens",
}


def render(content: dict[str, Any]) -> str:
    """Every case, and the memory of ours and of the dense step, as Markdown."""
    rows = rows_of(content, "embedding")
    peers = [name for name in PEERS if name in rows[0]["derived"]]
    body = []
    for row in rows:
        mebibytes = (f"{row['peak_bytes'][name] / 2**20:.0f}" for name in ("ours", "dense"))
        body.append([row["case"], f"{row['milliseconds']['ours']:.2f}", *(number(row, name) for name in peers), *mebibytes])
    header = ["table", "ours, ms", *(PEERS[name] for name in peers), "MiB of a step, ours", "dense"]
    new, tokens, rounds = rows[0]["new"], rows[0]["tokens"], min(row["rounds"] for row in rows)
    return f"{table(header, body)}\n\n{new} new tokens train, of a batch of {tokens}; {machine(content)}, {rounds} rounds."
