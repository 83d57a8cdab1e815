# SPDX-License-Identifier: Apache-2.0
"""Read the blocks of code of a document, and the commands that stand in its sentences."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from markdown_it import MarkdownIt

from tests.documents.reading import ROOT

SKIPPED = {
    "text": "layouts, formulas, output: to be read, not to be run",
}
"""Languages that nothing runs, and why. Every other language is run or checked, and an unknown one is an error."""


class Fault(Exception):
    """Something in a document that does not work, with its place."""


@dataclass(frozen=True)
class Block:
    """A block of code: its language, and the line of the document before its first one."""

    path: Path
    line: int
    language: str
    text: str

    @property
    def place(self) -> str:
        """Where it stands, for messages."""
        path = self.path.relative_to(ROOT) if self.path.is_relative_to(ROOT) else self.path
        return f"{path}:{self.line}"


def blocks_of_code(path: Path) -> list[Block]:
    """All blocks. Raises Fault for one whose language is not said."""
    found = []
    for token in MarkdownIt().parse(path.read_text(encoding="utf-8")):
        if token.type in ("fence", "code_block"):
            line = token.map[0] + 1 if token.map else 0
            block = Block(path, line, token.info.strip().partition(" ")[0], token.content)
            if not block.language:
                raise Fault(
                    f"{block.place}: a block of code without a language; put one behind its ``` (sh, python, text)"
                )
            found.append(block)
    return found


def spans_of_code(path: Path) -> Iterator[Block]:
    """The code inside of sentences and tables, its spaces single."""
    for token in MarkdownIt("gfm-like", {"linkify": False}).parse(path.read_text(encoding="utf-8")):
        for child in token.children or ():
            if child.type == "code_inline":
                line = token.map[0] + 1 if token.map else 0
                yield Block(path, line, "", " ".join(child.content.split()))
