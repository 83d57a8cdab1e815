# SPDX-License-Identifier: Apache-2.0
"""Items that belong together: frames of one film, tiles of one scene, slices of one patient. Torch-free.

Images of one group resemble each other, so a draw of single images takes them for more than they are; a draw of groups does
not. What makes a group is said by a rule, one text (`--group-by`):

- `folder`: the folder of an item's name; `folder:1`: the first folder of its path alone, `folder:2` the first two;
- `name:REGEX`: what a regular expression finds in the name: its first group in brackets, or all that it matches;
- `FILE.csv:COLUMN`: a column (video, slide, patient, scene) of a table; another column names the items;
- `every:N`: so many neighbours in the order of their names: pieces of one film. A folder begins a new piece.
"""

from __future__ import annotations

import csv
import difflib
import logging
import re
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from rekindle.core.errors import RequestError

FORMS = (
    "Allowed: folder, folder:1 (the first folder of the path), name:REGEX (its first group in brackets, or all it matches), "
    "FILE.csv:COLUMN, every:N (neighbours in the order of their names)"
)
NAME_COLUMNS = ("item", "image", "file", "filename", "path", "stem", "name")
SPLIT_COLUMN = "split"
_SHOWN = 5
_TABLE = re.compile(r"(?P<file>.+?\.csv)(?::(?P<column>.*))?", re.IGNORECASE | re.DOTALL)
_SUFFIX = re.compile(r"\.[A-Za-z][A-Za-z0-9]{1,4}")


class Rule(ABC):
    """How groups follow from names.

    Attributes:
        text: what was asked.
        cover: how to mend a rule that leaves items out.
        spans_splits: whether a group of one split may be one of another.

    """

    cover: str
    spans_splits = True

    def __init__(self, text: str) -> None:
        self.text = text

    @abstractmethod
    def groups(self, items: Sequence[str], split: str) -> dict[str, str]:
        """Return the group of each item that has one."""


@dataclass(frozen=True)
class Grouping:
    """Which group each item of a split belongs to.

    Attributes:
        rule: what made the groups.
        of: item -> name of its group.
        shared: groups that also have items in the split that is learnt from.

    """

    rule: str
    of: Mapping[str, str]
    shared: tuple[str, ...] = ()

    def names(self, items: Sequence[str]) -> list[str]:
        """Return the group of each item, by name."""
        return [self.of[item] for item in items]

    def indices(self, items: Sequence[str]) -> NDArray[np.int64]:
        """Return the group of each item [n], numbered from 0 in the order of the items."""
        return group_indices(self.names(items))


def group_indices(names: Sequence[str]) -> NDArray[np.int64]:
    """Number groups from 0 in the order in which they come.

    Example:
        >>> group_indices(["b", "a", "b"]).tolist()
        [0, 1, 0]
    """
    numbers = {name: number for number, name in enumerate(dict.fromkeys(names))}
    return np.array([numbers[name] for name in names], dtype=np.int64)


def read_rule(text: str) -> Rule:
    """Read a rule, and the table that it names. Raises: RequestError for what is none."""
    told = f"--group-by {text}"
    kind, colon, rest = text.partition(":")
    if kind == "folder":
        if colon and not (rest.isdecimal() and int(rest) > 0):
            raise RequestError(f"{told}: '{rest}' is no number of folders; for example folder:1. {FORMS}")
        return _Folder(text, int(rest) if colon else None)
    if kind == "every" and colon:
        if not rest.isdecimal() or int(rest) < 2:
            raise RequestError(
                f"{told}: a piece takes a whole number of items from 2 on, for example every:10. {FORMS}"
            )
        return _Every(text, int(rest))
    if kind == "name" and colon:
        try:
            return _Name(text, re.compile(rest))
        except re.error as error:
            where = "" if error.pos is None else f" at position {error.pos}"
            raise RequestError(
                f"{told}: not a regular expression ({error.msg}{where}); for example name:^(.+)_ takes what stands before the "
                "last underscore"
            ) from error
    table = _TABLE.fullmatch(text)
    if table is None:
        forms = {"folder": "folder", "every": "every:N", "name": "name:REGEX"}
        nearest = difflib.get_close_matches(kind, forms, n=1)
        hint = f"; did you mean {forms[nearest[0]]}?" if nearest else "; a regular expression is written name:REGEX."
        raise RequestError(f"{told}: not a rule{hint} {FORMS}")
    return _Table(text, Path(table["file"]).expanduser(), table["column"] or "")


