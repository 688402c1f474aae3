"""Whether two runs agree within the spread that they state.

python -m bench.compare A.json B.json

Compared are the ratios and differences that each row derives within its rounds, not milliseconds: those follow the
machine's clock. Two numbers agree if they are apart by no more than the larger of their interquartile ranges, or by one
percent. The exit status is 1 if a number does not, or if a row is in one file only.
"""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bench.results import Row, geometric_mean, medians, read

LEAST = 0.01


def agree(a: dict[str, float], b: dict[str, float]) -> bool:
    largest = max(abs(a["median"]), abs(b["median"]))
    return abs(a["median"] - b["median"]) <= max(a["iqr"], b["iqr"], LEAST * largest)


def disagreements(first: list[Row], second: list[Row]) -> list[str]:
    """A line for each number of one group that does not agree, and for each row that only one run has."""
    if not first or not second:
        return [f"measured in the {'first' if first else 'second'} run only"]
    a, b = ({row["case"]: row for row in rows} for rows in (first, second))
    lines = [
        f"{case}: only in the {'first' if case in a else 'second'} run" for case in [*a, *b] if case not in a or case not in b
    ]
    for case in (case for case in a if case in b):
        one, two = a[case]["derived"], b[case]["derived"]
        lines += [f"{case}: {name} {_number(one[name])} and {_number(two[name])}"
                  for name in one if name not in two or not agree(one[name], two[name])]  # fmt: skip
    return lines


def _number(value: dict[str, float]) -> str:
    return f"{value['median']:.3f} +- {value['iqr']:.3f}"


def by_group(first: dict[str, Any], second: dict[str, Any]) -> Iterator[tuple[str, str, list[str]]]:
    """Per group: its name, what the two runs say of it, and where they disagree."""
    groups = dict.fromkeys(row["group"] for row in first["rows"] + second["rows"])
    for group in groups:
        a, b = ([row for row in content["rows"] if row["group"] == group] for content in (first, second))
        lines = disagreements(a, b)
        means = " and ".join(f"{geometric_mean(medians(rows, 'faster')):.2f}" if rows else "-" for rows in (a, b))
        total = len({row["case"] for row in a + b})
        apart = len({line.split(":")[0] for line in lines}) if a and b else total
        yield group, f"{total - apart} of {total} rows agree; peer / ours {means} (geometric means)", lines


def main(arguments: list[str]) -> int:
    if len(arguments) != 2:
        print("usage: python -m bench.compare A.json B.json", file=sys.stderr)
        return 2
    try:
        first, second = (read(Path(argument)) for argument in arguments)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    apart = False
    for group, statement, lines in by_group(first, second):
        print(f"{group}: {statement}")
        for line in lines:
            print(f"    {line}")
        apart = apart or bool(lines)
    return int(apart)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
