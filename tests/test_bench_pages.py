"""The pages of docs/methods, and how docstrings become text."""

import dataclasses

import pytest

from bench import docstrings, render_pages
from bench.results import FOLDER
from wuskern.train.methods import PARTS

DOCSTRING = """Does something with :class:`~a.Thing` and ``x | y``.

Args:
    one, two: numbers, the |sum|
        of which counts.
    three: a flag.

Raises:
    ValueError: never."""


@pytest.fixture(scope="module")
def pages():
    return render_pages.pages(FOLDER)


def test_sections_become_lists_in_markdown():
    assert docstrings.markdown(DOCSTRING).splitlines() == [
        "Does something with `a.Thing` and `x | y`.",
        "",
        "**Args**",
        "",
        "- `one, two`: numbers, the |sum| of which counts.",
        "- `three`: a flag.",
        "",
        "**Raises**",
        "",
        "- `ValueError`: never.",
    ]


def test_a_bar_is_no_substitution():
    assert r"the \|sum\| of which" in docstrings.restructured(DOCSTRING)
    assert "``x | y``" in docstrings.restructured(DOCSTRING)
    assert docstrings.restructured("``|dY|`` of |x|") == r"``|dY|`` of \|x\|"


@pytest.mark.parametrize("name", PARTS)
def test_a_page_says_what_its_class_declares(pages, name):
    kind, page = PARTS[name], pages[f"{render_pages.file_of(name)}.md"]
    assert page.startswith(f"# {kind.__name__}\n\nOn the command line: `{name}`. Source: {kind.source}.")
    for field in dataclasses.fields(kind):
        default = "has to be given" if field.default is dataclasses.MISSING else f"`{field.default!r}`"
        assert f"| `{field.name}` | {default}" in page
    assert all(f"`{call}`" in page for call in kind.needs)
    assert f"]({render_pages.file_of(name)}.md) | `{name}` |" in pages["index.md"]


def test_a_page_names_its_partners_and_why_others_are_none(pages):
    page = pages["meprop.md"]
    assert "It goes with `wus`," in page
    others = "`ssprop`, `memory`, `tinyprop`, `mesimp`, `rigl`, `mesimp:simplify=true`"
    assert f"- Not with {others}: only one can decide of a layer which rows have gradients." in page


def test_a_page_has_what_was_measured(pages):
    assert "| [VGG-11](../results/training.md) | `wus` |" in pages["wus.md"]
    assert "`wus+lr:" not in pages["wus.md"]