def group_items(rule: Rule, items: Sequence[str], split: str) -> Grouping:
    """Put each item of a split into its group.

    Args: split, for messages and for tables that hold several splits.
    Raises: RequestError for a rule that leaves items out, or makes one group or as many as items.
    """
    found = rule.groups(items, split)
    told = f"--group-by {rule.text}"
    left = [item for item in items if item not in found]
    if left:
        raise RequestError(
            f"{told}: {len(left)} of the {len(items)} items of the split '{split}' have no group: {_some(left)}. {rule.cover}"
        )
    count = len(set(found.values()))
    if count == 1:
        raise RequestError(
            f"{told}: all {len(items)} items of the split '{split}' are in one group ('{next(iter(found.values()))}'), and one "
            "group says nothing of others. Use a finer rule (every:N cuts a film into pieces of N frames), or leave "
            "--group-by out"
        )
    if count == len(items):
        raise RequestError(
            f"{told}: each of the {len(items)} items of the split '{split}' is a group of its own, so nothing is grouped. Use a "
            "coarser rule, or leave --group-by out"
        )
    return Grouping(rule.text, found)


def shared_groups(
    rule: Rule, learnt: Sequence[str], learnt_split: str, grouping: Grouping
) -> dict[str, tuple[int, int]]:
    """Return the groups that two splits share, with their items in the split learnt from and in the measured one.

    Items of the split learnt from that the rule leaves out are told of: they cannot be looked at. Pieces of a film (`every:N`)
    are cut split by split, and are never shared.
    """
    if not rule.spans_splits:
        return {}
    found = rule.groups(learnt, learnt_split)
    if len(found) < len(learnt):
        logging.getLogger("rekindle").warning(
            "--group-by %s: %d of the %d items of the split '%s' have no group; they were not looked at for shared groups",
            *(rule.text, len(learnt) - len(found), len(learnt), learnt_split),
        )
    there, here = Counter(found.values()), Counter(grouping.of.values())
    return {group: (there[group], count) for group, count in here.items() if group in there}


def natural_order(name: str) -> list[tuple[int, int, str]]:
    """Return a key that sorts names as people do, numbers by their value.

    Example:
        >>> sorted(["f10", "f9", "a/f1"], key=natural_order)
        ['a/f1', 'f9', 'f10']
    """
    parts = re.split(r"(\d+)", name)
    return [(0, int(part), "") if part.isdecimal() else (1, 0, part) for part in parts if part]


class _Folder(Rule):
    cover = "They lie in fewer folders than the rule asks for; use name:REGEX or FILE.csv:COLUMN instead"

    def __init__(self, text: str, levels: int | None) -> None:
        super().__init__(text)
        self._levels = levels

    def groups(self, items: Sequence[str], split: str) -> dict[str, str]:
        """See `Rule.groups`."""
        found = {}
        for item in items:
            *folders, _ = item.split("/")
            if folders and len(folders) >= (self._levels or 1):
                found[item] = "/".join(folders[: self._levels])
        return found


class _Name(Rule):
    cover = "Write the expression so that it finds something in every name"

    def __init__(self, text: str, expression: re.Pattern[str]) -> None:
        super().__init__(text)
        self._expression = expression

    def groups(self, items: Sequence[str], split: str) -> dict[str, str]:
        """See `Rule.groups`."""
        found = {}
        for item in items:
            match = self._expression.search(item)
            name = (match[1] if self._expression.groups else match[0]) if match else None
            if name:
                found[item] = name
        return found


class _Every(Rule):
    cover = ""  # it leaves none out
    spans_splits = False

    def __init__(self, text: str, count: int) -> None:
        super().__init__(text)
        self._count = count

    def groups(self, items: Sequence[str], split: str) -> dict[str, str]:
        """See `Rule.groups`."""
        by_folder: dict[str, list[str]] = {}
        for item in sorted(items, key=natural_order):
            by_folder.setdefault(item.rpartition("/")[0], []).append(item)
        found: dict[str, str] = {}
        for own in by_folder.values():
            for first in range(0, len(own), self._count):
                piece = own[first : first + self._count]
                found |= dict.fromkeys(piece, f"{piece[0]} to {piece[-1]}")
        return found


