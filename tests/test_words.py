"""What a docstring's first line has to be: a phrase with a subject, or a sentence that starts with what is done."""

import ast
import re
from pathlib import Path

import pytest

import wuskern

PACKAGE = Path(wuskern.__file__).parent
OPENERS = {
    "a", "an", "the", "this", "each", "every", "all", "any", "both", "one", "two", "no", "some", "nothing", "everything",
    "what", "whether", "how", "which", "where", "when", "who", "why",
}  # fmt: skip
NO_OPENERS = {"As", "Its", "Across", "Besides", "Unless", "Thus", "Always", "Towards"}  # neither plurals nor verbs
EXAMPLES = {
    "Of a number of layers; ...": False,
    "As WUS.step": False,
    "In a batch of so many.": False,
    "By the gradient that each row has had.": False,
    "L1 of the gradient": False,
    "Over 0 and up to 1.": False,
    "Those of nested sequences": False,
    "How many.": False,
    ":meth:`saw`, of what it wants to know": False,
    "The rows that have a gradient.": True,
    "Whether the weight is a constant.": True,
    "Adds what was sent.": True,
    "Rows of the weight, ascending.": True,
    "``k`` of ``out`` rows at random": True,
    "3 steps before a capture.": True,
}


def has_subject(line: str) -> bool:
    """Whether a line opens with a determiner, a question word, a plural, a verb, a number or code, and has three words."""
    first = line.split()[0]
    word = first.rstrip(".,:;")
    opens = word.lower() in OPENERS or (word.isalpha() and word.endswith("s") and word not in NO_OPENERS)
    return len(line.split()) > 2 and (opens or re.match(r"``|\d", first) is not None)


@pytest.mark.parametrize(("line", "expected"), EXAMPLES.items())
def test_the_rule(line, expected):
    assert has_subject(line) == expected


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_the_first_line_of_every_docstring_has_a_subject(path):
    nodes = [n for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.Module | ast.ClassDef | ast.FunctionDef)]
    lines = [text.splitlines()[0] for node in nodes if (text := ast.get_docstring(node))]
    assert [line for line in lines if not has_subject(line)] == []
