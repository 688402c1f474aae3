"""Sphinx: HTML from these pages and from the package's docstrings, without a network. `make docs` runs it."""

import sys
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
autodoc_mock_imports = ["lightning", "transformers"]  # of wuskern.integrations: not needed to read its docstrings
autodoc_typehints = "none"  # the text says what an argument is


def sections(_: Any, what: str, name: str, of: object, options: Any, lines: list[str]) -> None:
    from bench import docstrings

    lines[:] = [*docstrings.restructured("\n".join(lines)).splitlines(), ""]


def setup(app: Any) -> None:
    app.connect("autodoc-process-docstring", sections)
