# SPDX-License-Identifier: Apache-2.0
"""Which labelled items choose the step of a run, and which are left to judge the model that was chosen. Torch-free.

The best of k looks at some items is better on these items than it is. So one part of them chooses (`--probe-share`), the run's
files name it, and a comparison leaves it out. Where that leaves too few, all items judge, and the interval reaches further to the
side that choosing flatters (`flattery`).

The part follows from the names alone, not from the seed of the run: several runs on the same labelled data, such as the trainings
of one recipe, then leave the same items to judge all of them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import sqrt
from pathlib import Path
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, ValidationError

from rekindle.core.errors import RequestError
from rekindle.core.files import printable, write_atomically
from rekindle.core.options import Options
from rekindle.core.text_files import read_json
from rekindle.data.published.named import named_root
from rekindle.evaluation.scores.score import Rows
from rekindle.evaluation.verdict.difference import Difference, difference_of
from rekindle.evaluation.verdict.groups import group_indices
from rekindle.evaluation.verdict.judging import FEWEST

FILE, DESCRIPTION = "choosing.txt", "model.json"
Mask = NDArray[np.bool_]


class Chosen(Options):
    """What model.json says, under `chosen`, of a model whose step labelled data chose."""

    protocol: str
    """The protocol whose headline chose."""
    data: str
    """The labelled data, absolute."""
    split: str
    """The split that chose."""
    share: float
    """Which share of its items, or of their groups, was to choose."""
    group_by: str = ""
    """The rule of the groups; empty without."""
    looks: int
    """How many steps were looked at."""
    step: int
    """The step that was best."""
    items: str
    """File beside model.json that names the items that chose, a line each."""
    items_hash: str
    """SHA-256 of that file."""
    items_chosen: int
    """How many it names."""
    items_of: int
    """Items of the split."""

    @property
    def told(self) -> str:
        """Which items chose, as a clause, and what a comparison does with them."""
        if self.items_chosen == self.items_of:
            return (
                f"the step was chosen on all {self.items_of} labelled images: a verdict on the same images flatters the run, "
                "and `rekindle compare` says by how much (--probe-share 0.5 leaves half of them to judge)"
            )
        return (
            f"the step was chosen on {self.items_chosen} of {self.items_of} labelled images; "
            "`rekindle compare` leaves them out"
        )


@dataclass(frozen=True)
class Choosing:
    """The items that choose the step of a run.

    Attributes:
        protocol: whose headline chooses.
        data, split: what it reads.
        share: asked for.
        group_by: rule of the groups.
        items: names of the split.
        part: [n], which of them choose.
    """

    protocol: str
    data: str
    split: str
    share: float
    group_by: str
    items: Sequence[str]
    part: Mask

    @property
    def text(self) -> str:
        """The names that choose, a line each."""
        return "".join(f"{printable(name)}\n" for name, chooses in zip(self.items, self.part, strict=True) if chooses)

    @property
    def identity(self) -> str:
        """Of protocol, split and items: headlines of one identity may be compared."""
        return _digest(f"{self.protocol}\n{self.split}\n{self.text}")

    def record(self, step: int, looks: int) -> Chosen:
        """What the model of a step says of its choice."""
        return Chosen(
            protocol=self.protocol,
            data=place_of(self.data),
            split=self.split,
            share=self.share,
            group_by=self.group_by,
            looks=looks,
            step=step,
            items=FILE,
            items_hash=_digest(self.text),
            items_chosen=int(self.part.sum()),
            items_of=len(self.items),
        )

    def write(self, folder: Path) -> None:
        """Write the names of the items that choose into a folder."""
        write_atomically(folder / FILE, lambda stream: stream.write(self.text.encode()))


def choosing_part(units: Sequence[str], share: float) -> Mask:
    """Return which items choose [n]: a share of the units, by the digest of their names, never none and never all.

    Args: units, of each item the name of what is drawn as one: its group, or the item itself; share, 1.0 for all.
    Raises: RequestError where a single unit would have to be cut in two.

    Example:
        >>> int(choosing_part([f"image {n}" for n in range(10)], 0.3).sum())
        3
    """
    names = sorted(set(units), key=_digest)
    if share == 1.0:
        return np.ones(len(units), dtype=bool)
    if len(names) == 1:
        raise RequestError(
            f"--probe-share {share}: the labelled items of the probe are all one ('{names[0]}'), which cannot both choose and "
            "judge; give more of them, other groups, or --probe-share 1.0, and judge the run on other data"
        )
    chosen = set(names[: min(max(round(share * len(names)), 1), len(names) - 1)])
    return np.array([unit in chosen for unit in units])


@dataclass(frozen=True)
class Choice:
    """A record, and the names in its file."""

    record: Chosen
    names: frozenset[str]


def choices_of(model: str) -> list[Choice]:
    """What labelled data chose of a MODEL and of the models that it began with, as far as their folders say.

    Raises: RequestError where the record is broken, or its file of names missing or another one.
    """
    found: list[Choice] = []
    folder, seen = Path(model).expanduser(), set[Path]()
    while (folder / DESCRIPTION).is_file() and folder.resolve() not in seen:
        seen.add(folder.resolve())
        description = read_description(folder)
        if description.get("chosen") is not None:
            found.append(_read(folder, description["chosen"]))
        folder = Path(str((description.get("base") or {}).get("name", ""))).expanduser()
    return found


def read_description(folder: Path) -> dict[str, Any]:
    """Read model.json as a mapping, whatever it says. Raises: RequestError."""
    path = folder / DESCRIPTION
    try:
        content = read_json(path)
    except (OSError, ValueError) as error:
        raise RequestError(f"{path} cannot be read ({error}); restore it from a copy of the run") from error
    if not isinstance(content, dict):
        raise RequestError(f"{path} is not the description of a model; restore it from a copy of the run")
    return content


def _read(folder: Path, record: object) -> Choice:
    try:
        chosen = Chosen.model_validate(record)
        text = (folder / chosen.items).read_text(encoding="utf-8")
    except ValidationError as error:
        place = ".".join(map(str, error.errors()[0]["loc"]))
        raise RequestError(
            f"{folder / DESCRIPTION}: chosen.{place}: {error.errors()[0]['msg']}; restore it from a copy of the run"
        ) from error
    except (OSError, UnicodeDecodeError) as error:
        raise RequestError(
            f"{folder / FILE} cannot be read ({error}); it names the images that chose the step of this model, which a "
            "comparison has to know: copy it from the run"
        ) from error
    if _digest(text) != chosen.items_hash:
        raise RequestError(
            f"{folder / chosen.items} is not the file that {DESCRIPTION} speaks of (its hash differs), so the images that chose "
            "the step are not known; restore both from one copy of the run"
        )
    return Choice(chosen, frozenset(text.splitlines()))


class LeftOut(Options):
    """What a comparison did, under one protocol, about items that had chosen the step of a model."""

    protocol: str
    """Name of the protocol."""
    models: list[str]
    """Whose steps were chosen."""
    items_chosen: int
    """Items of the comparison that chose, or whose group did."""
    items_of: int
    """Items that were measured."""
    is_left_out: bool
    """The verdicts of all models are of the other items; else of all items, with wider intervals."""
    looks: int
    """Steps that were looked at, the most of any of the models."""
    names: list[str] = Field(default_factory=list)
    """The items that chose."""
    is_by_names: bool = False
    """The data lay elsewhere when they chose: they are known by their names alone, which other images may share."""

    @property
    def told(self) -> str:
        """One line."""
        models = " and ".join(self.models) + (
            " (by their names: the data lay elsewhere then)" if self.is_by_names else ""
        )
        if self.is_left_out:
            return (
                f"{self.protocol}: {self.items_chosen} of {self.items_of} images chose the step of {models} and are left out of "
                "the verdict"
            )
        return (
            f"{self.protocol}: {self.items_chosen} of these {self.items_of} images chose the step of {models}, and too few "
            "others are there to judge alone: the verdict flatters, so the interval reaches further by what the best of "
            f"{self.looks} looks may flatter; measure on other images for a plain verdict"
        )


def left_out(
    protocol: str,
    items: Sequence[str],
    choices: Mapping[str, Sequence[Choice]],
    data: str,
    split: str,
    *,
    groups: Iterable[Hashable] | None = None,
    test_items: Collection[str] | None = None,
    enough: int | None = None,
) -> tuple[LeftOut | None, Mask]:
    """Find the items of a comparison that chose the step of one of its models.

    Args:
        protocol: name, for the record.
        items: that were measured.
        choices: model -> what chose it.
        data, split: that were measured.
        groups: of each item; a group of which one item chose is left out whole.
        test_items: names of the split, where the protocol draws its items from them (episodes).
        enough: items, or groups, that can judge alone; None for as many as a verdict takes.

    Returns: what to do, None where nothing chose here; and which items judge [n].
    """
    place, names = place_of(data), [printable(item) for item in items]
    known = set(names) if test_items is None else {printable(item) for item in test_items}
    chose: set[str] = set()
    models, looks, places = [], 0, set()
    for model, found in choices.items():
        here = [choice for choice in found if _meets(choice, place, split, known)]
        if here:
            models.append(model)
            looks = max(looks, *(choice.record.looks for choice in here))
            chose |= set().union(*(choice.names for choice in here))
            places |= {choice.record.data for choice in here}
    everything = np.ones(len(items), dtype=bool)
    if not models:
        return None, everything
    units = list[Hashable](names if groups is None else groups)
    enough = FEWEST["items" if groups is None else "groups"] if enough is None else enough
    tainted = {unit for unit, name in zip(units, names, strict=True) if name in chose}
    part = np.array([unit in tainted for unit in units])
    if not part.any():
        part = everything  # items that are drawn from the images, so that no one of them is free of those that chose
    is_enough = len(set(units) - tainted) >= enough and not part.all()
    record = LeftOut(
        protocol=protocol,
        models=models,
        items_chosen=int(part.sum()),
        items_of=len(items),
        is_left_out=is_enough,
        looks=looks,
        names=[item for item, chooses in zip(items, part, strict=True) if chooses],
        is_by_names=places != {place},
    )
    return record, ~part if is_enough else everything


def kept_groups(groups: Iterable[Hashable] | None, judges: Mask) -> NDArray[np.int64] | None:
    """Number the groups of the items that judge; None without groups."""
    if groups is None:
        return None
    return group_indices([str(group) for group, is_kept in zip(groups, judges, strict=True) if is_kept])


def flattery(looks: int, share: float, standard_error: float) -> float:
    """How far the best of several looks is above its truth on the items that chose, at the most.

    The difference of two models has the noise of both, so one side's is `standard_error / sqrt(2)`; the best of k independent
    looks lies above its mean by the expected largest of k normal numbers (Blom 1958: the quantile at (k - 3/8) / (k + 1/4)) times
    that. Steps that follow each other are alike, which makes it less (about 0.75 for ten). Where a share of the items chose and
    all of them judge, the part's larger error, 1 / sqrt(share), and its weight, share, leave sqrt(share).

    Example:
        >>> round(flattery(10, 1.0, 1.0), 2), round(flattery(10, 0.5, 1.0), 2), flattery(1, 1.0, 1.0)
        (1.09, 0.77, 0.0)
    """
    return NormalDist().inv_cdf((looks - 0.375) / (looks + 0.25)) * sqrt(share / 2) * standard_error


def flattered(
    found: Difference,
    record: LeftOut | None,
    rows: tuple[Sequence[Rows], Sequence[Rows]],
    base: str,
    models: Sequence[str],
    groups: NDArray[np.int64] | None = None,
) -> Difference:
    """Have an interval reach further to where choosing a side on the items that judge may have moved the difference.

    Pooling trainings that one rule chose makes the error smaller, but not what it flatters: the error of one training counts.

    Args:
        found: the difference.
        record: what chose; None, or with its items left out, changes nothing.
        rows: of base and model, that the difference was made of.
        base, models: names of the two sides.
        groups: of the items, that it was made with.
    """
    if record is None or record.is_left_out or not found.score.is_judged:
        return found
    start, trained = rows
    single = found
    if found.trainings > 1:
        single = difference_of([start[0][: len(trained[0])]], [trained[0]], found.score, groups=groups)
    size = flattery(record.looks, record.items_chosen / record.items_of, single.standard_error)
    up, down = (size if set(side) & set(record.models) else 0.0 for side in (models, [base]))
    return replace(found, flattered=(up, down) if found.score.higher_is_better else (down, up))


def place_of(data: str) -> str:
    """Labelled data by a name that is the same from every folder."""
    named = named_root(data)
    if named is None:
        return str(Path(data).expanduser().resolve())
    return f"{named[0]}:{Path(named[1]).expanduser().resolve()}"


def _meets(choice: Choice, place: str, split: str, names: Collection[str]) -> bool:
    """Whether items that chose are among those measured: of one folder by the split, of copies by their names.

    Splits of a published data set may hold the same images (trainval holds val), and name each in one way; those of a folder have
    names of their own, and `train/001` is not `val/001`.
    """
    record, is_folder = choice.record, Path(place).is_absolute()
    if is_folder and record.data == place and record.split != split:
        return False
    return not choice.names.isdisjoint(names)


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode(errors="surrogateescape")).hexdigest()
