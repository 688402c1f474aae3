"""Which cases of its grids a run has: what tells nothing new is left out, or left to ``make test-more``."""

import itertools
import os
import zlib

import pytest
import torch

Case = tuple[tuple[str, int], ...]  # of each parameter its name and a number of its value


def parameters(item: pytest.Item) -> dict[str, object]:
    return item.callspec.params if hasattr(item, "callspec") else {}


def interpreted_in_other_dtypes(items: list[pytest.Item]) -> set[pytest.Item]:
    """Triton's interpreter takes one way for all dtypes, and takes its time: it has each case of a test in one of the dtypes
    that the test names, which the case's name decides; no product in bfloat16, which it computes wrongly. GPUs have all."""
    dtypes_of: dict[str, list[pytest.Item]] = {}
    for item in items if "TRITON_INTERPRET" in os.environ else ():
        params = parameters(item)
        interpreted = params.get("backend") == "triton" and params.get("device", "cpu") == "cpu"
        if interpreted and "case" in params and "dtype" in params:
            dtypes_of.setdefault(item.nodeid.replace(str(params["dtype"]), ""), []).append(item)
    kept = {_one_of(same, name) for name, same in dtypes_of.items()}
    return {item for same in dtypes_of.values() for item in same} - kept


def _one_of(same: list[pytest.Item], name: str) -> pytest.Item:
    products = not {"linear", "conv"}.isdisjoint(same[0].fixturenames)
    right = [item for item in same if not (products and parameters(item)["dtype"] is torch.bfloat16)]
    return right[zlib.crc32(name.encode()) % len(right)]


def thin_out(items: list[pytest.Item]) -> None:
    """Of a test that is marked ``pairs``, cases that together hold every two values of two parameters stay as they are; the
    others get the mark ``more``."""
    grids: dict[str, list[pytest.Item]] = {}
    for item in items:
        if item.get_closest_marker("pairs") and len(parameters(item)) > 2 and not item.get_closest_marker("gpu"):
            grids.setdefault(item.nodeid.split("[")[0], []).append(item)
    for grid in grids.values():
        chosen = covering([tuple((name, id(value)) for name, value in parameters(item).items()) for item in grid])
        for item in itertools.compress(grid, (number not in chosen for number in range(len(grid)))):
            item.add_marker("more")


def covering(cases: list[Case]) -> set[int]:
    """The numbers of cases that hold every pair of values there is; those with many new pairs come first."""
    pairs = [set(itertools.combinations(case, 2)) for case in cases]
    missing, chosen = set().union(*pairs), set()
    for new in range(max(map(len, pairs)), 0, -1):
        for number, of_case in enumerate(pairs):
            if len(of_case & missing) >= new:
                chosen.add(number)
                missing -= of_case
    return chosen
