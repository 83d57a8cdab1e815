# SPDX-License-Identifier: Apache-2.0
"""A comparison draws the groups that were asked for, and says so where groups are evident and none were."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import numpy as np
import pytest

from rekindle.cli import main
from rekindle.evaluation.protocol import Outcome
from rekindle.evaluation.scores.kinds import Means
from rekindle.evaluation.scores.result import read_groups, read_result
from rekindle.matrix.run import compare_grid
from rekindle.measuring.belonging import notes_on_groups
from rekindle.measuring.comparison import Comparison
from rekindle.measuring.measurement import LabelledData
from tests.evaluation.pictures import write_classes
from tests.evaluation.toy import save_tiny, stripes, write_data, write_item
from tests.matrix.making import tree

ACCURACY = Means(headline="accuracy", names=["accuracy"])
SMALL = ["--protocol", "dense-retrieval", "--dense-retrieval.size-px", "32", "--seeds", "1", "--resamples", "100"]


def scenes(root: Path, stem: str = "s{scene}_{view}", count: int = 9) -> Path:
    """Two train images, and scenes of two images to measure."""
    write_data(root, num_train=2, num_test=0)
    for scene in range(count):
        for view in range(2):
            write_item(root, "val", stem.format(scene=scene, view=view), stripes(shift=scene))
    return root


def compared(tmp_path: Path, data: Path, *more: str) -> Comparison:
    out = tmp_path / "compared"
    models = [tmp_path / "base", tmp_path / "model"]
    for seed, folder in enumerate(models):
        if not folder.exists():
            save_tiny(folder, seed)
    assert main(["compare", *map(str, models), "--data", str(data), "--out", str(out), *SMALL, *more]) == 0
    return Comparison.model_validate_json((out / "comparison.json").read_text())


def of_groups(found: Comparison) -> list[str]:
    """The notes without that on a single training, which every plain comparison has."""
    return [note for note in found.notes if "one training" not in note]


def outcomes(values: np.ndarray, items: list[str]) -> list[Outcome]:
    return [Outcome(items, np.stack([values, np.ones(len(items))], axis=1), ACCURACY)]


def test_evident_groups_are_told_of_and_what_is_told_draws_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = scenes(tmp_path / "data")
    found = compared(tmp_path, data)
    (note, *_) = found.notes
    assert note.startswith("dense-retrieval: the images seem to belong together by names (9 groups of 2 images)")
    assert note in found.told
    assert note in capsys.readouterr().out.replace("\n", " ")
    assert found.rows[0].verdict.unit == "items"
    words = note.rpartition(": ")[2]
    assert words == r"--group-by 'name:^(.+?)_\d+$'"
    again = compared(tmp_path, data, *shlex.split(words))
    verdict = again.rows[0].verdict
    assert (verdict.unit, verdict.units, verdict.items) == ("groups", 9, 18)
    assert of_groups(again) == []
    result = next((tmp_path / "compared").glob("dense-retrieval-1-*.json"))
    groups = read_groups(result.with_suffix(".csv"), read_result(result))
    assert groups == [f"s{scene}" for scene in range(9) for _ in range(2)]


def test_nothing_is_told_of_independent_images(tmp_path: Path) -> None:
    data = scenes(tmp_path / "data", "{scene}{view}5{scene}")
    assert of_groups(compared(tmp_path, data)) == []


def test_neighbours_that_are_alike_are_told_of_for_the_model_where_most(tmp_path: Path) -> None:
    data = LabelledData(str(write_data(tmp_path / "data", num_test=40)), "train", "val", ["dense-retrieval"])
    items = [str(n * n) for n in range(40)]
    base = np.random.default_rng(0).random(40)
    wave, quick = base + np.sin(np.arange(40) / 6), base + np.sin(np.arange(40) / 2)
    sides = [outcomes(values, items) for values in (base, quick, wave)]
    (note,) = notes_on_groups(data, ["base", "quick", "slow"], {"dense-retrieval": sides})
    assert note.startswith(
        "dense-retrieval, slow: neighbouring items are alike (their influences on the difference correlate by 1.00"
    )
    assert note.endswith("say what belongs together, for example --group-by every:5")
    assert notes_on_groups(data, ["base", "same"], {"dense-retrieval": [sides[0], sides[0]]}) == []


def test_classes_and_episodes_are_no_neighbours(tmp_path: Path) -> None:
    root = str(write_classes(tmp_path, num_test=8))
    data = LabelledData(root, "train", "val", ["knn", "one-shot"])
    items = data.test("knn").items
    source = np.random.default_rng(0)
    base, by_class = source.random(40), np.repeat(source.standard_normal(5), 8)
    sides = [outcomes(base, items), outcomes(base + by_class + 0.1 * source.standard_normal(40), items)]
    assert notes_on_groups(data, ["base", "model"], {"knn": sides}) == []
    episodes = [f"episode {n:05}" for n in range(40)]
    assert notes_on_groups(data, ["a", "b"], {"one-shot": [outcomes(o[0].rows[:, 0], episodes) for o in sides]}) == []


def test_groups_of_both_splits_that_were_let_through_are_told_of(tmp_path: Path) -> None:
    root = scenes(tmp_path / "data")
    write_item(root, "train", "s3_7", stripes())
    write_item(root, "train", "q_1", stripes())
    for name in ("train0", "train1"):
        for kind in ("images", "masks"):
            (root / kind / "train" / f"{name}.png").unlink()
    found = compared(tmp_path, root, "--group-by", "name:^(.+?)_", "--allow-shared-groups")
    assert of_groups(found) == [
        "dense-retrieval: 1 of the groups have images among what was learnt from (--allow-shared-groups), so its numbers flatter"
    ]


def test_a_matrix_draws_groups_or_says_that_it_should(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = str(scenes(tmp_path / "scenes"))
    grid = tree(tmp_path, methods={"dino": {}}, data=data, protocols=["dense-retrieval"], evaluation_seeds=1)
    del grid["linear_seg"]
    single = compare_grid(grid, out=str(tmp_path / "single"))
    (note, *_) = single.on_groups
    assert note.startswith("dense-retrieval: the images seem to belong together by names (9 groups of 2 images)")
    assert note in (tmp_path / "single" / "table.md").read_text()
    (rule,) = re.findall(r"--group-by '(.+)'", note)
    table = compare_grid(grid | {"group_by": rule}, out=str(tmp_path / "grouped"))
    pooled = table.rows[0].pooled["dense-retrieval"]
    assert (pooled.unit, pooled.units, pooled.items) == ("groups", 9, 18)
    assert f"draws groups of images ({rule})" in table.interval
    assert table.on_groups == []
    sides = [[str(tmp_path / name), "dino/adapters"] for name in ("grouped", "single")]
    assert main(["compare", "--rows", *sides[0], *sides[0], "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["differences"]["dense-retrieval"]
    assert (found["unit"], found["units"]) == ("groups", 9)
    assert main(["compare", "--rows", *sides[0], *sides[1]]) == 2
    assert "not measured with the same groups of images; measure both with the same group_by" in capsys.readouterr().err
