# SPDX-License-Identifier: Apache-2.0
"""A recipe is judged by several trainings that differ in their seed alone; one run says that it is about itself."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

import rekindle
from rekindle.cli import main
from rekindle.core.errors import RekindleError, RequestError
from rekindle.engine.probe import Reading
from rekindle.matrix.recipe import compare
from rekindle.matrix.rows import compare_rows
from rekindle.matrix.run import compare_grid
from rekindle.matrix.table import notes
from rekindle.measuring.choosing import choices_of
from rekindle.measuring.comparison import Comparison
from rekindle.measuring.options import compare_options
from rekindle.pretraining.probes import ModelProbe
from tests.engine.running import Recorder, stop_after
from tests.evaluation.toy import write_noise
from tests.matrix.making import COMMON, STEPS, tree

DENSE = {"dense_retrieval": {"size_px": 32, "memory_size": 30}}


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A base, images, labelled data, and a run file."""
    tree(tmp_path)
    recipe = {"images": str(tmp_path / "images"), "method": "dino", **COMMON}
    recipe.pop("glare", None)
    (tmp_path / "dino.yaml").write_text(yaml.safe_dump(recipe))
    return tmp_path


def asked(place: Path, **changes: Any) -> dict[str, Any]:
    return {
        "base": str(place / "base"),
        "data": str(place / "data"),
        "recipe": str(place / "dino.yaml"),
        "training_seeds": 2,
        "out": str(place / "out"),
        "protocol": ["dense-retrieval"],
        "seeds": 1,
        "worst_images": 0,
        "resamples": 100,
        "device": "cpu",
        **DENSE,
    } | changes


def train(place: Path, name: str, **changes: Any) -> str:
    options = yaml.safe_load((place / "dino.yaml").read_text())
    rekindle.pretrain(**options | {"backbone": str(place / "base"), "out": str(place / name)} | changes)
    return str(place / name)


def pool(place: Path, *models: str) -> Comparison:
    return compare(compare_options(asked(place, recipe="", models=models, pool=True)))


