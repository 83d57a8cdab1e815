# SPDX-License-Identifier: Apache-2.0
"""The starts of a matrix: how each is read, and whether all that begins there can run."""

from __future__ import annotations

import copy

from rekindle.adapters.saved import load_backbone, model_hash, read_description
from rekindle.core.errors import RekindleError, RequestError
from rekindle.core.option_trees import lay_over
from rekindle.matrix.cells import Cell, Kind, placed
from rekindle.matrix.grid import Grid, Tree
from rekindle.matrix.measure import MatrixSetup
from rekindle.measuring.measurement import build_protocol
from rekindle.measuring.models import load_model
from rekindle.measuring.options import CompareOptions
from rekindle.networks.backbone import Backbone
from rekindle.pretraining.machine import machine_of
from rekindle.pretraining.options import PretrainOptions
from rekindle.pretraining.recipes import with_view_sizes
from rekindle.pretraining.requests import check_request, check_views
from rekindle.pretraining.run import build_method


def start_tree(grid: Grid, name: str) -> Tree:
    """Options that a start is read with: `common`, and what stands under its name."""
    start = grid.starts[name]
    tree = copy.deepcopy(grid.common)
    lay_over(tree, {"backbone": start} if isinstance(start, str) else start)
    return tree


def start_model(grid: Grid, name: str) -> str:
    """The MODEL of a start."""
    return str(start_tree(grid, name)["backbone"])


def check_start(grid: Grid, name: str, cells: list[Cell], bench: MatrixSetup, where: str) -> str:
    """Load a start, and see that the protocols and every kind of cell fit it; return its hash.

    Raises: RequestError that names the grid and the cell.
    """
    requests = {column.name: grid.measuring(column, start_tree(grid, name)) for column in bench.columns}
    options = requests[bench.columns[0].name]
    model_name = start_model(grid, name)
    try:
        backbone, match = load_backbone(model_name, options.network, init=options.init)
    except RekindleError as error:
        raise placed(error, f"{where}: starts.{name}") from error
    bench.watcher.message(match)
    firsts: dict[tuple[Kind, bool], Cell] = {}  # seeds of a kind differ in nothing that is checked here
    for cell in cells:
        firsts.setdefault((cell.key.kind, cell.run.is_finished), cell)
    for (_, is_finished), cell in firsts.items():
        try:
            base = _read(cell.resolved.options, options, backbone)
            if is_finished:
                _refuse_other_base(cell, base)
            else:
                resolved = with_view_sizes(cell.resolved, base.patch_size)
                check_request(resolved.options)
                check_views(resolved.options, base)
                build_method(resolved, base, machine_of(resolved.options))
        except RekindleError as error:
            raise placed(error, f"{where}, cell {cell.key}") from error
    model = load_model(model_name, options, bench.watcher, backbone)
    for column in bench.columns:
        request, data = requests[column.name], bench.data[column.test]
        build_protocol(column.protocol, request, model, data, bench.watcher.message).check()
    return model.hash


def _read(run: PretrainOptions, start: CompareOptions, backbone: Backbone) -> Backbone:
    """The backbone as a run reads it: a copy of the start's, unless framework or method read it in another way."""
    if run.network.model_copy(update={"drop_path": start.network.drop_path}) == start.network:
        return copy.deepcopy(backbone)
    return load_backbone(run.backbone, run.network, init=run.init)[0]


def _refuse_other_base(cell: Cell, base: Backbone) -> None:
    """Raise RequestError if a finished run began with other weights than its start has now."""
    options = cell.resolved.options
    then, now = read_description(cell.run.path)["base"]["sha256"], model_hash(base)
    if then != now and options.init == "pretrained":  # random weights follow the seed
        raise RequestError(
            f"{cell.run.path} was trained from a start with hash {then[:12]}, and {options.backbone} now has {now[:12]}; "
            "put it back, or give the grid another out"
        )
