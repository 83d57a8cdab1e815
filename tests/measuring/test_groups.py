# SPDX-License-Identifier: Apache-2.0
"""`--group-by` in a measurement: in the result, its table and its fingerprint; refused before anything is measured."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

import rekindle
from rekindle.core.errors import RequestError
from rekindle.core.tables import import_named
from rekindle.evaluation import PROTOCOLS
from rekindle.evaluation.features.extractors import FeatureExtractor
from rekindle.evaluation.scores.result import EvalResult, read_groups, read_result
from rekindle.matrix.grid import check_grid
from rekindle.measuring.measurement import LabelledData, result_config
from rekindle.measuring.options import evaluate_options
from tests.evaluation.pictures import write_classes
from tests.evaluation.toy import TINY, stripes, write_data, write_item

DENSE: dict[str, Any] = {"size_px": 32, "memory_size": 30}


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Two train images, and two films of two frames to measure."""
    root = write_data(tmp_path / "data", num_train=2, num_test=0)
    for film in ("a", "b"):
        for frame in range(2):
            write_item(root, "val", f"{film}/f{frame}", stripes(shift=frame))
    return root


def measure(data: Path, out: Path, protocol: str = "dense-retrieval", **options: Any) -> EvalResult:
    settings: dict[str, Any] = {"dense_retrieval": DENSE} if protocol == "dense-retrieval" else {}
    return rekindle.evaluate(TINY, protocol, data, init="random", out=str(out), **settings, **options)


def test_the_groups_stand_in_the_result_its_table_and_its_fingerprint(data: Path, tmp_path: Path) -> None:
    plain = measure(data, tmp_path / "plain.json")
    films = measure(data, tmp_path / "films.json", group_by="folder")
    assert (plain.group_by, films.group_by) == ("", "folder")
    assert plain.metrics == films.metrics
    assert "group_by" not in plain.config | films.config
    assert read_groups(tmp_path / "films.csv", read_result(tmp_path / "films.json")) == ["a", "a", "b", "b"]
    by_name = measure(data, tmp_path / "names.json", group_by="name:^(.)/")
    frames = measure(data, tmp_path / "frames.json", group_by="name:f.")
    assert films.fingerprint == by_name.fingerprint  # the groups are what counts, however they were asked for
    assert len({plain.fingerprint, films.fingerprint, frames.fingerprint}) == 3


def test_without_groups_the_fingerprint_is_that_of_before(data: Path) -> None:
    options = evaluate_options({"protocol": "dense-retrieval", "data": str(data)})
    config = result_config(options, "dense-retrieval")
    assert not {"group_by", "allow_shared_groups"} & {*config}
    told = [
        "dense-retrieval",
        {name: value for name, value in config.items() if name != "init"},
        ["a/f0", "a/f1", "b/f0", "b/f1"],
        ["train0", "train1"],
    ]
    before = hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:16]
    assert LabelledData(str(data), "train", "val", ["dense-retrieval"]).fingerprint("dense-retrieval", config) == before


def test_a_group_of_both_splits_is_refused_before_a_feature_is_made_unless_it_is_let_through(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_item(data, "train", "a/f7", stripes())
    for name in ("train0", "train1"):
        for kind in ("images", "masks"):
            (data / kind / "train" / f"{name}.png").rename(data / kind / "train" / "a" / f"{name}.png")
    with monkeypatch.context() as patched:
        patched.setattr(FeatureExtractor, "extract", lambda *_: pytest.fail("a feature was made"))
        with pytest.raises(RequestError) as caught:
            measure(data, tmp_path / "r.json", group_by="folder")
    told = str(caught.value)
    assert "1 group with items in both splits, 'train' that dense-retrieval learns from and 'val'" in told
    assert "a (3 and 2)" in told
    assert "--allow-shared-groups" in told
    found = measure(data, tmp_path / "r.json", group_by="folder", allow_shared_groups=True)
    assert found.shared_groups == ["a"]
    assert measure(data, tmp_path / "p.json", group_by="every:2").shared_groups == []
    alone = measure(data, tmp_path / "s.json", group_by="folder", protocol="clustering", clustering={"size_px": 32})
    assert alone.shared_groups == []  # it learns from no split


def test_splits_are_no_groups(tmp_path: Path) -> None:
    root = write_data(tmp_path / "data")
    with pytest.raises(RequestError, match="3 of the 3 items of the split 'val' have no group: val0, val1, val2"):
        LabelledData(str(root), "train", "val", ["linear-seg"], group_by="folder")


def test_classes_that_look_like_groups_are_told_of(tmp_path: Path) -> None:
    data = str(write_classes(tmp_path))
    with pytest.raises(RequestError, match=r"5 groups \(these are the classes\) with items in both splits"):
        LabelledData(data, "train", "val", ["knn"], group_by="folder")


def test_episodes_cannot_have_groups_and_what_is_advised_can(tmp_path: Path) -> None:
    write_classes(tmp_path)
    rule: dict[str, Any] = {"group_by": "name:^(.)", "allow_shared_groups": True}
    with pytest.raises(RequestError) as caught:
        measure(tmp_path, tmp_path / "r.json", "one-shot", **rule)
    assert "one-shot cannot have groups: its items are episodes, and each draws images of several groups" in str(
        caught.value
    )
    assert "knn reads the same data image by image" in str(caught.value)
    found = measure(tmp_path, tmp_path / "k.json", "knn", knn={"size_px": 16, "k": 3}, **rule)
    assert found.shared_groups == ["a", "b", "c", "d", "e"]


def test_episodes_are_the_only_items_without_an_image_of_their_own() -> None:
    kinds = {name: import_named(PROTOCOLS, "protocol", name) for name in PROTOCOLS}
    assert [name for name, kind in kinds.items() if kind.UNGROUPED] == ["one-shot"]


@pytest.mark.parametrize(
    ("protocol", "settings"),
    [
        ("variance", {"size_px": 32, "num_images": 3, "num_views": 2, "align_px": 8}),
        ("cka", {"size_px": 32}),
        ("similarity", {"size_px": 32}),
        ("prompted-seg", {"size_px": 32}),
        ("clustering", {"size_px": 32}),
    ],
)
def test_items_of_every_kind_of_protocol_have_their_group(
    data: Path, tmp_path: Path, protocol: str, settings: dict[str, Any]
) -> None:
    group = {protocol.replace("-", "_"): settings}
    found = measure(data, tmp_path / "r.json", protocol=protocol, group_by="folder", **group)
    named = read_groups(tmp_path / "r.csv", found)
    assert named is not None
    assert {*named} == {"a", "b"}


def test_data_of_a_grid_have_their_own_rule() -> None:
    tree: dict[str, Any] = {"images": "i", "data": "d", "out": "o", "starts": {"s": "vit"}, "methods": {"glare": {}}}
    tree |= {"group_by": "folder", "tests": {"city": {"data": "c", "group_by": "every:5"}, "sea": "s"}}
    grid = check_grid(tree | {"protocols": ["knn"], "allow_shared_groups": True})
    asked = [grid.measuring(column) for column in grid.columns()]
    assert [(options.data, options.group_by, options.allow_shared_groups) for options in asked] == [
        ("d", "folder", True),
        ("c", "every:5", True),
        ("s", "folder", True),
    ]
