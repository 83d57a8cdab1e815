# SPDX-License-Identifier: Apache-2.0
"""Rules of groups: what each of them finds, and what their errors advise, followed."""

from __future__ import annotations

import logging
import re
from pathlib import Path

import pytest

from rekindle.core.errors import RequestError
from rekindle.evaluation.verdict.groups import Grouping, group_items, read_rule, shared_groups

FRAMES = ["a/f1", "a/f2", "a/f10", "b/f1", "b/f2"]


def grouped(rule: str, items: list[str], split: str = "val") -> Grouping:
    return group_items(read_rule(rule), items, split)


def refused(rule: str, items: list[str], split: str = "val") -> str:
    with pytest.raises(RequestError) as caught:
        grouped(rule, items, split)
    assert str(caught.value).startswith(f"--group-by {rule}: ")
    return str(caught.value)


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def test_folders_by_level() -> None:
    items = ["x/a/1", "x/a/2", "x/b/1", "y/b/1"]
    assert grouped("folder", items).names(items) == ["x/a", "x/a", "x/b", "y/b"]
    assert grouped("folder:1", items).names(items) == ["x", "x", "x", "y"]
    assert grouped("folder:1", items).indices(items).tolist() == [0, 0, 0, 1]
    assert grouped("folder:1", items).indices(items[::-1]).tolist() == [0, 1, 1, 1]


def test_names_by_what_stands_in_brackets_or_by_all_that_matches() -> None:
    items = ["p1_s1", "p1_s2", "p2_s1"]
    assert grouped(r"name:^(p\d+)_s", items).names(items) == ["p1", "p1", "p2"]
    assert grouped(r"name:^p\d+", items).names(items) == ["p1", "p1", "p2"]
    assert grouped(r"name:s\d", items).names(items) == ["s1", "s2", "s1"]


def test_pieces_follow_the_numbers_and_begin_anew_in_a_folder() -> None:
    found = grouped("every:2", FRAMES)
    assert found.names(FRAMES) == ["a/f1 to a/f2"] * 2 + ["a/f10 to a/f10"] + ["b/f1 to b/f2"] * 2
    assert found.of == grouped("every:2", FRAMES[::-1]).of


@pytest.mark.parametrize(
    "names",
    [
        ["a/f1", "a/f2", "b/f1"],
        ["a/f1.png", "a/f2.jpg", "b/f1.TIFF"],
        ["images/val/a/f1.png", "images/val/a/f2.png", "images/val/b/f1.png"],
        ["\\data\\a\\f1.png", "\\data\\a\\f2.png", "\\data\\b\\f1.png"],
    ],
)
def test_a_table_names_items_as_people_do(tmp_path: Path, names: list[str]) -> None:
    lines = [f"{name},{drive}" for name, drive in zip(names, ["d1", "d1", "d2"], strict=True)]
    table = write(tmp_path / "t.csv", "\ufeffFile,drive\n" + "\n".join(lines) + "\n\n")
    items = ["a/f1", "a/f2", "b/f1"]
    assert grouped(f"{table}:drive", items).names(items) == ["d1", "d1", "d2"]


def test_a_table_of_stems_serves_items_in_folders(tmp_path: Path) -> None:
    table = write(tmp_path / "t.csv", "patient,slice,site\np1,s1,x\np1,s2,x\np2,s3,x\n")
    items = ["north/s1", "north/s2", "south/s3"]
    assert grouped(f"{table}:patient", items).names(items) == ["p1", "p1", "p2"]


def test_a_table_of_several_splits_tells_them_apart_by_folder_or_column(tmp_path: Path) -> None:
    folders = write(
        tmp_path / "f.csv", "path,scene\ntrain/1.png,A\ntrain/2.png,A\nval/1.png,B\nval/2.png,B\nval/3.png,C\n"
    )
    column = write(tmp_path / "c.csv", "item,Split,scene\n1,train,A\n2,train,A\n1,val,B\n2,val,B\n3,val,C\n")
    for table in (folders, column):
        rule = read_rule(f"{table}:scene")
        found = group_items(rule, ["1", "2", "3"], "val")
        assert found.names(["1", "2", "3"]) == ["B", "B", "C"]
        assert shared_groups(rule, ["1", "2"], "train", found) == {}


def test_an_entry_that_is_written_twice_alike_is_no_error(tmp_path: Path) -> None:
    table = write(tmp_path / "t.csv", "item,scene\n1,A\n1,A\n2,A\n3,B\n")
    assert grouped(f"{table}:scene", ["1", "2", "3"]).names(["3", "1"]) == ["B", "A"]


def test_what_a_rule_leaves_out_is_listed_and_the_advice_mends_it(tmp_path: Path) -> None:
    items = [*FRAMES, "x", "y"]
    told = refused("folder", items)
    assert "2 of the 7 items of the split 'val' have no group: x, y. They lie in fewer folders" in told
    assert "use name:REGEX" in told
    grouped("name:^.", items)
    assert "Write the expression so that it finds something in every name" in refused(r"name:f\d", items)
    grouped(r"name:f\d|.", items)
    table = write(tmp_path / "t.csv", "item,scene\na/f1,A\na/f2,A\na/f10,\nb/f1,B\n")
    told = refused(f"{table}:scene", FRAMES)
    assert "2 of the 5 items of the split 'val' have no group: a/f10, b/f2" in told
    assert f"Add them to {table}, whose column 'item' names the items" in told
    table.write_text(table.read_text() + "a/f10,A\nb/f2,B\n")
    grouped(f"{table}:scene", FRAMES)
    assert "a0, a1, a2, a3, a4 and 5 more" in refused("folder", [f"a{n}" for n in range(10)])


