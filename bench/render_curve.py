"""The section about one long fine-tuning: accuracy over the seconds, and when dense's last accuracy was reached."""

from itertools import zip_longest
from typing import Any

from bench.render import table

ROWS = 8  # of the table
NEAR = 0.5  # points below dense's last accuracy


def render(content: dict[str, Any]) -> str:
    """The table, and a sentence for each method that is compared with dense."""
    curves = {
        record["what"]["method"]: [(at, 100 * accuracy) for at, accuracy in record["curve"]] for record in content["curves"]
    }
    looks = list(zip_longest(*curves.values()))
    step = max(1, len(looks) // ROWS)
    body = [
        [f"{next(filter(None, look))[0]:.0f}", *(f"{point[1]:.1f} %" if point else "" for point in look)]
        for look in looks[step - 1 :: step]
    ]
    said = [_reached(method, curve, curves["dense"]) for method, curve in curves.items() if method != "dense"]
    e = content["environment"]
    ended = f"One seed; the time is of {e['processor']}, torch {e['torch']}."
    return "\n\n".join([table(["seconds", *curves], body), " ".join([*said, ended])])


def reached(curve: list[tuple[float, float]], accuracy: float) -> float | None:
    """The seconds after which a curve was first seen at this accuracy; None: never."""
    return next((at for at, seen in curve if seen >= accuracy), None)


def _reached(method: str, curve: list[tuple[float, float]], dense: list[tuple[float, float]]) -> str:
    wanted = dense[-1][1] - NEAR
    at, of_dense = reached(curve, wanted), reached(dense, wanted)
    assert of_dense is not None  # at its end, if not before
    if at is None:
        return f"`{method}` does not reach dense's last accuracy less {NEAR} points ({wanted:.1f} %)."
    return (
        f"Dense's last accuracy less {NEAR} points ({wanted:.1f} %) is reached by dense after {of_dense:.0f} s, by `{method}` "
        f"after {at:.0f} s: **{of_dense / at:.1f}x** sooner."
    )
