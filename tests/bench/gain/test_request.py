# SPDX-License-Identifier: Apache-2.0
"""What may be asked of `rekindle bench gain`, and what is answered to the rest."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from rekindle.bench.gain.options import GainOptions
from rekindle.bench.gain.run import without_places
from rekindle.bench.gain.scores import read_runs
from rekindle.bench.gain.sides import sides_of
from rekindle.cli import main
from rekindle.core.errors import RequestError
from rekindle.measuring.options import protocol_options
from tests.bench.gain.asking import gain_options


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """Two recipes, and a run as the first one trains it."""
    for name, steps in (("usual", 6), ("fast", 3)):
        tree = {"steps": steps, "views": {"num_local": 2}, "images": "i", "backbone": "vit"}
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(tree))
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").write_text(yaml.safe_dump({"seed": 4, "steps": 6, "views": {"num_local": 2}}))
    (tmp_path / "run" / "model.json").write_text("{}")
    return tmp_path


def asked(place: Path, **changes: Any) -> GainOptions:
    recipes = (str(place / "usual.yaml"), str(place / "fast.yaml"))
    return GainOptions.model_validate({"recipe": recipes, **changes})


def test_sides_are_named_after_what_tells_them_apart(place: Path) -> None:
    build = ("this", f"before={sys.executable}")
    assert [side.label for side in sides_of(asked(place))] == ["usual", "fast"]
    both = sides_of(asked(place, build=build, images="other"))
    assert [side.label for side in both] == ["usual, this", "fast, this", "usual, before", "fast, before"]
    assert {side.recipe["images"] for side in both} == {"other"} and both[0].recipe["steps"] == 6
    (this, before) = sides_of(asked(place, recipe=(str(place / "usual.yaml"),), build=build[::-1]))
    assert (this.label, before.label, before.folder) == ("before", "this", "this")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"recipe": ()}, "--recipe is missing: give run files"),
        ({"recipe": ("usual.yaml", "usual.yaml")}, "'usual' is there 2 times"),
        ({"recipe": ("nowhere.yaml",)}, "--recipe nowhere.yaml: No such file"),
        ({"build": ("this", "before=/no/python")}, "--build before=/no/python: give `this`, or LABEL=PYTHON"),
        ({"recipe": ("bare.yaml",)}, "--recipe bare.yaml names no backbone; give --backbone"),
        ({"recipe": ("usual.yaml", "elsewhere.yaml")}, "the recipes differ in images .*give --images, for all sides"),
        ({"recipe": ("wrong.yaml",)}, "--recipe wrong.yaml: unknown option stepz; did you mean steps"),
        ({"recipe": ("scratch.yaml",)}, "init = random: every seed would begin elsewhere"),
    ],
)
def test_a_side_that_cannot_be_is_named(
    changes: dict[str, Any], message: str, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(place)
    common = {"images": "i", "backbone": "vit"}
    Path("bare.yaml").write_text("steps: 3\n")
    Path("elsewhere.yaml").write_text(yaml.safe_dump(common | {"images": "others"}))
    Path("wrong.yaml").write_text(yaml.safe_dump(common | {"stepz": 3}))
    Path("scratch.yaml").write_text(yaml.safe_dump(common | {"init": "random"}))
    with pytest.raises(RequestError, match=message):
        sides_of(asked(place, **changes))


def test_runs_from_elsewhere_must_be_of_their_recipe(place: Path) -> None:
    file = place / "runs.yaml"
    options = asked(place, runs=str(file), time_only=2, labels="data")
    sides = sides_of(options)

    def refused(content: object, message: str) -> None:
        file.write_text(yaml.safe_dump(content))
        with pytest.raises(RequestError, match=message):
            read_runs(options, sides)

    file.write_text(yaml.safe_dump({"usual": [str(place / "run")]}))
    assert read_runs(options, sides) == {"usual": [place / "run"]}
    refused([1], "holds no `SIDE: \\[FOLDER, ...\\]`")
    refused({"usaul": [str(place / "run")]}, "unknown side 'usaul'; did you mean 'usual'")
    refused({"usual": [str(place)]}, "is not the folder of a finished run")
    refused(
        {"fast": [str(place / "run")]}, "was trained with steps = 6, and the recipe says 3; give runs of this recipe"
    )
    refused({"usual": [str(place / "run")] * 2}, "were both trained with seed 4, so they are one training")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"marks": [0.5, 1.5]}, "shares of a run's steps are above 0 and at most 1"),
        ({"runs": "r.yaml", "labels": "d"}, "add --time-only N"),
        ({"runs": "r.yaml", "time_only": 3}, "give labelled data with --labels"),
        ({"out": "gain"}, "give a name that ends in .json"),
        ({"picture": "gain.jpg"}, "give a name that ends in .png"),
        ({"share": 0}, "greater than 0"),
        ({"rounds": 3}, "unknown option rounds"),
    ],
)
def test_options_that_do_not_fit_are_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        gain_options(changes)


def test_the_protocol_brings_its_options_and_the_end_is_always_a_mark() -> None:
    options = gain_options({"protocol": "dense-retrieval", "dense_retrieval": {"size_px": 32}, "marks": [0.5]})
    assert protocol_options(options, "dense-retrieval").model_dump()["size_px"] == 32
    assert options.shares == (0.5, 1.0)


def test_help_shows_what_gain_reads_and_nothing_else(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "gain", "--help"]) == 0
    shown = capsys.readouterr().out
    assert "--time-only" in shown and "--recipe" in shown and "runs.yaml" in shown
    assert "--peer" not in shown and "--num-prototypes" not in shown and "--rounds" not in shown
    assert main(["bench", "gain", "--protocol", "dense-retrieval", "--help"]) == 0
    assert "--dense-retrieval.memory-size" in capsys.readouterr().out


def test_a_wrong_request_exits_with_two(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipes = ["--recipe", str(place / "usual.yaml"), "--recipe", str(place / "fast.yaml")]
    assert main(["bench", "gain"]) == 2
    assert main(["bench", "gain", *recipes, "--protocol", "linear-seg", "knn"]) == 2
    assert main(["bench", "gain", *recipes]) == 2
    assert main(["bench", "gane"]) == 2
    told = capsys.readouterr().err
    for message in ("--recipe is missing", "name one protocol", "--labels is missing", "did you mean 'gain'"):
        assert message in told


def test_what_is_written_names_no_place() -> None:
    tree = {"build": ["this", "old=/opt/old/bin/python"], "images": "/data/camvid/images", "steps": 3, "level": 0.95}
    assert without_places(tree) == {"build": ["this", "old"], "images": "images", "steps": 3, "level": 0.95}
