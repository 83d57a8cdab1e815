# SPDX-License-Identifier: Apache-2.0
"""Look the figures of a table up in the files that stand below it.

The labels printed around a cell (caption, row, heading) have to be those of the fact; a label that the files do not know
says nothing. Numbers hold if they are the fact's, as printed: rounded to the printed digits, as they are or in percent.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from tests.documents.facts import Fact, facts_of, summaries, tally
from tests.documents.reading import Table

NUMBER = r"[+-]?\d[\d,]*(?:\.\d+)?"
SIGNS = {"✓": "better", "✗": "worse", "=": "no difference", "~": "mixed", "≠": "different"}
PATTERNS = {
    "summary": rf"({NUMBER}) \(({NUMBER}), ({NUMBER})\); (\d)/(\d)/(\d)",
    "difference": rf"({NUMBER}) \(({NUMBER}), ({NUMBER})\) ([✓✗=≠])",
    "rate": rf"({NUMBER}) \(({NUMBER}) to ({NUMBER})\)",
    "bare difference": rf"({NUMBER}) \(({NUMBER}), ({NUMBER})\)",
    "deviation": rf"({NUMBER}) ± ({NUMBER})",
    "tally": r"((?:\d [✓✗=~](?:, )?)+)",
    "sign": r"([✓✗=~])",
    "number": rf"({NUMBER})",
}
CELL = re.compile("|".join(f"(?:{pattern})" for pattern in PATTERNS.values()))
# What pages call things, and what files call them; the first name that the files know counts.
ALIASES: dict[str, tuple[str, ...]] = {
    "the base": ("start",),
    "the start": ("start",),
    "base": ("start",),
    "recipe": ("sharp", "glare"),
    "recipe/all": ("sharp, all weights", "sharp-all-weights"),
    "centred": ("glare centred, adapters", "centred"),
    "centred/all": ("centred, all weights",),
    "adapters": ("glare, adapters", "adapters r=64", "paka", "adapters"),
    "all weights": ("glare, all weights", "paka, all weights", "all weights"),
    "adapters 5e-4": ("glare, adapters 5e-4", "adapters 5e-4"),
    "all 5e-5": ("sharp all 5e-5",),
    "all 2e-4": ("sharp all 2e-4",),
    "scale 0.1": ("adapters scale 0.1",),
    "no local terms": ("adapters without local terms",),
    "200 steps": ("adapters 200 steps",),
    "all, 200 steps": ("all weights 200 steps",),
    "centred, 200": ("adapters centred 0.04 200 steps",),
    "mae": ("start",),
    "mae, then dino: the base": ("dino-ti16",),
    "mae, then ibot": ("ibot-ti16",),
    "mae base": ("mae-base",),
    "mae base, then glare on camvid": ("glare-camvid",),
    "random weights": ("random-weights", "random weights"),
    "loca base": ("loca-base",),
    "loca base, then camvid": ("loca-camvid",),
    "difference to the base": ("loca-camvid", "tec-1"),
    "tec": ("tec-1",),
    "glare": ("glare-camvid", "camvid-glare", "camvid-glare-s1", "glare"),
    "dino": ("camvid-dino", "camvid-dino-s1", "dino"),
    "mmc": ("mmc-camvid", "mmc"),
    "uc merced": ("ucmerced",),
    "10 %": ("10%",),
    "20 %": ("20%",),
    "50 %": ("50%",),
    "100 %": ("100%",),
    "2e-4": ("0.0002",),
    "2e-5": ("2e-05",),
    "nothing hidden": ("mask_ratio 0",),
    "80 % hidden": ("mask_ratio 0.8",),
    "float32": ("fp32",),
    "bfloat16": ("bf16",),
    "autocast to bfloat16": ("bf16",),
    "total": ("median_s",),
    "command lines": ("arguments",),
    "rekindle, batched, the device's executor run on a cpu": ("rekindle, batched",),
}


@dataclass
class Lookup:
    """The facts of a table's files, and every label that they know."""

    facts: list[Fact]
    known: frozenset[str] = field(init=False)

    def __post_init__(self) -> None:
        self.known = frozenset().union(*(fact.labels for fact in self.facts))

    def wanted(self, label: str) -> list[str]:
        """The labels of the files that a printed one stands for: the whole, or what its commas part."""
        text = re.sub(r"[*`]|(?<=\d),(?=\d{3})", "", label).strip().lower()
        found = next((name for name in (*ALIASES.get(text, ()), text) if name in self.known), "")
        parts = text.split(", ") if not found and ", " in text else []
        return [found] if found else [name for part in parts for name in self.wanted(part)]

    def around(self, labels: Sequence[str]) -> list[Fact]:
        """The facts that carry all labels printed around a cell."""
        wanted = {name for label in labels for name in self.wanted(label)}
        return [fact for fact in self.facts if wanted <= fact.labels and (not fact.needs or fact.needs in wanted)]


def lookup(table: Table) -> Lookup:
    """All facts of the files below a table."""
    is_summary = any(re.search(PATTERNS["summary"], cell) for row in table.rows for cell in row)
    facts = summaries(table.files) if is_summary else [fact for path in table.files for fact in facts_of(path)]
    return Lookup(facts)


def cells(table: Table) -> Iterator[tuple[list[str], str]]:
    """The cells that hold figures, with the labels around them."""
    for row in table.rows:
        for column, text in enumerate(row):
            if not table.is_label(column) and CELL.search(text):
                yield table.labels_of(row, column), text


def faults(text: str, facts: Sequence[Fact]) -> list[str]:
    """The figures of a cell that no fact holds."""
    return [found.group() for found in CELL.finditer(text) if not any(_holds(found.group(), fact) for fact in facts)]


def _holds(text: str, fact: Fact) -> bool:
    kind, groups = next(  # the first pattern that fits
        (kind, found.groups()) for kind, pattern in PATTERNS.items() if (found := re.fullmatch(pattern, text))
    )
    printed, said = groups[:3], fact.verdict
    if kind == "sign":
        printed, said = (), SIGNS[text]
    elif kind == "tally":
        printed, said = (), tally({SIGNS[entry[-1]]: int(entry[0]) for entry in text.split(", ")})
    elif kind == "summary":
        said = tally(dict(zip(("better", "no difference", "worse"), map(int, groups[3:]), strict=True)))
    elif kind == "difference":
        said = SIGNS[groups[3]]
    if said != fact.verdict or len(printed) != len(fact.numbers):
        return False
    scales = (1, 100) if all(isinstance(number, float) for number in fact.numbers) else (1,)
    return any(all(_equal(p, n * scale) for p, n in zip(printed, fact.numbers, strict=True)) for scale in scales)


def _equal(printed: str, number: float) -> bool:
    """Whether a number is printed so. (Kept files have six significant digits.)"""
    digits = len(printed.partition(".")[2])
    return abs(float(printed.replace(",", "")) - number) <= 0.5 * 10.0**-digits + 2e-6 * abs(number)
