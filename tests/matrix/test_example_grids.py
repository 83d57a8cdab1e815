# SPDX-License-Identifier: Apache-2.0
"""The ready grids: they say what the paper's tables vary, and a matrix could run them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from rekindle.core.option_trees import lay_over
from rekindle.core.tables import import_named
from rekindle.engine.watcher import LoggingWatcher
from rekindle.evaluation import PROTOCOLS
from rekindle.matrix.cells import keys, plan_cells, resolve_cell
from rekindle.matrix.grid import check_grid, read_grid
from rekindle.matrix.measure import MatrixSetup
from rekindle.matrix.starts import check_start
from rekindle.measuring.measurement import LabelledData
from rekindle.methods import METHODS
from rekindle.networks.checkpoints.create import create_backbone
from rekindle.networks.checkpoints.tensors import write_checkpoint
from rekindle.networks.options import NetworkOptions
from rekindle.pretraining.options import PretrainOptions
from rekindle.pretraining.run import pretrain
from tests.data.labelled.test_depth import write_depth
from tests.engine.running import write_images
from tests.evaluation.pictures import write_classes
from tests.evaluation.toy import write_data

FOLDER = Path(__file__).parents[2] / "examples" / "grids"
GRIDS = sorted(FOLDER.rglob("*.yaml"))
STUDIES = Path(__file__).parents[2] / "docs" / "studies.md"
TABLES = {
    "GLARE": {f"table {n}" for n in (2, 3, 4, 5, 6, 7, 9, 10)} | {"figure 3"},
    "LOCA": {"table 1", "table 2a", "table 2b", "table 2c", "table 2d", "table 3", "table 4", "table 5", "table 6"}
    | {"figure 3", "figure 4", "figure 6"},
    "TEC": {"table 4", "table 5", "table 9", "table 12"} | {f"table 11{letter}" for letter in "abcde"},
    "MMC": {"table 4", "table 6", "figure 4", "figure 7"},
}
"""Tables and figures of the papers that compare trainings."""
ARCH = "vit:width=32,depth=2,heads=2,patch=8,img=32"
SMALL: dict[str, Any] = {
    "num_prototypes": 32,
    "head_hidden": 32,
    "head_bottleneck": 16,
    "head_out": 16,
    "pixel_hidden": 32,
    "projector_hidden": 32,
    "projector_out": 16,
    "region_min_patches": 1,
    "region_max_patches": 3,
    "max_block": 0.6,
    "decoder_width": 16,
    "decoder_heads": 2,
    "decoder_depth": 1,
    "blocks_per_group": 1,
    "queue_length": 8,
}


def name_of(path: Path) -> str:
    return path.relative_to(FOLDER).with_suffix("").as_posix()


on_every_grid = pytest.mark.parametrize("path", GRIDS, ids=name_of)


@pytest.fixture(scope="module")
def toys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two bases, with a register and without, images to learn from and others, and labelled data of every kind."""
    folder = tmp_path_factory.mktemp("toys")
    for name, arch in (("plain", ARCH), ("register", f"{ARCH},registers=1")):
        backbone, _ = create_backbone(arch, NetworkOptions(drop_path=0.0), init="random")
        write_checkpoint(backbone, folder / f"{name}.safetensors")
    write_images(folder / "images", 6)
    write_images(folder / "others", 3)
    write_data(folder / "segmentation", num_train=64)  # a 32nd of them are two
    write_classes(folder / "classification", num_train=10)  # ten shots of each
    for split, stem in (("train", "a"), ("train", "b"), ("val", "c")):
        write_depth(folder / "depth", split, stem, np.full((32, 32), 2.0))
    return folder