class _Table(Rule):
    """Entries name items by stem, file or path: one is the other's end, folder by folder."""

    def __init__(self, text: str, path: Path, column: str) -> None:
        super().__init__(text)
        named, self._entries = _entries(f"--group-by {text}", path, column)
        self.cover = f"Add them to {path}, whose column '{named}' names the items"
        self._by_end: dict[str, list[int]] = {}
        for number, (name, _, _) in enumerate(self._entries):
            for form in _forms(name):
                for end in _ends(form):
                    self._by_end.setdefault(end, []).append(number)

    def groups(self, items: Sequence[str], split: str) -> dict[str, str]:
        """See `Rule.groups`. Raises: RequestError for an item of two groups, and for an entry that fits several items."""
        found: dict[str, str] = {}
        short: dict[int, str] = {}  # entries that are only the end of an item's name -> that item
        for item in items:
            own = self._naming(item, split)
            for number in own:
                name = self._entries[number][0]
                if item not in {end for form in _forms(name) for end in _ends(form)}:
                    other = short.setdefault(number, item)
                    if other != item:
                        raise RequestError(
                            f"--group-by {self.text}: the entry '{name}' fits two items, {other} and {item}; name them with "
                            "their folders"
                        )
            groups = dict.fromkeys(self._entries[number][1] for number in own)
            if len(groups) > 1:
                raise RequestError(
                    f"--group-by {self.text}: the item {item} of the split '{split}' stands in {len(groups)} groups "
                    f"({_some([*groups])}); keep one of its entries, or tell the splits apart by their folders or by a column "
                    f"'{SPLIT_COLUMN}'"
                )
            if groups:
                found[item] = next(iter(groups))
        return found

    def _naming(self, item: str, split: str) -> list[int]:
        """Return the entries that name an item: by its whole name, or else by the longest end of it that is an entry."""
        for end in _ends(item):
            own = [n for n in self._by_end.get(end, []) if self._entries[n][2] in ("", split)]
            if end != item:
                own = [n for n in own if end in _forms(self._entries[n][0])]
            if own:
                here = [n for n in own if split in self._entries[n][0].split("/")[:-1]]
                return here or own
        return []


def _entries(told: str, path: Path, column: str) -> tuple[str, list[tuple[str, str, str]]]:
    """Return the column of the names, and name, group and split ("" for any) of every row that has a group.

    Raises: RequestError for a table that cannot be read, has no row, or not the column.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as stream:
            header, *rows = [row for row in csv.reader(stream) if any(cell.strip() for cell in row)] or [[]]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        why = error.strerror if isinstance(error, OSError) else error
        raise RequestError(
            f"{told}: {path} cannot be read ({why}); give a table in UTF-8, columns parted by commas"
        ) from error
    titles = [cell.strip() for cell in header]
    titles = [SPLIT_COLUMN if title.lower() == SPLIT_COLUMN and title != column else title for title in titles]
    parted = next(
        (name for mark, name in ((";", "semicolons"), ("\t", "tabs")) if [mark in t for t in titles] == [True]), ""
    )
    if parted:
        raise RequestError(f"{told}: {path} has its columns parted by {parted}; save it with commas")
    if not rows:
        raise RequestError(f"{told}: {path} has no row below its header; name each item and its group, a line each")
    if column not in titles:
        nearest = difflib.get_close_matches(column, titles, n=1)
        hint = f"; did you mean '{nearest[0]}'?" if nearest else "."
        what = f"no column '{column}'" if column else "a column of groups has to be named, as FILE.csv:COLUMN"
        raise RequestError(f"{told}: {path}: {what}{hint} Columns: {', '.join(titles)}")
    others = [title for title in titles if title not in (column, SPLIT_COLUMN)]
    if not others:
        raise RequestError(f"{told}: {path} has no column beside '{column}' that names the items; add one called item")
    named = next((title for known in NAME_COLUMNS for title in others if title.lower() == known), others[0])
    places = [titles.index(title) for title in (named, column)]
    split_place = titles.index(SPLIT_COLUMN) if SPLIT_COLUMN in titles else None
    found = []
    for number, row in enumerate(rows, start=2):
        if len(row) < len(titles):
            raise RequestError(f"{told}: {path}, line {number} has {len(row)} of {len(titles)} columns; complete it")
        name, group = (row[place].strip() for place in places)
        split = "" if split_place is None else row[split_place].strip()
        if name and group:
            found.append((name.replace("\\", "/"), group, split))
    return named, found


def _forms(name: str) -> tuple[str, ...]:
    """What a name of a table may mean: as it stands, and without the suffix of a file."""
    head, dot, tail = name.rpartition(".")
    return (name, head) if head and _SUFFIX.fullmatch(dot + tail) else (name,)


def _ends(name: str) -> list[str]:
    """Return a path and its ends, the longest first.

    Example:
        >>> _ends("a/b/c")
        ['a/b/c', 'b/c', 'c']
    """
    parts = name.strip("/").split("/")
    return ["/".join(parts[first:]) for first in range(len(parts))]


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more
