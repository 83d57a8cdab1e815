# SPDX-License-Identifier: Apache-2.0
"""Documents that people can review: narrow lines, links that lead somewhere, figures that stand in their files."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest

from tests.documents.facts import facts_of
from tests.documents.figures import NUMBER, cells, faults, lookup
from tests.documents.reading import DOCUMENTS, FILE, ROOT, anchors, blocks_of, files_in, links, tables, without_code

WIDTH = 120
RESULTS = [path for path in DOCUMENTS if path.parent.name == "results"]
MEASURED = [
    *RESULTS,
    *(ROOT / "docs" / name for name in ("performance.md", "reliability.md", "methods/loca.md", "verdict.md")),
]
SOURCES = [
    path
    for folder, pattern in (("scripts", "*.py"), ("examples", "**/*.*"), ("src", "**/*.py"), (".", "Makefile"))
    for path in sorted((ROOT / folder).glob(pattern))
]
OF_A_USER = {"results/*.json"}  # a user's own folder of results, in examples of commands
PROSE = re.compile(rf"({NUMBER}) \(({NUMBER}) to ({NUMBER})\)")

every_document = pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
every_measured = pytest.mark.parametrize("path", MEASURED, ids=lambda path: path.stem)


@every_document
def test_no_line_is_wider_than_a_diff_shows(path: Path) -> None:
    wide = {at: line for at, line in enumerate(path.read_text().splitlines(), 1) if len(line) > WIDTH}
    assert not wide


@every_document
def test_every_link_leads_to_a_file_and_a_heading(path: Path) -> None:
    broken = []
    for link in links(path.read_text()):
        name, _, anchor = link.partition("#")
        target = (path.parent / name).resolve() if name else path
        if not target.exists() or (anchor and anchor not in anchors(target.read_text())):
            broken.append(link)
    assert not broken


@pytest.mark.parametrize("path", [*DOCUMENTS, *SOURCES], ids=lambda path: str(path.relative_to(ROOT)))
def test_every_result_that_is_named_is_there(path: Path) -> None:
    named = set(FILE.findall(path.read_text())) - OF_A_USER
    assert not [name for name in named if not files_in(name)]


def test_every_result_is_named_in_a_document() -> None:
    named = {path for document in DOCUMENTS for path in files_in(document.read_text())}
    kept = {path for path in (ROOT / "results").rglob("*") if path.is_file()}
    assert kept == named


def test_every_document_is_in_the_index() -> None:
    index = ROOT / "docs" / "README.md"
    listed = {(index.parent / link.partition("#")[0]).resolve() for link in links(index.read_text())}
    assert {path for path in DOCUMENTS if path.parent.name != "results"} - listed <= {index}


def test_every_page_of_results_is_on_their_front_page() -> None:
    front = ROOT / "docs" / "results" / "README.md"
    listed = {(front.parent / link.partition("#")[0]).resolve() for link in links(front.read_text())}
    assert set(RESULTS) - listed <= {front}


@every_measured
def test_every_table_names_its_files_or_says_why_there_are_none(path: Path) -> None:
    for table in tables(path):
        assert table.files or re.match(r"No file: .{10}", table.source), table.place
    below = [(above, block) for above, block in pairwise(blocks_of(path)) if block.startswith(("Files:", "No file:"))]
    assert not [block for above, block in below if not above.startswith("|")]


@every_measured
def test_every_figure_of_a_table_stands_in_its_files(path: Path) -> None:
    """And the labels around a difference leave one record of the files, or the two of a row that was run twice."""
    for table in (table for table in tables(path) if table.files):
        known = lookup(table)
        for labels, text in cells(table):
            facts = known.around(labels)
            assert not faults(text, facts), f"{table.place}, {labels}: {text}"
            assert sum(len(fact.numbers) == 3 for fact in facts) <= 2, f"{table.place}, {labels}"


@every_document
def test_every_interval_of_a_sentence_stands_in_a_file_that_its_page_names(path: Path) -> None:
    text = without_code(path.read_text())
    facts = [fact for file in set(files_in(text)) for fact in facts_of(file)]
    sentences = [re.sub(r"\s+", " ", block) for block in blocks_of(path) if "(no file" not in block]
    found = [interval for sentence in sentences for interval in PROSE.findall(sentence)]
    assert not [each for each in found if faults(f"{each[0]} ({each[1]}, {each[2]})", facts)]


@every_measured
def test_a_changed_digit_does_not_stand_in_the_files(path: Path) -> None:
    """Every digit of every cell, one by one. Few small counts of a run may pass for one another, never a score."""
    altered, missed = 0, []
    for table in (table for table in tables(path) if table.files):
        known = lookup(table)
        for labels, text in cells(table):
            facts = known.around(labels)
            for found in re.finditer(r"\d", text):
                other = text[: found.start()] + str((int(found.group()) + 4) % 10) + text[found.end() :]
                altered += 1
                if not faults(other, facts):
                    missed.append(f"{table.place}, {labels}: {text} as {other}")
    assert len(missed) <= (0 if path in RESULTS else 0.02 * altered), missed


@every_measured
def test_the_figures_of_one_row_do_not_stand_under_the_name_of_another(path: Path) -> None:
    missed = []
    for table in (table for table in tables(path) if table.files):
        known = lookup(table)
        for mine, other in pairwise(table.rows):
            mixed = [mine[at] if table.is_label(at) else text for at, text in enumerate(other)]
            told = [faults(text, known.around(labels)) for labels, text in cells(replace(table, rows=[mixed]))]
            if told and not any(told) and mixed[1:] != mine[1:]:
                missed.append(f"{table.place}: {mixed}")
    assert not missed


def test_figures_of_nearest_neighbours_name_the_number_that_they_are_of() -> None:
    """A sentence that is no table: the page once gave those of ten as those of twenty."""
    stored = json.loads((ROOT / "results" / "the-bases" / "base-knn-ucmerced21.json").read_text(encoding="utf-8"))
    text = " ".join((ROOT / "docs" / "results" / "the-bases.md").read_text(encoding="utf-8").split())
    found = re.search(
        r"k-NN \(k = 10\).*?: ([\d.]+) %, below the ([\d.]+) %.*? the ([\d.]+) %.*?"
        r"at k = 20 they are ([\d.]+), ([\d.]+) and ([\d.]+) ",
        text,
    )
    assert found is not None
    values = [
        float(stored["metrics"][model][f"top-1{kind}"])
        for kind in ("", "/cls k=20")
        for model in ("base", "mae", "random")
    ]
    assert [float(number) for number in found.groups()] == [round(100 * value, 1) for value in values]
