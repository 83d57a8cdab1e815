# SPDX-License-Identifier: Apache-2.0
"""Which items seem to belong together, by names, times and likeness, as rules that `--group-by` takes. Torch-free.

A proposal is made only where something speaks for it: folders of several images each; a running number behind a stem, evenly
spaced as in a film or few to a stem as in slices of a patient; rows and columns of tiles; times with gaps; pictures that
resemble the next one, or nearly repeat another. A class, or a number that is all there is of a name, says nothing.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

import numpy as np
from numpy.typing import NDArray

from rekindle.evaluation.verdict.groups import natural_order, read_rule
from rekindle.evaluation.verdict.judging import FEWEST

ENOUGH = FEWEST["groups"]
LONGEST_PIECE = 30
"""Images of a piece of a film at most."""
NEAR_COPY = 20
"""Of 240 bits of likeness, so many differ at most between near-copies; unrelated pictures differ in about half."""
EVEN_SHARE = 0.5
"""Share of equal steps inside each stem from which on numbers run evenly."""
MOSTLY = 0.8
"""Share of equal steps above one from which on images are frames of a film, one in so many."""
FEW = 20
"""Images of a stem up to which uneven numbers still speak for it."""
_TILES = r"^(.+?)[_\-. ]*(?:r|row|x|y)_?\d+[_\-. ]*(?:c|col|x|y)_?\d+$"
_TWO_NUMBERS = r"^(.+?)[_\-. ]\d+[_\-. ]\d+$"
_NUMBER = r"^(.+?)[_\-. ]+[A-Za-z]{0,8}\d+$"
_DIGITS = r"^(.*?[A-Za-z])\d+$"
_FRAME = re.compile(r"fra?me?", re.IGNORECASE)
_STAMP = re.compile(r"(?<!\d)((?:19|20)\d\d)[-_]?(\d\d)[-_]?(\d\d)[T_\- ]*(\d\d)[-_:]?(\d\d)[-_:]?(\d\d)(?!\d)")
_SECONDS = re.compile(r"(?<!\d)(1\d{9})(\d{3}|\d{6}|\d{9})?(?!\d)")


@dataclass(frozen=True)
class Proposal:
    """A rule that items seem to follow.

    Attributes:
        rule: for `--group-by`.
        origin: what speaks for it: folders, names, frames, times, near-copies.
        sizes: items of each group, the largest first.

    """

    rule: str
    origin: str
    sizes: tuple[int, ...]

    @property
    def told(self) -> str:
        """How many groups, and how large."""
        small, large = self.sizes[-1], self.sizes[0]
        middle = sorted(self.sizes)[len(self.sizes) // 2]
        span = f"{small} to {large} images (median {middle})" if small < large else f"{small} images"
        few = f"; fewer than {ENOUGH} groups cannot be judged" if len(self.sizes) < ENOUGH else ""
        return f"{len(self.sizes)} groups of {span}{few}"


def from_names(items: Sequence[str], classes: Sequence[str] = ()) -> list[Proposal]:
    """Return what the names speak for, the rule to take first: the coarsest of enough groups, or else the finest.

    Args: classes, of the items where they have one: a group that is a class is none.
    """
    found: dict[tuple[int, ...], Proposal] = {}
    depth = min((item.count("/") for item in items), default=0)
    for rule in ["folder", *(f"folder:{level}" for level in range(depth - 1, 0, -1))]:
        _keep(found, rule, "folders", items, classes)
    for pattern in (_TILES, _TWO_NUMBERS, _NUMBER, _DIGITS):
        groups = read_rule(f"name:{pattern}").groups(items, "")
        if items and len(groups) == len(items) and (pattern == _TILES or _run(items, groups)):
            _keep(found, f"name:{_shorter(pattern, items, groups)}", "names", items, classes)
    if _is_film(items) and not any(len(p.sizes) >= ENOUGH for p in found.values()):
        length = piece_length(len(items), len(items) // 12)
        if length:
            _keep(found, f"every:{length}", "frames", items, classes)
    ranked = sorted(found.items(), key=lambda entry: rank(entry[1]))
    if ranked and len(ranked[0][1].sizes) >= ENOUGH:  # what is finer still adds nothing
        first = ranked[0][0]
        ranked = [entry for entry in ranked if entry[0] == first or not is_finer(entry[0], first)]
    return [proposal for _, proposal in ranked]


def rank(proposal: Proposal) -> tuple[bool, int]:
    """Return a key by which proposals are sorted: the coarsest of enough groups, the finest of the others after them."""
    count = len(proposal.sizes)
    return (True, -count) if count < ENOUGH else (False, count)


def piece_length(num_items: int, wanted: int) -> int:
    """Return the length of a piece (`every:N`) near what is wanted that leaves enough pieces; 0 where none does."""
    longest = min(LONGEST_PIECE, num_items // ENOUGH)
    return min(max(5, wanted), longest) if longest > 1 else 0


def from_times(times: Sequence[float | None]) -> list[int] | None:
    """Number the series of pictures that were taken one after the other: a gap far longer than usual begins a new one.

    Args: times in seconds, in any order; None where unknown.
    Returns: the series of each picture; None where a time is unknown, or times make no series of several pictures.
    """
    if len(times) < 2 or any(t is None for t in times):
        return None
    known = np.array(times, dtype=np.float64)
    order = np.argsort(known, kind="stable")
    gaps = np.diff(known[order])
    usual = float(np.median(gaps))
    if usual > 600:
        return None  # so long apart that none follows on another
    starts = gaps > max(60.0, 10 * usual)
    series = np.empty(len(known), dtype=np.int64)
    series[order] = np.concatenate([[0], np.cumsum(starts)])
    return series.tolist() if _are_groups(Counter(series.tolist()), len(known)) else None


def time_in(name: str) -> float | None:
    """Return the time in seconds that stands in a name as a date with hour, minute and second, or since 1970; None without."""
    stamp = _STAMP.search(name)
    if stamp:
        try:
            return datetime(*map(int, stamp.groups()), tzinfo=UTC).timestamp()  # type: ignore[arg-type, misc]
        except ValueError:
            return None
    seconds = _SECONDS.search(name)
    return float(f"{seconds[1]}.{seconds[2] or 0}") if seconds else None


def near_copies(likeness: NDArray[np.bool_]) -> list[int]:
    """Number the sets of pictures of which each nearly repeats another one of its set, by the first of them.

    Args: likeness [n, bits].
    """
    signs = np.where(likeness, 1.0, -1.0).astype(np.float32)
    count, bits = signs.shape
    sets = np.arange(count)
    for first in range(0, count, 1000):
        differing = (bits - signs[first : first + 1000] @ signs[first:].T) / 2
        for near in differing <= NEAR_COPY:
            own = np.unique(sets[first:][near])  # its own and those of its near-copies, the lowest first
            if len(own) > 1:
                sets[np.isin(sets, own[1:])] = own[0]
    found: list[int] = sets.tolist()
    return found


def are_evident(sets: Sequence[int]) -> bool:
    """Whether a tenth of the pictures or more have a near-copy, and not all are copies of one another."""
    sizes = Counter(sets)
    return len(sizes) > 1 and sum(size for size in sizes.values() if size > 1) >= 0.1 * len(sets)


def film_piece(likeness: NDArray[np.bool_], items: Sequence[str]) -> int:
    """Return how long pieces of a film should be if the pictures are one: each resembles the next in the order of names; else 0.

    Args: likeness [n, bits]; items, their names.
    """
    count = len(items)
    if count < 2 * ENOUGH:
        return 0
    ordered = likeness[sorted(range(count), key=lambda i: natural_order(items[i]))]
    share = ordered.mean(axis=0)
    usual = float(2 * (share * (1 - share)).sum())  # bits that differ between two of them, on average
    distances = [_mean_distance(ordered, lag) for lag in range(1, min(LONGEST_PIECE, count // ENOUGH) + 1)]
    if distances[0] > 0.85 * usual:
        return 0
    reach = next((lag for lag, found in enumerate(distances) if found > 0.95 * usual), len(distances))
    return piece_length(count, reach)


def as_proposal(rule: str, origin: str, groups: Mapping[str, str]) -> Proposal:
    """Return a rule with the groups that it makes of items (item -> group)."""
    return Proposal(rule, origin, tuple(sorted(Counter(groups.values()).values(), reverse=True)))


def is_finer(one: Sequence[object], other: Sequence[object]) -> bool:
    """Whether every group of one partition, given item by item, lies inside one of the other."""
    return len({*zip(one, other, strict=True)}) == len({*one})


def _keep(
    found: dict[tuple[int, ...], Proposal], rule: str, origin: str, items: Sequence[str], classes: Sequence[str]
) -> None:
    """Add a rule to what is found, by its partition, if it makes groups that are no classes; the first of a partition stays."""
    groups = read_rule(rule).groups(items, "")
    if len(groups) < len(items) or not _are_groups(Counter(groups.values()), len(items)):
        return
    if classes:
        of_class = {(kind, groups[item]) for kind, item in zip(classes, items, strict=True)}
        if len(of_class) == len({*classes}):
            return  # a class has one group: the groups are classes, or several together
    numbers: dict[str, int] = {}
    partition = tuple(numbers.setdefault(groups[item], len(numbers)) for item in items)
    found.setdefault(partition, as_proposal(rule, origin, groups))


def _are_groups(sizes: Mapping[object, int], num_items: int) -> bool:
    """Several groups, of which most items have company in theirs."""
    return 2 <= len(sizes) <= num_items / 2 and sum(s for s in sizes.values() if s > 1) >= 0.8 * num_items


def _shorter(pattern: str, items: Sequence[str], groups: Mapping[str, str]) -> str:
    """Write a pattern with the ending that all names have, if they have one and it finds the same groups."""
    endings = {re.sub(r"\d+", r"\\d+", re.escape(item[len(groups[item]) :])) for item in items}
    own = f"^(.+?){endings.pop()}$"
    return own if not endings and read_rule(f"name:{own}").groups(items, "") == groups else pattern


def _run(items: Sequence[str], groups: Mapping[str, str]) -> bool:
    """Whether the last numbers of each stem run evenly, or each stem has few."""
    sizes = Counter(groups.values())
    if len(sizes) >= ENOUGH and len(items) / len(sizes) <= FEW:
        return True
    steps, even = _steps(items, groups)
    return even > 0 and even >= EVEN_SHARE * steps.total()


def _is_film(items: Sequence[str]) -> bool:
    """Whether the items are numbered by the word frame, or mostly or throughout in steps of one length above one."""
    stems = {item: re.sub(r"\d+$", "", item) for item in items}
    if any(stem == item for item, stem in stems.items()):
        return False
    if all(_FRAME.search(stem.rpartition("/")[2]) for stem in stems.values()):
        return True
    steps, _ = _steps(items, stems)
    if steps.total() < ENOUGH:
        return False
    step, count = steps.most_common(1)[0]
    return (step > 1 and count >= MOSTLY * steps.total()) or math.gcd(*steps) > 1


def _steps(items: Sequence[str], groups: Mapping[str, str]) -> tuple[Counter[int], int]:
    """Return how often the last numbers inside a group are so far apart, and how many steps are the commonest of their group."""
    numbers: dict[str, list[int]] = {}
    for item in items:
        last = re.search(r"(\d+)\D*$", item)
        if last:
            numbers.setdefault(groups[item], []).append(int(last[1]))
    steps, even = Counter[int](), 0
    for own in numbers.values():
        found = Counter(np.diff(sorted(own)).tolist())
        steps += found
        even += found.most_common(1)[0][1] if found else 0
    return steps, even


def _mean_distance(ordered: NDArray[np.bool_], lag: int) -> float:
    return float((ordered[lag:] != ordered[:-lag]).sum(axis=1).mean())
