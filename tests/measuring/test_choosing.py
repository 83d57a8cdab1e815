# SPDX-License-Identifier: Apache-2.0
"""Items that choose a step: a part of them, by their names, which then does not judge."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from rekindle.core.errors import RequestError
from rekindle.evaluation.scores.kinds import Means
from rekindle.measuring.choosing import (
    Choice,
    Choosing,
    Chosen,
    choices_of,
    choosing_part,
    flattery,
    left_out,
    place_of,
)

NAMES = [f"street/{n:03}" for n in range(60)]
LOOKS = 10


def choosing(share: float = 0.5, data: str = "d", split: str = "val") -> Choosing:
    return Choosing("linear-seg", data, split, share, "", NAMES, choosing_part(NAMES, share))


def choice(**changes: object) -> Choice:
    source = choosing()
    record = source.record(step=3, looks=LOOKS)
    return Choice(Chosen(**record.model_dump() | changes), frozenset(source.text.splitlines()))


def write_model(folder: Path, chosen: Choosing | None, base: str = "vit") -> Path:
    folder.mkdir(parents=True)
    record = {} if chosen is None else {"chosen": chosen.record(step=3, looks=LOOKS).model_dump()}
    if chosen is not None:
        chosen.write(folder)
    (folder / "model.json").write_text(json.dumps({"base": {"name": base}, **record}))
    return folder


@pytest.mark.parametrize("share", [0.01, 0.3, 0.5, 0.99])
def test_a_part_follows_from_the_names_alone_and_is_never_empty(share: float) -> None:
    part = choosing_part(NAMES, share)
    assert part.sum() == min(max(round(60 * share), 1), 59)
    shuffled = np.random.default_rng(0).permutation(60)
    assert (choosing_part([NAMES[i] for i in shuffled], share) == part[shuffled]).all()
    smaller = choosing_part(NAMES, share / 2)
    assert not (smaller & ~part).any(), "a smaller share is part of a larger one"
    assert choosing_part(NAMES, 1.0).all()


def test_groups_choose_as_a_whole() -> None:
    groups = np.array([f"drive {n // 6}" for n in range(60)])
    part = choosing_part(groups.tolist(), 0.5)
    assert part.sum() == 30
    assert all(len(set(part[groups == name])) == 1 for name in groups)


def test_one_group_cannot_both_choose_and_judge() -> None:
    with pytest.raises(RequestError, match=r"are all one \('drive'\).*--probe-share 1.0"):
        choosing_part(["drive"] * 9, 0.5)


def test_a_half_that_chooses_flatters_nothing_and_a_whole_does() -> None:
    """Ten looks at 60 items, none better than the base (calibration, section 5: +1.0 to 1.1 standard errors, 16 % false)."""
    source, score = np.random.default_rng(5), Means(headline="top-1", names=["top-1"])
    part = choosing_part(NAMES, 0.5)
    every = np.ones(60, dtype=bool)
    found: dict[str, list[float]] = {"whole": [], "half": [], "widened": []}
    for _ in range(600):
        drawn = source.normal(size=(1 + LOOKS, 60, 2))
        drawn[..., 1] = 1.0  # the weight of an item
        base, steps = drawn[0], drawn[1:]
        for name, chooses, judges in (("whole", every, every), ("half", part, ~part)):
            best = steps[int(np.argmax(score.over(steps, chooses[None].astype(float))[0]))]
            difference = score.value(best[judges]) - score.value(base[judges])
            error = float((best - base)[judges, 0].std(ddof=1)) / np.sqrt(judges.sum())
            found[name].append(difference / error)
            if name == "whole":
                found["widened"].append((difference - flattery(LOOKS, 1.0, error)) / error)
    means = {name: np.mean(values) for name, values in found.items()}
    false = {name: np.mean(np.array(values) > 1.96) for name, values in found.items()}
    assert means["whole"] == pytest.approx(flattery(LOOKS, 1.0, 1.0), abs=0.15)
    assert abs(means["half"]) < 0.15
    assert false["whole"] > 0.10
    assert false["half"] < 0.045 and false["widened"] < 0.03


def test_what_chose_is_left_out_and_all_is_kept_where_too_little_is_left() -> None:
    found, judges = left_out("knn", NAMES, {"RUN": [choice()], "other": []}, "d", "val")
    assert found is not None and (found.models, found.items_chosen, found.items_of) == (["RUN"], 30, 60)
    assert found.is_left_out and (judges == ~choosing_part(NAMES, 0.5)).all()
    assert "30 of 60 images chose the step of RUN and are left out" in found.told
    found, judges = left_out("knn", NAMES, {"RUN": [choice()]}, "d", "val", enough=31)
    assert found is not None and not found.is_left_out and judges.all()
    assert "the best of 10 looks" in found.told


def test_a_group_is_left_out_whole() -> None:
    groups = [f"drive {n // 2}" for n in range(60)]
    found, judges = left_out("knn", NAMES, {"RUN": [choice()]}, "d", "val", groups=groups, enough=2)
    chose = {groups[i] for i in np.flatnonzero(choosing_part(NAMES, 0.5))}
    assert found is not None and judges.tolist() == [group not in chose for group in groups]


def test_episodes_of_images_that_chose_are_kept_and_flatter() -> None:
    episodes = [f"episode {n}" for n in range(99)]
    found, judges = left_out("one-shot", episodes, {"RUN": [choice()]}, "d", "val", test_items=NAMES)
    assert found is not None and judges.all() and not found.is_left_out and found.items_chosen == 99


def test_other_splits_of_the_same_data_are_other_items_and_copies_are_the_same(tmp_path: Path) -> None:
    here = choice(data=str(tmp_path.resolve()))
    assert left_out("knn", NAMES, {"RUN": [here]}, str(tmp_path), "test")[0] is None
    assert left_out("knn", NAMES, {"RUN": [here]}, str(tmp_path), "val")[0] is not None
    assert left_out("knn", NAMES, {"RUN": [here]}, str(tmp_path / "copy"), "test")[0] is not None
    assert left_out("knn", ["a", "b"], {"RUN": [here]}, str(tmp_path / "other"), "val")[0] is None


def test_splits_of_published_data_that_share_images_are_seen_through(tmp_path: Path) -> None:
    """voc2012: the split trainval holds the images of val."""
    data, others = f"voc2012:{tmp_path}", [f"2008/{n}" for n in range(60)]
    chose = choice(data=place_of(data))
    found, judges = left_out("knn", NAMES + others, {"RUN": [chose]}, data, "trainval")
    assert found is not None and (found.items_chosen, judges.sum()) == (30, 90)
    assert left_out("knn", others, {"RUN": [chose]}, data, "train")[0] is None


def test_a_choice_is_read_from_the_folder_and_from_those_it_began_with(tmp_path: Path) -> None:
    first = write_model(tmp_path / "first", choosing())
    second = write_model(tmp_path / "second", None, base=str(first))
    assert choices_of(str(second)) == choices_of(str(first)) == [choice(data=str(Path("d").resolve()))]
    assert choices_of("vit_small_patch16_224.dino") == []
    assert choices_of(str(write_model(tmp_path / "plain", None))) == []


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda folder: (folder / "choosing.txt").unlink(), "names the images that chose the step"),
        (lambda folder: (folder / "choosing.txt").write_text("a\n"), "its hash differs"),
        (
            lambda folder: (folder / "model.json").write_text('{"chosen": {"step": 3}}'),
            r"chosen\.protocol: Field required",
        ),
        (lambda folder: (folder / "model.json").write_text("{"), "cannot be read"),
    ],
)
def test_a_broken_record_is_refused(spoil: object, message: str, tmp_path: Path) -> None:
    folder = write_model(tmp_path / "run", choosing())
    assert callable(spoil)
    spoil(folder)
    with pytest.raises(RequestError, match=message):
        choices_of(str(folder))
