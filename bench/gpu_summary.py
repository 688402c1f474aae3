"""The table that a run on a GPU ends with: by group, its cases, what they show, and how many reach their aim."""

from bench.results import Row, geometric_mean

HEADER = ("group", "cases", "shows", "mean", "worst", "aim", "reached")
PEERS = ("dense", "frozen", "plain", "compiled")
LONG = 50e-6  # seconds of a floor from which the aim is a multiple of it


def values(row: Row) -> dict[str, tuple[float, float | None, bool]]:
    """What a row shows: name -> (value, aim or None, whether more is better)."""
    derived = {name: found["median"] for name, found in row["derived"].items()}
    found = {f"over {row['peer']}": (derived["faster"], row.get("least_faster"), True)}
    if "of_copy_bandwidth" in derived:
        found[f"over {row['peer']}"] = (derived["faster"], 1.0, True)
        found["of copy bandwidth"] = (derived["of_copy_bandwidth"], row["least_of_copy"], True)
    if "over_dense" in derived:
        milliseconds = row["milliseconds"]
        best = min(milliseconds[peer] for peer in PEERS if peer in milliseconds)
        found["over dense"] = (derived["over_dense"], row.get("least_over_dense"), True)
        found["over the best peer"] = (best / milliseconds["ours"], row.get("least_over_best"), True)
    if "of_floor" in derived:
        floor = row["milliseconds"]["ours"] / derived["of_floor"] / 1e3
        found["times the floor"] = (derived["of_floor"], row.get("most_of_floor") if floor >= LONG else None, False)
    steps = {name: value for name, value in derived.items() if name.endswith("_over_dense")}
    return found | {name.replace("_", " "): (value, None, True) for name, value in steps.items()}


def lines(rows: list[Row], ceilings: dict[str, float]) -> list[str]:
    """To print: ceilings; of each group what it shows, a geometric mean and the worst, how many cases reach the aim."""
    rows = [row for row in rows if row["group"].startswith("gpu ")]
    body = [list(HEADER)]
    for group in dict.fromkeys(row["group"] for row in rows):
        shown = [values(row) for row in rows if row["group"] == group]
        names = dict.fromkeys(name for one in shown for name in one)
        body += [_line(group, name, [one[name] for one in shown if name in one]) for name in names]
    widths = [max(len(line[i]) for line in body) for i in range(len(HEADER))]
    table = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in body]
    return [*(f"{name}: {value}" for name, value in ceilings.items()), *table] if rows else ["no case was measured"]


def _line(group: str, name: str, found: list[tuple[float, float | None, bool]]) -> list[str]:
    more = found[0][2]
    numbers = [value for value, _, _ in found]
    aims = [(value, aim) for value, aim, _ in found if aim is not None]
    reached = sum((value >= aim) if more else (value <= aim) for value, aim in aims)
    said = sorted({aim for _, aim in aims})
    aim = ("at least " if more else "at most ") + " or ".join(f"{a:g}" for a in said) if aims else "-"
    worst = min(numbers) if more else max(numbers)
    mean = geometric_mean(numbers)
    return [group, str(len(found)), name, f"{mean:.2f}", f"{worst:.2f}", aim, f"{reached} of {len(aims)}" if aims else "-"]