def test_one_group_and_as_many_as_items_are_refused_and_the_advice_mends_it() -> None:
    told = refused("name:f", FRAMES)
    assert "all 5 items of the split 'val' are in one group ('f')" in told
    assert "every:N cuts a film into pieces of N frames" in told
    grouped("every:2", FRAMES)
    told = refused("name:.*", FRAMES)
    assert (
        "each of the 5 items of the split 'val' is a group of its own, so nothing is grouped. Use a coarser rule"
        in told
    )


@pytest.mark.parametrize(
    ("rule", "words", "mended"),
    [
        ("foldr", "not a rule; did you mean folder? Allowed: folder, folder:1", "folder"),
        ("^(.)/", "not a rule; a regular expression is written name:REGEX. Allowed", "name:^(.)/"),
        ("every", "not a rule; did you mean every:N? Allowed", "every:2"),
        ("folder:x", "'x' is no number of folders; for example folder:1", "folder:1"),
        ("folder:0", "'0' is no number of folders; for example folder:1", "folder:1"),
        ("every:1", "a whole number of items from 2 on, for example every:10", "every:2"),
        ("every:x", "a whole number of items from 2 on", "every:2"),
        ("name:^(.+/", "not a regular expression (missing ), unterminated subpattern at position 1)", "name:^(.+)/"),
    ],
)
def test_a_rule_that_is_none_says_what_is(rule: str, words: str, mended: str) -> None:
    with pytest.raises(RequestError, match=re.escape(words)):
        read_rule(rule)
    grouped(mended, FRAMES)


@pytest.mark.parametrize(
    ("text", "column", "words"),
    [
        ("item,scene\n1,A\n", "scne", "no column 'scne'; did you mean 'scene'? Columns: item, scene"),
        ("item,scene\n1,A\n", "", "a column of groups has to be named, as FILE.csv:COLUMN. Columns: item, scene"),
        ("item;scene\n1;A\n", "scene", "has its columns parted by semicolons; save it with commas"),
        ("item\tscene\n1\tA\n", "scene", "has its columns parted by tabs; save it with commas"),
        ("scene\nA\n", "scene", "has no column beside 'scene' that names the items; add one called item"),
        ("item,scene\n", "scene", "has no row below its header"),
        ("", "scene", "has no row below its header"),
        ("item,scene\n1,A\n2\n", "scene", "line 3 has 1 of 2 columns; complete it"),
        (None, "scene", "cannot be read (No such file or directory); give a table in UTF-8, columns parted by commas"),
    ],
)
def test_a_table_that_cannot_be_used_says_why(tmp_path: Path, text: str | None, column: str, words: str) -> None:
    path = tmp_path / "t.csv"
    if text is not None:
        write(path, text)
    with pytest.raises(RequestError) as caught:
        read_rule(f"{path}:{column}" if column else str(path))
    assert words in str(caught.value)
    assert str(path) in str(caught.value)


def test_a_table_that_is_no_text_says_so(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_bytes(b"item,scene\n\xff\xfe,A\n")
    with pytest.raises(RequestError, match="give a table in UTF-8"):
        read_rule(f"{tmp_path / 't.csv'}:scene")


def test_an_item_of_two_groups_and_an_entry_of_two_items_are_refused(tmp_path: Path) -> None:
    table = write(tmp_path / "t.csv", "item,scene\n1,A\n1.png,B\n2,B\n")
    told = refused(f"{table}:scene", ["1", "2"])
    assert "the item 1 of the split 'val' stands in 2 groups (A, B); keep one of its entries" in told
    write(table, "item,scene\n1,A\n2,B\n2,B\n")
    told = refused(f"{table}:scene", ["x/1", "y/1", "x/2"])
    assert "the entry '1' fits two items, x/1 and y/1; name them with their folders" in told
    write(table, "item,scene\nx/1,A\ny/1,A\n2,B\n")
    grouped(f"{table}:scene", ["x/1", "y/1", "x/2"])


def test_groups_of_both_splits_are_found_with_their_counts(caplog: pytest.LogCaptureFixture) -> None:
    rule = read_rule(r"name:^(p\d)")
    found = group_items(rule, ["p1_1", "p1_2", "p2_1"], "val")
    with caplog.at_level(logging.WARNING, "rekindle"):
        assert shared_groups(rule, ["p1_7", "p3_1"], "train", found) == {"p1": (1, 2)}
        assert not caplog.records
        assert shared_groups(rule, ["p3_1", "q"], "train", found) == {}
    assert "1 of the 2 items of the split 'train' have no group" in caplog.text


def test_pieces_of_two_films_are_never_shared_though_their_names_agree() -> None:
    rule = read_rule("every:2")
    names = ["1", "2", "3"]
    assert shared_groups(rule, names, "train", group_items(rule, names, "val")) == {}