def miniature(path: Path, toys: Path, out: Path) -> dict[str, Any]:
    """A ready grid of one step on tiny networks: what a user has to put there is replaced, and what is large is small."""
    content: dict[str, Any] = yaml.safe_load(path.read_text())
    kind = import_named(PROTOCOLS, "protocol", content["protocols"][0]).DATA
    data = str(toys / {"objects": "segmentation"}.get(kind, kind))
    content |= {"images": str(toys / "images"), "out": str(out), "seeds": [0]}
    if "data" in content:
        content["data"] = data
    for name, test in content.get("tests", {}).items():
        own = {k: v for k, v in test.items() if k in ("protocols", "train_shots")} if isinstance(test, dict) else {}
        kind = import_named(PROTOCOLS, "protocol", own.get("protocols", content["protocols"])[0]).DATA
        content["tests"][name] = own | {"data": str(toys / kind)}
    content.pop("split", None)
    for name, start in content["starts"].items():
        base = str(toys / ("register" if name == "udi" else "plain")) + ".safetensors"
        content["starts"][name] = base if isinstance(start, str) else {**start, "backbone": ARCH}
    common = content.setdefault("common", {})
    common.pop("epochs", None)
    lay_over(common, {"steps": 1, "batch_size": 4, "accelerator": "cpu", "precision": "fp32", "probe_images": 2})
    lay_over(common, {"views": {"global_size_px": 32, "local_size_px": 16}, "data": {"num_workers": 0}})
    lay_over(common, {"adapter": {"rank": 4}, "engine": {"tensorboard": False, "micro_batch_size": 4}})
    if "unseen" in common:
        common["unseen"] = str(toys / "others")
    for name, entry in content["methods"].items():
        entry = content["methods"][name] = entry or {}
        method, own = entry.get("method", name), entry.setdefault("set", {})
        for option in ("epochs", "batch_size", "steps"):
            own.pop(option, None)
        fields = import_named(METHODS, "method", method).Config.model_fields
        common.pop(method, None)
        own[method] = {k: v for k, v in SMALL.items() if k in fields} | own.get(method, {})
        if own[method].get("num_prototypes", 0) > 256:
            own[method]["num_prototypes"] = 256
        if own.get("network", {}).get("add_register"):
            own["network"].pop("add_register")  # the tiny base of these grids is the one with a register
            content["starts"] = dict.fromkeys(content["starts"], str(toys / "register.safetensors"))
    return content


def _options(name: str) -> dict[str, PretrainOptions]:
    """Options of the cells of seed 0, by method and framework."""
    path = next(p for p in GRIDS if name_of(p) == name)
    grid = read_grid(path)
    found = [(key, resolve_cell(grid, key, name).options) for key in keys(grid) if key.seed == 0]
    return {key.method if len(grid.methods) > 1 else key.framework: options for key, options in found}


@on_every_grid
def test_every_ready_grid_says_how_many_runs_it_is_and_where_they_go(path: Path) -> None:
    grid = read_grid(path)
    cells = list(keys(grid))
    assert re.search(rf"\b{len(cells)} runs\b", path.read_text()), f"{len(cells)} runs"
    for key in cells:
        if key.seed == grid.seeds[0]:
            options = resolve_cell(grid, key, path.stem).options
            assert options.recipe != "paper" or options.optim.head_warmup == 0.0  # the paper's has no heads-first phase
    assert path.stem == "first" or grid.out == f"runs/{name_of(path).replace('/', '-')}"
    assert re.search(rf"--grid examples/grids/{name_of(path)}\.yaml|`make [\w-]+`", path.read_text())


@on_every_grid
def test_every_cell_of_a_ready_grid_can_start_and_the_first_one_does(path: Path, toys: Path, tmp_path: Path) -> None:
    """All are planned, built on their starts and held against the protocols' data; one of them takes its steps."""
    grid = check_grid(miniature(path, toys, tmp_path / "out"), path.name)
    columns, watcher = grid.columns(), LoggingWatcher()
    read = {c.test: [other.protocol for other in columns if other.test == c.test] for c in columns}
    data = {c.test: LabelledData(c.data, c.train_split, c.split, read[c.test]) for c in columns}
    bench = MatrixSetup(tmp_path / "out", columns, data, watcher)
    cells = plan_cells(grid, path.name)
    for name in grid.starts:
        assert len(check_start(grid, name, [c for c in cells if c.key.start == name], bench, path.name)) == 64
    result = pretrain(cells[0].resolved)
    assert result.is_finished and result.steps == cells[0].steps > 0


def test_the_document_names_every_ready_grid_and_every_table_of_the_papers() -> None:
    text = STUDIES.read_text()
    named = set(re.findall(r"--grid examples/grids/([\w/-]+)\.yaml", text)) | set(re.findall(r"`([\w-]+)\.yaml`", text))
    assert {name_of(path) for path in GRIDS} == named - {"grid"}  # a study's own file
    rows = re.findall(r"^\| (GLARE|LOCA|TEC|MMC), ([^|]+?) \| `rekindle [^`]+` \|", text, re.M)
    found: dict[str, set[str]] = {paper: set() for paper in TABLES}
    for paper, places in rows:
        found[paper] |= {place.strip() for place in places.split(",")}
    for paper, wanted in TABLES.items():
        assert wanted <= found[paper], f"{paper}: {sorted(wanted - found[paper])}"


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
