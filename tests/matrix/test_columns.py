# SPDX-License-Identifier: Apache-2.0
"""Several labelled data sets, shares of the labels and of the images, and runs that are given."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from rekindle.core.errors import RequestError
from rekindle.data.images import chosen_images, find_images
from rekindle.data.options import DataOptions
from rekindle.evaluation.scores.result import read_result
from rekindle.evaluation.segmentation.linear_seg import LinearSeg
from rekindle.matrix.cells import cell_tree, keys, plan_cells
from rekindle.matrix.grid import check_grid
from rekindle.matrix.run import compare_grid, survey
from rekindle.matrix.table import Table, to_markdown
from rekindle.pretraining.options import resolve
from tests.engine.running import write_images
from tests.evaluation.toy import save_tiny, write_data
from tests.matrix.making import tree


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("columns")
    write_data(folder / "other", num_train=4, num_test=2)
    return folder


def _grid(folder: Path, **changes: Any) -> dict[str, Any]:
    asked: dict[str, Any] = {
        "protocols": ["linear-seg"],
        "tests": {"far": {"data": str(folder / "other"), "split": "train", "train_split": "val"}},
        "train_fractions": [1.0, 0.5],
        "image_fractions": [0.5, 1.0],
        "fraction_seed": 3,
        "evaluation_seeds": 1,
        "methods": {"dino": {}},
        "worst_images": 0,
    }
    whole = tree(folder, **asked) | changes
    del whole["dense_retrieval"]
    return whole


@pytest.fixture(scope="module")
def table(folder: Path) -> Table:
    return compare_grid(_grid(folder), out=str(folder / "columns"))


def test_every_data_set_and_share_of_the_labels_is_a_column(folder: Path, table: Table) -> None:
    names = [f"linear-seg{where}, {share} % of the labels" for where in ("", " on far") for share in (100, 50)]
    assert table.protocols == names
    assert all(set(row.pooled) == set(names) for row in table.rows)
    far = table.cells[0].scores["linear-seg on far, 50 % of the labels"]
    assert far.results == ["results/far/linear-seg/labels-0.5/tiny/dino/adapters/images-0.5/seed-0-eval-0.json"]
    result = read_result(folder / "columns" / far.results[0])
    assert (result.data, result.split) == (str(folder / "other"), "train")
    assert (result.config["train_split"], result.config["train_fraction"]) == ("val", 0.5)
    assert (result.counts["images"], result.counts["train_images"]) == (4, 1)


def test_one_data_set_may_be_learned_from_a_few_images_of_each_class_and_the_others_not(folder: Path) -> None:
    """LOCA, table 2b: segmentation, and ten-shot classification."""
    tests = {"few": {"data": "classes", "protocols": ["knn"], "train_shots": 10}, "far": {"data": "masks"}}
    grid = check_grid(_grid(folder, tests=tests, protocols=["linear-seg", "knn"], train_fractions=[]))
    shots = {column.name: grid.measuring(column).train_shots for column in grid.columns()}
    assert shots.pop("knn on few") == 10
    assert set(shots.values()) == {0}
    everywhere = check_grid(_grid(folder, tests={}, train_fractions=[], train_shots=5))
    assert [everywhere.measuring(column).train_shots for column in everywhere.columns()] == [5]


def test_every_share_of_the_images_is_a_run_of_its_own(folder: Path, table: Table) -> None:
    assert [(cell.key.images, cell.run) for cell in table.cells] == [
        (0.5, "runs/tiny/dino/adapters/images-0.5/seed-0"),
        (1.0, "runs/tiny/dino/adapters/seed-0"),
    ]
    assert [cell.options["data"]["fraction"] for cell in table.cells] == [0.5, 1.0]
    assert table.cells[0].options["data"]["fraction_seed"] == 3
    assert [row.place for row in table.rows] == ["adapters, 50 % of the images", "adapters"]
    assert "| tiny → dino | adapters, 50 % of the images |" in to_markdown(table)


def test_the_table_says_the_whole_and_how_many_intervals_there_are(table: Table) -> None:
    text = to_markdown(table)
    assert all(row.overall is not None and row.overall.is_joint for row in table.rows)
    assert "8 intervals at 95% stand here" in text and "about 0.4 would exclude zero by chance" in text
    assert "| overall |" in text


def test_features_are_computed_once_for_all_shares_of_the_labels(
    folder: Path, table: Table, monkeypatch: pytest.MonkeyPatch
) -> None:
    for path in (folder / "columns" / "results").rglob("*.json"):
        path.unlink()
    calls, prepare = [0], LinearSeg.prepare

    def counted(self: LinearSeg) -> None:
        calls[0] += 1
        prepare(self)

    monkeypatch.setattr(LinearSeg, "prepare", counted)
    again = compare_grid(_grid(folder), out=str(folder / "columns"))
    assert calls[0] == 2 * 3  # data sets x (start and two runs), not times shares
    assert [row.pooled for row in again.rows] == [row.pooled for row in table.rows]


def test_a_run_that_is_given_is_measured_and_not_trained(folder: Path, table: Table) -> None:
    run = folder / "columns" / table.cells[1].run
    before = {p: p.stat().st_mtime_ns for p in run.rglob("*")}
    asked = _grid(folder, methods={"mine": {"run": str(run)}}, images="", image_fractions=[0.5], seeds=[4])
    given = compare_grid(asked, out=str(folder / "given"))
    assert given.is_complete and len(given.cells) == 1
    assert given.rows[0].pooled == table.rows[1].pooled
    assert given.cells[0].model_hash == table.cells[1].model_hash
    assert {p: p.stat().st_mtime_ns for p in run.rglob("*")} == before


def test_a_given_run_of_another_start_is_refused(folder: Path, table: Table) -> None:
    save_tiny(folder / "stranger", seed=1)
    run = str(folder / "columns" / table.cells[1].run)
    asked = _grid(folder, methods={"mine": {"run": run}}, starts={"tiny": str(folder / "stranger")}, images="")
    with pytest.raises(RequestError, match="was trained from a start with hash"):
        compare_grid(asked, out=str(folder / "strange"))


def test_shares_of_the_images_are_nested_and_follow_their_own_seed(tmp_path: Path) -> None:
    source = find_images(write_images(tmp_path, 40))
    parts = [{r.path for r in source.part(f, 0).refs} for f in (0.1, 0.2, 0.5, 1.0)]
    assert [len(p) for p in parts] == [4, 8, 20, 40]
    assert parts[0] < parts[1] < parts[2] < parts[3]
    assert {r.path for r in source.part(0.5, 1).refs} != parts[2]
    assert len(source.part(0.001, 0)) == 1 and len(source.part(0.29, 0)) == 11
    assert [r.path for r in source.part(0.2, 0).refs] == sorted(parts[1])
    assert {r.path for r in chosen_images(tmp_path, DataOptions(fraction=0.2)).refs} == parts[1]
    assert len(find_images(write_images(tmp_path / "hundred", 100)).part(0.29, 0)) == 29


def test_the_steps_of_a_share_follow_its_images(folder: Path) -> None:
    asked = _grid(folder)
    asked["common"] = {k: v for k, v in asked["common"].items() if k != "steps"} | {"epochs": 6.0}
    cells = plan_cells(check_grid(asked | {"out": str(folder / "epochs")}), "g")
    assert [cell.steps for cell in cells] == [6, 12]


def test_a_run_does_not_go_on_with_other_images(folder: Path, table: Table) -> None:
    with pytest.raises(RequestError, match=r"data\.fraction_seed = 3, and the grid now says 4"):
        survey(check_grid(_grid(folder, fraction_seed=4) | {"out": str(folder / "columns")}), "g")


def test_the_whole_set_is_left_as_any_run_has_it(folder: Path) -> None:
    grid = check_grid(_grid(folder))
    for key in keys(grid):
        options = resolve(cell_tree(grid, key), {}).options
        assert options.data.chosen == {
            "data.fraction": key.images,
            "data.fraction_seed": 3 if key.images < 1 else 0,
        }


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"train_fraction": 0.5}, "train_fraction and train_fractions are both given; keep one"),
        ({"image_fractions": [0.5, 0.5]}, "shares are numbers above 0 and up to 1, each once"),
        ({"train_fractions": [2.0]}, "shares are numbers above 0"),
        ({"tests": {"knn": "d"}}, "tests.knn has the name of a protocol"),
        ({"tests": {"far": {"data": "d", "protocols": ["knn"]}}}, "tests.far: knn is not among protocols"),
        ({"tests": {}, "data": ""}, "data is missing; for example data: my_labelled_data (or several, under tests)"),
        (
            {"methods": {"m": {"run": "r", "method": "dino"}}},
            "run is a finished run, which method and set cannot change",
        ),
        ({"common": {"data": {"fraction": 0.5}}}, "common.data.fraction: which images count is for the whole grid"),
    ],
)
def test_requests_that_cannot_be_are_refused(folder: Path, change: dict[str, Any], message: str) -> None:
    with pytest.raises(RequestError) as raised:
        check_grid(_grid(folder) | change, "g")
    assert message in str(raised.value)


def test_a_data_set_that_is_not_there_is_named(folder: Path) -> None:
    asked = _grid(folder, tests={"far": str(folder / "nowhere")}) | {"out": str(folder / "x")}
    with pytest.raises(RequestError, match=r"g: tests\.far: .*nowhere"):
        survey(check_grid(asked), "g")


def test_a_given_run_that_has_not_finished_is_named(folder: Path) -> None:
    asked = _grid(folder, methods={"mine": {"run": str(folder / "images")}}) | {"out": str(folder / "x")}
    with pytest.raises(RequestError, match=r"g: methods\.mine\.run: .* holds neither model\.json"):
        survey(check_grid(asked), "g")
