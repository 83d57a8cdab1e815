# SPDX-License-Identifier: Apache-2.0
"""Read the documents: lines, headings, links, and tables with the files that stand below them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
DOCUMENTS = sorted(
    [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "bases").glob("*.md")], key=lambda path: str(path)
)
FILE = re.compile(r"(?<![\w/.-])results/[\w./*-]*\.jsonl?\b")
LABEL_COLUMNS = {"method", "variant", "protocol", "model"}


@dataclass(frozen=True)
class Table:
    """A table, the line before it, and what stands below it: the files of its figures, or why there are none."""

    place: str
    caption: str
    header: list[str]
    rows: list[list[str]]
    source: str

    @property
    def files(self) -> list[Path]:
        return files_in(self.source) if self.source.startswith("Files:") else []

    def labels_of(self, row: list[str], column: int) -> list[str]:
        """What is printed around a cell: the caption, the row's labels, the column's heading."""
        return [self.caption, *(text for at, text in enumerate(row) if self.is_label(at)), self.header[column]]

    def is_label(self, column: int) -> bool:
        return column == 0 or self.header[column] in LABEL_COLUMNS


def files_in(text: str) -> list[Path]:
    """Every file of results/ that the text names, directly or by a pattern, as often as it does."""
    return [path for name in FILE.findall(text) for path in sorted(ROOT.glob(name))]


def without_code(text: str) -> str:
    """The text with the blocks of code emptied, their lines kept."""
    return re.sub(r"^```.*?^```$", lambda block: "\n" * block.group().count("\n"), text, flags=re.M | re.S)


def anchors(text: str) -> set[str]:
    """The anchors of a document's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", without_code(text), flags=re.M)
    plain = [re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading) for heading in headings]
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in plain}


def links(text: str) -> list[str]:
    """The targets of all links and pictures, but those of the web."""
    found = re.findall(r"\]\(\s*([^)\s]+)\s*\)", re.sub(r"`[^`]*`", "", without_code(text)))
    return [target for target in found if not target.startswith(("http://", "https://", "mailto:"))]


def blocks_of(path: Path) -> list[str]:
    """What blank lines part in a document."""
    return [block for block in re.split(r"\n\s*\n", without_code(path.read_text())) if block.strip()]


def tables(path: Path) -> list[Table]:
    """The tables of a document. What stands below a table may stand below the next one of its section."""
    found: list[Table] = []
    blocks = blocks_of(path)
    for at, block in enumerate(blocks):
        if not block.startswith("|"):
            continue
        header, _, *rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in block.splitlines()]
        below = [re.sub(r"\s+", " ", later) for later in blocks[at + 1 :]]
        section = below[: next((n for n, later in enumerate(below) if later.startswith("#")), len(below))]
        source = next((later for later in section if later.startswith(("Files:", "No file:"))), "")
        caption = blocks[at - 1].rstrip(":") if blocks[at - 1].endswith(":") and len(blocks[at - 1]) < 60 else ""
        found.append(Table(f"{path.relative_to(ROOT)}, table {len(found) + 1}", caption, header, rows, source))
    return found
