# SPDX-License-Identifier: Apache-2.0
"""The ready grids: they say what the paper's tables vary, and a matrix could run them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from rekindle.matrix.cells import keys, resolve_cell
from rekindle.matrix.grid import check_grid, read_grid
from rekindle.matrix.run import survey
from rekindle.pretraining.options import PretrainOptions
from tests.matrix.making import tree

GRIDS = sorted((Path(__file__).parents[2] / "examples" / "grids").glob("*.yaml"))


def _options(name: str) -> dict[str, PretrainOptions]:
    """Options of the cells of seed 0, by method and framework."""
    path = next(p for p in GRIDS if p.stem == name)
    grid = read_grid(path)
    found = [(key, resolve_cell(grid, key, name).options) for key in keys(grid) if key.seed == 0]
    return {key.method if len(grid.methods) > 1 else key.framework: options for key, options in found}


@pytest.mark.parametrize("path", GRIDS, ids=lambda p: p.stem)
def test_every_ready_grid_can_be_planned_on_other_data(path: Path, tmp_path: Path) -> None:
    """Only what a user has to put there is replaced: images, data, start and out."""
    toy, content = tree(tmp_path), yaml.safe_load(path.read_text())
    theirs = {name: toy[name] for name in ("images", "data", "out", "starts")}
    plans = survey(check_grid(content | theirs, path.name), path.name)
    count = len(plans) * len(content["starts"])
    assert f"{count} runs" in path.read_text()
    assert all(plan.steps > 0 and plan.results_wanted > 0 for plan in plans)
    assert path.stem == "first" or content["out"] == f"runs/{path.stem}"


@pytest.mark.parametrize("path", GRIDS, ids=lambda p: p.stem)
def test_where_a_grid_claims_the_papers_recipe_nothing_waits_for_heads(path: Path) -> None:
    for options in _options(path.stem).values():
        assert options.recipe == "auto" or options.optim.head_warmup == 0.0


def _glare(options: PretrainOptions) -> dict[str, Any]:
    found: dict[str, Any] = options.model_dump()["glare"]
    return found


def test_levels_are_those_of_table_6() -> None:
    found = {name: _glare(options) for name, options in _options("glare-levels").items()}
    used = {
        name: "".join(
            letter
            for letter, weight in (("G", "global"), ("R", "regional"), ("L", "local"))
            if options[f"{weight}_weight"] > 0
        )
        for name, options in found.items()
    }
    assert used == {"G": "G", "G+L": "GL", "G+R": "GR", "R+L": "RL", "G+R+L": "GRL"}
    assert {o.data.fraction for o in _options("glare-levels").values()} == {0.2}


def test_regions_are_those_of_table_9() -> None:
    found = {name: _glare(options) for name, options in _options("glare-regions").items()}
    drawn = {(o["region_start"], o["num_regions"]) for o in found.values() if o["regional_weight"] > 0}
    assert drawn == {("random", 3), ("random", 6), ("attention", 6)}


def test_distortions_are_those_of_tables_7_and_10() -> None:
    found = {name: _glare(options) for name, options in _options("glare-distortion").items()}
    pairs = {(o["distortion"], o["distortion_shape"]) for o in found.values()}
    table = {("mask", "block"), ("mask", "random"), ("blur", "random"), ("blur", "block"), ("none", "random")}
    assert table <= pairs
    assert len(pairs) == len(found)


def test_placements_are_all_there_are() -> None:
    found = _options("glare-placement")
    places = {options.adapter.position for options in found.values() if options.train == "adapters"}
    assert places == {"after_attn", "after_block", "parallel_mlp", "attn_branch"}
    assert found["all weights"].train == "all"
