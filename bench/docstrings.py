"""The package's docstrings as text for the documentation: sections such as "Args:" become lists."""

import re
import textwrap


def listed(docstring: str) -> str:
    """A docstring in which each entry of a section is an item of a list. An entry begins where others do, and may be of several
    names; what stands below it, indented, goes on with it."""
    blocks: list[str] = []
    for block in re.split(r"\n{2,}", docstring):
        head, _, rest = block.partition("\n")
        if re.fullmatch(r"[A-Z]\w+:", head):
            entries = re.split(r"\n(?! )", textwrap.dedent(rest))
            blocks += [f"**{head[:-1]}**", "\n".join(f"- {' '.join(entry.split())}" for entry in entries)]
        else:
            blocks.append(block)
    return "\n\n".join(blocks)


def markdown(docstring: str) -> str:
    """:func:`listed`, with roles and literals as Markdown has them, and the names of entries as code."""
    text = re.sub(r":\w+:`~?\.?([\w.]+)`", r"`\1`", listed(docstring)).replace("``", "`")
    return re.sub(r"^- ([\w, ]+)(?=: )", r"- `\1`", text, flags=re.MULTILINE)


def restructured(docstring: str) -> str:
    """:func:`listed`, without substitutions: a bar is a bar."""
    return re.sub(r"(?<![`\w|])\|(?=\w)|(?<=\w)\|(?![`\w|])", r"\|", listed(docstring))
