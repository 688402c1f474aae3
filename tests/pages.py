"""The documentation's pages, and the blocks of code in them."""

import re
from dataclasses import dataclass
from pathlib import Path

from tests.conftest import ROOT

# A comment before a block says what it needs: "compiled" (the test puts a fast compiler in), "GPU" (it is only compiled), or a
# library (it runs where that is installed; with one of TRAINERS, in make test-more alone).
BLOCK = re.compile(r"^(?:<!-- (?P<needs>\w+) -->\n)?^```(?P<language>\w+)\n(?P<code>.*?)^```$", re.MULTILINE | re.DOTALL)
TRAINERS = ("lightning", "accelerate", "peft")
LIBRARIES = ("transformers", *TRAINERS)
NEEDS = ("compiled", "GPU", *LIBRARIES)


@dataclass(frozen=True)
class Block:
    """``line``: the number of the first line of the code in its page."""

    language: str
    code: str
    line: int
    needs: str | None = None


def pages() -> list[Path]:
    """All that a reader reads; none where the tests lie beside no documentation."""
    own = [path for name in ("README", "CONTRIBUTING", "SECURITY") if (path := ROOT / f"{name}.md").exists()]
    return own + sorted((ROOT / "docs").rglob("*.md"))


def name(page: Path) -> str:
    return str(page.relative_to(ROOT))


def blocks(page: Path, language: str) -> list[Block]:
    text = page.read_text()
    return [
        Block(language, m["code"], text[: m.start("code")].count("\n") + 1, m["needs"])
        for m in BLOCK.finditer(text)
        if m["language"] == language
    ]


def needs(page: Path) -> set[str | None]:
    """What the page's blocks need, each."""
    return {block.needs for block in blocks(page, "python")}


def commands(page: Path) -> list[str]:
    """Shell commands: in console blocks behind a prompt, in indented ones, and within a text."""
    text = page.read_text()
    shell = [line[2:] for block in blocks(page, "console") for line in block.code.splitlines() if line.startswith("$ ")]
    prose = BLOCK.sub("", text)
    indented = re.findall(r"^    (\w[^\n]*)$", prose, re.MULTILINE)
    return shell + indented + [" ".join(found.split()) for found in re.findall(r"(?<!`)`([^`]+)`(?!`)", prose)]


def links(page: Path) -> list[str]:
    """Relative ones, without what they point at inside of a page."""
    found = re.findall(r"\]\(([^)\s]+)\)", BLOCK.sub("", page.read_text()))
    return [link.split("#")[0] for link in found if "://" not in link and not link.startswith("#")]
