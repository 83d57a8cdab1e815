# SPDX-License-Identifier: Apache-2.0
"""ONNX: one file for any runtime, any number of images, any size that the patch divides; adapters included."""

from __future__ import annotations

import importlib
import json
import logging
import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from timm.layers.pos_embed_sincos import RotaryEmbeddingDinoV3
from torch import Tensor, nn
from torch.export import Dim

from rekindle.exporting.needed import needed
from rekindle.exporting.parity import check_parity, native_size
from rekindle.exporting.plain import Obstacle, folded
from rekindle.exporting.source import Exported, Source
from rekindle.networks.backbone import Backbone
from rekindle.networks.blocks import BlockPass, run_block
from rekindle.networks.position import DINO_OFFSET, PositionMode
from rekindle.networks.tokens import Tokens

FILE = "model.onnx"
OPSET = 18


def write(source: Source, folder: Path) -> Exported:
    """Write model.onnx and run it in onnxruntime at four sizes, not all square, with one to three images.

    Raises: RequestError if onnx, onnxscript or onnxruntime is not installed; RekindleError if the features differ.
    """
    for package in ("onnx", "onnxscript", "onnxruntime"):
        needed(package, "--format onnx")
    onnx, onnxruntime = (importlib.import_module(name) for name in ("onnx", "onnxruntime"))
    backbone, path = folded(source.backbone), folder / FILE
    _require_known_rotation(backbone)
    patch, side = backbone.patch_size, native_size(backbone)
    names = [name for name, is_there in _outputs(backbone).items() if is_there]
    sizes = {0: Dim("images"), 2: patch * Dim("grid_height"), 3: patch * Dim("grid_width")}
    with _quiet():
        program = torch.onnx.export(
            _Traceable(backbone),
            (torch.zeros(2, 3, 3 * patch, 5 * patch),),
            input_names=["pixels"],
            output_names=names,
            dynamic_shapes=(sizes,),
            opset_version=OPSET,
            dynamo=True,
            verbose=False,
        )
        assert program is not None
        program.save(path)
    details = {"mean": json.dumps(backbone.mean), "std": json.dumps(backbone.std), "patch_size": str(patch)}
    model = onnx.load(path, load_external_data=False)
    onnx.helper.set_model_props(model, details)
    _forget_source(model)
    onnx.save(model, path)
    onnx.checker.check_model(path)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])

    def forward(pixels: Tensor) -> Tokens:
        found = dict(zip(names, map(torch.from_numpy, session.run(names, {"pixels": pixels.numpy()})), strict=True))
        registers = torch.zeros(len(pixels), 0, backbone.width)
        return Tokens(found.get("cls"), found.get("registers", registers), found["patches"])

    checked = [
        (1, side, side),
        (2, side + patch, side + 3 * patch),
        (3, max(2 * patch, side - 2 * patch), side),
        (1, 2 * side, side + patch),
    ]
    listed = ", ".join(f"`{name}` {shape}" for name, shape in _shapes(backbone).items() if name in names)
    return Exported(
        parity=check_parity(source.backbone, forward, checked),
        library="onnx",
        usage=(
            "import onnxruntime\n\n"
            f'session = onnxruntime.InferenceSession("{FILE}")\n'
            f"# pixels: float32 [images, 3, height, width], normalised; height and width multiples of {patch}\n"
            f'{", ".join(names)}, = session.run({names!r}, {{"pixels": pixels}})\n'
        ),
        notes=(
            f"Outputs: {listed}; gh and gw are height and width in patches.",
            f"A height or width that is no multiple of {patch} is cut off at the last whole patch, without an error.",
            "The metadata of the file holds mean, std and the size of a patch.",
        ),
    )


def _outputs(backbone: Backbone) -> dict[str, bool]:
    return {"cls": backbone.has_cls, "registers": backbone.num_registers > 0, "patches": True}


def _shapes(backbone: Backbone) -> dict[str, str]:
    width = backbone.width
    return {
        "cls": f"[images, {width}]",
        "registers": f"[images, {backbone.num_registers}, {width}]",
        "patches": f"[images, gh, gw, {width}]",
    }


class _Traceable(nn.Module):
    """The forward pass of `Backbone` without a branch or a table that depends on the size.

    A tracer keeps the branch that its example takes. So the bicubic interpolation of positions is two matrices here,
    computed from the size, that are the identity at the native one.
    """

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        self.backbone = backbone

    def forward(self, pixels: Tensor) -> tuple[Tensor, ...]:
        """Return what `_outputs` names, from pixels [N, 3, H, W]."""
        backbone, vit = self.backbone, self.backbone.vit
        maps = vit.patch_embed.proj(pixels)
        images, _, gh, gw = maps.shape
        x = vit.patch_embed.norm(maps.flatten(2).transpose(1, 2))
        prefix = [t.expand(images, -1, -1) for t in (vit.cls_token, vit.reg_token) if t is not None]
        if vit.pos_embed is None:
            x = torch.cat([*prefix, x], dim=1)
        else:
            rows = 0 if vit.no_embed_class else backbone.num_prefix
            native = vit.patch_embed.grid_size
            resized = resize_positions(vit.pos_embed[:, rows:], (gh, gw), native, backbone.pos_interp)
            if vit.no_embed_class:
                x = torch.cat([*prefix, x + resized], dim=1)
            else:
                x = torch.cat([*prefix, x], dim=1) + torch.cat([vit.pos_embed[:, :rows], resized], dim=1)
        x = vit.norm_pre(x)
        ropes: list[Any] = [None] * backbone.depth
        if backbone.is_rotary:
            ropes = [rotary_table(vit.rope, (gh, gw))] * backbone.depth
        for block, rope in zip(vit.blocks, ropes, strict=True):
            x = run_block(block, x, BlockPass(rope))
        sequence = vit.norm(x)
        patches = sequence[:, backbone.num_prefix :]
        if backbone.patch_norm is not None:
            patches = backbone.patch_norm(x[:, backbone.num_prefix :])
        outputs = []
        if backbone.mean_as_cls:
            outputs.append(patches.mean(dim=1))
        elif backbone.has_class_token:
            outputs.append(sequence[:, 0])
        if backbone.num_registers:
            outputs.append(sequence[:, backbone.num_prefix - backbone.num_registers : backbone.num_prefix])
        return (*outputs, patches.reshape(images, gh, gw, backbone.width))


