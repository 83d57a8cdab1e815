# SPDX-License-Identifier: Apache-2.0
"""What a grid file may hold, and what it is told otherwise."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from rekindle.core.errors import RequestError
from rekindle.matrix.cells import keys, resolve_cell
from rekindle.matrix.columns import folder_name
from rekindle.matrix.grid import check_grid, read_grid

EXAMPLE = Path(__file__).parents[2] / "examples" / "grids" / "first.yaml"
BASE: dict[str, Any] = {
    "images": "i",
    "data": "d",
    "out": "o",
    "starts": {"a": "vit_small_patch16_224.dino"},
    "methods": {"glare": {}},
}


def test_the_example_resolves_and_has_as_many_runs_as_it_says() -> None:
    grid = read_grid(EXAMPLE)
    cells = list(keys(grid))
    assert f"{len(cells)} runs" in EXAMPLE.read_text()
    resolved = {str(key): resolve_cell(grid, key, str(EXAMPLE)) for key in cells}
    plain, changed = (
        resolved[f"dino / {name} / adapters / seed 1"].options.model_dump() for name in ("glare", "glare without blur")
    )
    assert (plain["glare"]["distortion"], changed["glare"]["distortion"]) == ("blur", "none")
    assert resolved["dino / dino / all weights / seed 0"].options.model_dump()["dino"]["num_prototypes"] == 1024


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seedz": [0]}, "g.yaml: unknown option seedz; did you mean seeds?"),
        ({"protocols": ["linear-sge"]}, "g.yaml: protocols: unknown protocol 'linear-sge'; did you mean 'linear-seg'?"),
        ({"protocols": "linear-seg"}, "g.yaml: protocols = 'linear-seg' must be a list"),
        ({"linear_seg": {"stepz": 3}}, "g.yaml: unknown option linear_seg.stepz; did you mean linear_seg.steps?"),
        ({"methods": {"glare": {"sets": {}}}}, "g.yaml: unknown option methods.glare.sets; did you mean"),
        ({"methods": {}}, "g.yaml: methods is missing; for example methods: {glare: {}}"),
        ({"images": ""}, "g.yaml: images is missing"),
        ({"glare": {}}, "g.yaml: glare holds options of the method glare; put them under common"),
        ({"seeds": [0, 0]}, "seeds are whole numbers from 0 on, each once"),
        ({"evaluation_seeds": 0}, "evaluation_seeds = 0: give a whole number from 1 on, or paired"),
        ({"evaluation_seeds": "pairs"}, "evaluation_seeds = 'pairs': give a whole number from 1 on, or paired"),
        ({"common": {"seed": 3}}, "g.yaml: common.seed is for the whole grid to say; use seeds at the top"),
        ({"common": {"backbone": "x"}}, "g.yaml: common.backbone: what the cells start from stands under starts"),
        ({"frameworks": {"f": {"out": "x"}}}, "g.yaml: frameworks.f.out is for the whole grid"),
        (
            {"methods": {"m": {"set": {"method": "x"}}}},
            "methods.m.set.method: the methods of the cells stand under methods",
        ),
        ({"starts": {"a": {"init": "random"}}}, "g.yaml: starts.a has no backbone"),
        ({"starts": {"a b": "x", "A-b": "y"}}, "the names 'a b' and 'A-b' would share the folder a-b; rename one"),
        ({"starts": {"..": "x"}}, "the name '..' has no letter or digit"),
        ({"skip": [{"method": "glaer"}]}, "g.yaml: skip: unknown method 'glaer'; did you mean 'glare'?"),
        ({"skip": [{"seed": 4}]}, "g.yaml: skip: seed 4 is not among seeds = [0]"),
        ({"skip": [{}]}, "an entry that names nothing would leave out everything"),
    ],
)
def test_what_is_wrong_is_named_with_the_fix(change: dict[str, Any], message: str) -> None:
    with pytest.raises(RequestError) as raised:
        check_grid(BASE | change, "g.yaml")
    assert message in str(raised.value)


def test_files_that_are_not_grids_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "g.yaml"
    with pytest.raises(RequestError, match="No such file or directory; give the path of a YAML grid"):
        read_grid(path)
    path.write_text("a: [")
    with pytest.raises(RequestError, match="is not valid YAML"):
        read_grid(path)
    path.write_text("- a")
    with pytest.raises(RequestError, match="a grid holds `name: value` lines"):
        read_grid(path)


def test_a_method_without_anything_is_the_method_as_it_is_and_out_can_be_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "g.yaml"
    path.write_text(yaml.safe_dump({k: v for k, v in BASE.items() if k != "methods"}) + "methods:\n  dino:\n")
    grid = read_grid(path, out="elsewhere")
    assert (grid.methods["dino"].set, grid.out) == ({}, "elsewhere")


@pytest.mark.parametrize(
    ("name", "folder"),
    [
        ("glare without blur", "glare-without-blur"),
        ("../../etc", "etc"),
        ("UDI→GLARE, r=16", "UDI-GLARE-r=16"),
        ("a/b\\c", "a-b-c"),
        (".hidden", "hidden"),
        ("→", ""),
        ("x" * 300, "x" * 80),
    ],
)
def test_folder_names_are_safe(name: str, folder: str) -> None:
    assert folder_name(name) == folder