def test_a_recipe_is_trained_with_its_seeds_stopped_gone_on_and_judged_once(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(RekindleError, match=r"seed 0 was asked to stop after step 1 of 3; the same command goes on"):
        compare(compare_options(asked(place)), watcher=stop_after(1))
    found = compare(compare_options(asked(place)))
    (row,) = found.rows
    runs = [str(place / "out" / "runs" / f"seed-{seed}") for seed in (0, 1)]
    assert (row.subject, row.trainings, row.verdict.training_seeds) == ("recipe", runs, 2)
    assert "training seeds" in row.verdict.components
    assert [json.loads((Path(run) / "model.json").read_text())["steps"] for run in runs] == [STEPS, STEPS]
    assert yaml.safe_load((Path(runs[1]) / "config.yaml").read_text())["seed"] == 1
    assert found.notes == []
    watcher = Recorder()
    again = compare(compare_options(asked(place)), watcher=watcher)
    assert next(text for text in watcher.messages if "finished before" in text).startswith("training 1 of 2, seed 0")
    assert watcher.steps == [] and again.rows == found.rows
    assert pool(place, *runs).rows[0].verdict == row.verdict, "runs that are there give the same verdict"
    single = compare(compare_options(asked(place, recipe="", models=[runs[0]])))
    assert single.rows[0].subject == "run" and single.rows[0].verdict.training_seeds == 1
    assert single.notes == [
        f"{runs[0]}: this run, not its recipe: one training says nothing of what other seeds give (runs spread by 0.3 to 1 "
        "point); use --pool with three runs, or --recipe"
    ]
    assert str(single).endswith(single.notes[0])
    request = ["compare", str(place / "base"), *runs, "--pool", "--data", str(place / "data"), "--seeds", "1"]
    request += [
        "--protocol",
        "dense-retrieval",
        "--dense-retrieval.size-px",
        "32",
        "--dense-retrieval.memory-size",
        "30",
    ]
    assert main([*request, "--resamples", "100", "--out", str(place / "cli"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["rows"][0]["verdict"] == row.verdict.model_dump(mode="json")


@pytest.mark.parametrize(("share", "left"), [(0.5, 31), (1.0, 62)])
def test_a_grid_of_probed_runs_leaves_what_chose_them_out_too(
    share: float, left: int, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    headlines = iter([0.1, 0.2, 0.2, 0.1])
    monkeypatch.setattr(ModelProbe, "measure", lambda self, backbone: Reading({}, next(headlines)))
    data = write_noise(place / "many", num_test=62)
    probes = {"probe": ["multi-label"], "probe_data": str(data), "probe_share": share, "every": 3}
    grid = tree(place, data=str(data), methods={"dino": {}}, seeds=[0, 1], worst_images=0, evaluation_seeds=1)
    grid |= {"protocols": ["dense-retrieval"], "common": COMMON | probes}
    grid.pop("linear_seg")
    table = compare_grid(grid)
    (row,) = table.rows
    (entry,) = row.left_out
    assert (entry.is_left_out, entry.items_of, row.pooled["dense-retrieval"].items) == (share < 1, 62, left)
    runs = [str(place / "out" / "runs" / "tiny" / "dino" / "adapters" / f"seed-{seed}") for seed in (0, 1)]
    assert entry.models == runs
    assert f"{entry.told}." in notes(table)
    plain = compare_grid(grid | {"common": COMMON | {"steps": 2}, "out": str(place / "plain")})
    assert plain.rows[0].left_out == []
    for matrices, side in (((place / "out", place / "plain"), 0), ((place / "plain", place / "out"), 1)):
        found = compare_rows(matrices[0], "dino/adapters", matrices[1], "dino/adapters").differences["dense-retrieval"]
        assert found.items == left
        assert [size > 0 for size in found.flattered] == [share == 1.0 and side == place for place in (0, 1)]


def test_one_training_of_a_recipe_says_so(place: Path) -> None:
    found = rekindle.compare(
        place / "base",
        [],
        place / "data",
        **{name: value for name, value in asked(place, training_seeds=1).items() if name not in ("base", "data")},
    )
    assert found.notes == [
        f"{place / 'dino.yaml'} (1 training): one training says nothing of the recipe: other seeds would differ (runs spread by "
        "0.3 to 1 point); give three"
    ]


def test_runs_of_other_recipes_and_models_that_are_no_runs_are_not_pooled(place: Path) -> None:
    first, second = train(place, "a"), train(place, "b", seed=1, steps=2)
    with pytest.raises(RequestError, match=r"not trainings of one recipe: steps = 3 and 2; pool runs that differ in"):
        pool(place, first, second)
    with pytest.raises(RequestError, match=r"b and .*b were both trained with seed 1"):
        pool(place, second, second)
    with pytest.raises(RequestError, match=r"base is not the folder of a finished run"):
        pool(place, first, str(place / "base"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"out": ""}, "--out is missing"),
        ({"models": ["runs/mine"]}, "--recipe trains the models itself, and runs/mine is given as well"),
        ({"recipe": "nowhere.yaml"}, "--recipe nowhere.yaml: No such file"),
        ({"training_seeds": 0}, "training_seeds"),
    ],
)
def test_requests_that_cannot_be_are_refused_before_anything_is_trained(
    changes: dict[str, Any], message: str, place: Path
) -> None:
    with pytest.raises(RequestError, match=message):
        compare(compare_options(asked(place, **changes)))
    assert not (place / "out").exists()


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("backbone", "vit_small_patch16_224.dino", "backbone = vit_small_patch16_224.dino, and BASE is .*base"),
        ("images", "", "--images is missing"),
        ("stepz", 3, "unknown option stepz; did you mean steps"),
    ],
)
def test_a_run_file_that_does_not_fit_is_refused(option: str, value: object, message: str, place: Path) -> None:
    path = place / "dino.yaml"
    path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | {option: value}))
    with pytest.raises(RequestError, match=message):
        compare(compare_options(asked(place)))


def test_a_folder_with_a_run_of_other_options_is_refused_by_the_option(place: Path) -> None:
    train(place, "out/runs/seed-0", steps=2)
    with pytest.raises(RequestError, match=r"seed-0 was trained with steps = 2, and --recipe .*dino.yaml now says 3"):
        compare(compare_options(asked(place)))


def test_trainings_whose_steps_a_probe_chose_leave_the_same_items_out(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The part does not follow the seed, so that what one training did not choose on is free for all of them."""
    headlines = iter([0.1, 0.2, 0.2, 0.1])
    monkeypatch.setattr(ModelProbe, "measure", lambda self, backbone: Reading({}, next(headlines)))
    data = write_noise(place / "many", num_test=62)
    probes = {"probe": ("multi-label",), "probe_data": str(data), "every": 3}
    runs = [train(place, f"probed-{seed}", seed=seed, **probes) for seed in (0, 1)]
    assert choices_of(runs[0])[0].names == choices_of(runs[1])[0].names
    found = compare(compare_options(asked(place, recipe="", models=runs, pool=True, data=str(data))))
    (entry,) = found.left_out
    assert entry.is_left_out and (entry.items_chosen, entry.items_of) == (31, 62)
    assert found.notes == [
        f"dense-retrieval: 31 of 62 images chose the step of {runs[0]} and {runs[1]} and are left out of the verdict"
    ]
    assert found.rows[0].verdict.items == 31
    written = json.loads((place / "out" / "comparison.json").read_text())["left_out"]
    assert written == [entry.model_dump()]
