"""The rooms of the package: imports run one way, and the root stays small."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import wuskern

PACKAGE = Path(wuskern.__file__).parent
MOST_AT_THE_ROOT = 15
# A room knows those behind it alone.
ROOMS = [
    "__init__", "__main__", "cli", "integrations", "bench", "train", "profile", "doctor", "summary", "policies", "simplify",
    "distributed", "optim", "cuda_graphs", "plans", "convert", "memory", "layers", "modules", "functional", "embedding",
    "autograd", "gradients", "columns", "tokens", "kinds", "choices", "delivery", "sparse_grad", "ops", "kernels", "common",
]  # fmt: skip


def imported(path: Path) -> Iterator[str]:
    """The modules of the package that a file imports, also those that only some functions import."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}: expected imports by the whole name, got a relative one"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_knows_those_behind_it_alone(room):
    files = [PACKAGE / f"{room}.py"] if (PACKAGE / f"{room}.py").exists() else sorted((PACKAGE / room).rglob("*.py"))
    known = ROOMS[ROOMS.index(room) :]
    found = [(path.name, name) for path in files for name in imported(path) if name.startswith("wuskern.")]
    assert [(file, name) for file, name in found if name.split(".")[1] not in known] == []
    assert files


def test_every_file_is_in_a_room_and_the_root_holds_few():
    root = [path.stem for path in PACKAGE.glob("*.py")]
    assert len(root) <= MOST_AT_THE_ROOT
    assert {*root, *(path.parent.name for path in PACKAGE.glob("*/__init__.py"))} == set(ROOMS)