def resize_positions(table: Tensor, grid: tuple[int, int], native: tuple[int, int], mode: PositionMode) -> Tensor:
    """What `networks.position` does, as products with two matrices.

    Args:
        table: [1, native rows, D], without prefix rows.
        grid: (gh, gw) wanted; may be symbolic.
        native: (gh, gw) of the table.
        mode: of the interpolation.

    Returns: [1, gh * gw, D].
    """
    new = [_indices(g, table) for g in grid]
    counts = [index[-1] + 1 for index in new]
    scales = [n / (count + (DINO_OFFSET if mode == "dino" else 0.0)) for n, count in zip(native, counts, strict=True)]
    is_native = (counts[0] == native[0]) & (counts[1] == native[1])
    scales = [torch.where(is_native, torch.ones_like(s), s) for s in scales]
    weigh = _antialiased if mode == "antialias" else _bicubic
    rows, columns = (weigh(i, s, n) for i, s, n in zip(new, scales, native, strict=True))
    image = table.reshape(native[0], native[1], -1)
    resized = torch.einsum("gi,hj,ijd->ghd", rows, columns, image)
    return resized.reshape(1, grid[0] * grid[1], -1)


def rotary_table(rope: Any, grid: tuple[int, int]) -> Tensor:
    """What `rope.get_embed(shape=grid)` returns, [gh * gw, 2 * D / heads]; timm turns the sizes into constants.

    Args: rope, timm's `RotaryEmbeddingDinoV3`; grid, (gh, gw), may be symbolic.
    """
    axes = []
    for count in grid:
        index = _indices(count, rope.periods)
        axes.append(2.0 * ((index + 0.5 + rope.grid_offset) / (index[-1] + 1)) - 1.0)
    coordinates = torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1).flatten(0, 1)
    angles = (2 * math.pi * coordinates[:, :, None] / rope.periods).flatten(1)
    sine, cosine = (
        (x.tile(2) if rope.rotate_half else x.repeat_interleave(2, -1)) for x in (angles.sin(), angles.cos())
    )
    return torch.cat([sine, cosine], dim=-1)


def _require_known_rotation(backbone: Backbone) -> None:
    if not backbone.is_rotary:
        return
    rope = backbone.vit.rope
    known = isinstance(rope, RotaryEmbeddingDinoV3) and (rope.normalize_coords, rope.grid_indexing) == (
        "separate",
        "ij",
    )
    if not known or backbone.vit.rope_mixed:
        raise Obstacle(f"of rotary positions only DINOv3's are known here, not these ({type(rope).__name__})")


def _indices(count: int, like: Tensor) -> Tensor:
    return torch.arange(count, dtype=torch.float32, device=like.device)


def _bicubic(new: Tensor, scale: Tensor, native: int) -> Tensor:
    """Weights [new, native] of `F.interpolate(mode="bicubic")`: the cubic of a = -0.75, border cells repeated."""
    place = (new + 0.5) * scale - 0.5
    first = place.floor()
    old = torch.arange(native, dtype=torch.float32, device=new.device)
    weights = []
    for tap in (-1, 0, 1, 2):
        near = (first + tap).clamp(0, native - 1)
        weights.append(_cubic(place - first - tap, -0.75)[:, None] * (near[:, None] == old).to(torch.float32))
    return weights[0] + weights[1] + weights[2] + weights[3]


def _antialiased(new: Tensor, scale: Tensor, native: int) -> Tensor:
    """Weights [new, native] of bicubic interpolation with `antialias=True`: a = -0.5, widened when shrinking."""
    old = torch.arange(native, dtype=torch.float32, device=new.device)
    distance = old + 0.5 - ((new + 0.5) * scale)[:, None]
    weights = _cubic(distance / scale.clamp(min=1.0), -0.5)
    return weights / weights.sum(dim=1, keepdim=True)


def _cubic(distance: Tensor, a: float) -> Tensor:
    """Keys' cubic convolution kernel."""
    x = distance.abs()
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    far = ((a * x - 5 * a) * x + 8 * a) * x - 4 * a
    return torch.where(x <= 1, near, torch.where(x < 2, far, torch.zeros_like(x)))


def _forget_source(model: Any) -> None:
    """Take out what the exporter noted of our source files: stack traces, with paths of this computer."""
    graphs = [model.graph, *model.functions]
    for graph in graphs:
        del graph.metadata_props[:]
        graph.doc_string = ""
        for part in [*graph.node, *graph.value_info, *getattr(graph, "initializer", ())]:
            del part.metadata_props[:]
            part.doc_string = ""
    for value in [*model.graph.input, *model.graph.output]:
        del value.metadata_props[:]


@contextmanager
def _quiet() -> Iterator[None]:
    """The exporter warns about its own insides."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
