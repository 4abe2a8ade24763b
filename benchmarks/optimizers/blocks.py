"""Parts of Markdown pages that a command writes: what stands between two comments with a name."""

import re
from collections.abc import Iterable
from pathlib import Path


class BlockError(ValueError):
    """A page has no such block, or several."""


def rewrite(page: Path, blocks: dict[str, Iterable[str]]) -> None:
    """Put lines into the blocks of a page; the rest of it stays as it is.

    A block begins with `<!-- NAME: written by make tables -->` and ends with `<!-- NAME: end -->`.

    Raises:
        BlockError: naming the block that is not there once.
    """
    text = page.read_text(encoding="utf-8")
    for name, lines in blocks.items():
        begin, end = f"<!-- {name}: written by make tables -->", f"<!-- {name}: end -->"
        pattern = re.compile(f"{re.escape(begin)}\n.*?{re.escape(end)}", re.DOTALL)
        content = "\n".join([begin, "", *lines, "", end])
        text, count = pattern.subn(lambda _, content=content: content, text)
        if count != 1:
            raise BlockError(f"{page} has {count} blocks from {begin} to {end}; there must be one")
    page.write_text(text, encoding="utf-8")
