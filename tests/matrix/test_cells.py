# SPDX-License-Identifier: Apache-2.0
"""From a grid to runs: which there are, what wins, and what is refused before any of them starts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from rekindle.core.errors import RequestError
from rekindle.matrix.cells import Key, cell_tree, keys, plan_cells
from rekindle.matrix.grid import check_grid
from tests.matrix.making import tree
from tests.matrix.test_grid import BASE


def _key(start: str = "a", method: str = "glare", framework: str = "adapters", seed: int = 0) -> Key:
    return Key(start=start, method=method, framework=framework, seed=seed)


def test_the_cells_are_the_product_less_what_is_skipped() -> None:
    grid = check_grid(
        BASE
        | {
            "starts": {"a": "x", "b": "y"},
            "methods": {"glare": {}, "dino": {}},
            "seeds": [3, 1],
            "skip": [{"start": "b", "method": "dino"}, {"seed": 1, "method": "glare"}],
        }
    )
    assert [(k.start, k.method, k.seed) for k in keys(grid)] == [
        ("a", "glare", 3),
        ("a", "dino", 3),
        ("a", "dino", 1),
        ("b", "glare", 3),
    ]


def test_later_layers_win_and_leave_the_rest() -> None:
    grid = check_grid(
        BASE
        | {
            "common": {"steps": 1, "batch_size": 2, "optim": {"clip_grad": 1.0, "weight_decay": 0.1}},
            "starts": {"a": {"backbone": "x", "steps": 2, "network": {"arch": "y"}}},
            "frameworks": {"adapters": {"steps": 3, "optim": {"clip_grad": 2.0}, "adapter": {"rank": 8}}},
            "methods": {"glare": {"set": {"steps": 4, "adapter": {"scale": 1.0}}}},
        }
    )
    found = cell_tree(grid, _key())
    assert (found["steps"], found["batch_size"], found["backbone"]) == (4, 2, "x")
    assert found["optim"] == {"clip_grad": 2.0, "weight_decay": 0.1}
    assert found["adapter"] == {"rank": 8, "scale": 1.0}
    assert grid.common["optim"]["clip_grad"] == 1.0  # the layers themselves stay as they are


def test_the_grid_decides_images_folder_seed_and_method() -> None:
    grid = check_grid(BASE | {"seeds": [7], "methods": {"glare, no blur": {"method": "glare"}}})
    found = cell_tree(grid, _key(method="glare, no blur", seed=7))
    assert (found["images"], found["seed"], found["method"]) == ("i", 7, "glare")
    assert Path(found["out"]) == Path("o/runs/a/glare-no-blur/adapters/seed-7")


def test_a_group_of_another_method_does_not_count() -> None:
    grid = check_grid(BASE | {"methods": {"glare": {}, "dino": {}}, "common": {"dino": {"num_prototypes": 9}}})
    assert "dino" not in cell_tree(grid, _key())
    assert cell_tree(grid, _key(method="dino"))["dino"] == {"num_prototypes": 9}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"methods": {"glaer": {}}},
            "g.yaml, cell tiny / glaer / adapters / seed 0: unknown method 'glaer'; did you mean",
        ),
        (
            {"methods": {"glare": {}, "x": {"method": "dino", "set": {"dino": {"distortion": "none"}}}}},
            "g.yaml, cell tiny / x / adapters / seed 0: unknown option dino.distortion",
        ),
        (
            {"methods": {"glare": {"set": {"dino": {}}}}},
            "dino holds options of the method dino, and this run's is glare",
        ),
        (
            {"frameworks": {"f": {"adapter": {"rnak": 3}}}},
            "cell tiny / glare / f / seed 0: unknown option adapter.rnak; did",
        ),
        ({"starts": {"s": "no/such.pth"}}, "cell s / glare / adapters / seed 0: starts: no/such.pth is not there"),
        ({"images": "nowhere"}, "g.yaml: images = 'nowhere': nothing is there"),
        ({"frameworks": {"f": {"devices": 2}}}, "devices = 2: a matrix trains one cell at a time on one device"),
        ({"skip": [{"start": "tiny"}]}, "g.yaml: skip leaves no cell"),
    ],
)
def test_wrong_cells_are_refused_with_their_name(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    with pytest.raises(RequestError) as raised:
        plan_cells(check_grid(tree(tmp_path, **change), "g.yaml"), "g.yaml")
    assert message in str(raised.value)
    assert not (tmp_path / "out").exists()


def test_a_run_with_other_options_is_refused_and_the_option_is_named(tmp_path: Path) -> None:
    (cell, _) = plan_cells(check_grid(tree(tmp_path)), "g.yaml")
    cell.run.path.mkdir(parents=True)
    stored = cell.resolved.options.model_dump(mode="json")
    cell.run.config.write_text(yaml.safe_dump(stored | {"engine": stored["engine"] | {"checkpoint_minutes": 1.0}}))
    assert plan_cells(check_grid(tree(tmp_path)), "g.yaml")[0].state == "started"  # how often it is saved may change
    cell.run.config.write_text(yaml.safe_dump(stored | {"optim": stored["optim"] | {"lr_per_256": 0.5}}))
    with pytest.raises(RequestError, match=r"was started with optim.lr_per_256 = 0.5, and the grid now says 5.0"):
        plan_cells(check_grid(tree(tmp_path)), "g.yaml")


def test_one_recipe_for_all_cells_of_a_grid(tmp_path: Path) -> None:
    def batches(**change: Any) -> set[int]:
        return {c.resolved.options.batch_size for c in plan_cells(check_grid(tree(tmp_path, **change)), "g.yaml")}

    common = {"steps": 2, "accelerator": "cpu"}
    alone = batches(methods={"glare": {}}, common=common)
    beside = batches(methods={"glare": {}, "dino": {}}, common=common)
    assert len(alone) == len(beside) == 1 and alone != beside
    assert batches(methods={"glare": {}, "dino": {}}, common=common | {"recipe": "short"}) == alone
