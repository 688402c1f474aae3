"""Sphinx: HTML from these pages and from the package's docstrings, without a network. `make docs` runs it."""

import re
import sys
import textwrap
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

project = "wuskern"
extensions = ["myst_parser", "sphinx.ext.autodoc"]
exclude_patterns = ["requirements.txt"]
html_theme = "furo"
html_title = "wuskern"
myst_heading_anchors = 3
autodoc_member_order = "bysource"
autodoc_typehints = "none"  # the text says what an argument is


def sections(_: Any, what: str, name: str, of: object, options: Any, lines: list[str]) -> None:
    """Makes lists of "Args:", "Raises:" and the like. An entry begins where others do, and may be of several names."""
    found: list[str] = []
    for block in re.split(r"\n{2,}", "\n".join(lines)):
        head, _, rest = block.partition("\n")
        if re.fullmatch(r"[A-Z]\w+:", head):
            entries = re.split(r"\n(?! )", textwrap.dedent(rest))
            found += [f"**{head[:-1]}**", "\n".join(f"- {' '.join(entry.split())}" for entry in entries)]
        else:
            found.append(block)
    text = re.sub(r"(?<![`\w|])\|(?=\w)|(?<=\w)\|(?![`\w|])", r"\|", "\n\n".join(found))  # no substitutions
    lines[:] = [*text.splitlines(), ""]


def setup(app: Any) -> None:
    app.connect("autodoc-process-docstring", sections)
