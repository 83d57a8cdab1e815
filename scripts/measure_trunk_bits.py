# SPDX-License-Identifier: Apache-2.0
"""How far features move where the trunk is held in 16, 8 or 4 bits: relative error against float32, and bytes of the maps.

    python scripts/measure_trunk_bits.py ../shared/bases/dinov2-small ../shared/data/camvid/images/val

Errors are of the final tokens in float32 on 16 images of 224 px: ||packed - whole|| / ||whole||. Of ViT-B and L, bytes alone.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torchvision.transforms.v2.functional import pil_to_tensor

from rekindle.adapters.saved import load_backbone
from rekindle.networks.backbone import Backbone
from rekindle.networks.options import NetworkOptions
from rekindle.networks.packed_maps import PackedLinear, pack_trunk
from rekindle.pretraining.costs import Trunk
from rekindle.pretraining.memory import PACKED_BYTES

OUT = Path(__file__).parent.parent / "results" / "performance" / "trunk-bits.json"
SIZE, IMAGES = 224, 16


def pixels_of(folder: str, backbone: Backbone) -> torch.Tensor:
    paths = sorted(p for p in Path(folder).rglob("*") if p.suffix in (".jpg", ".png"))
    chosen = paths[:: max(1, len(paths) // IMAGES)][:IMAGES]
    images = [pil_to_tensor(Image.open(p).convert("RGB").resize((SIZE, SIZE))) for p in chosen]
    mean, std = (torch.tensor(v)[:, None, None] for v in (backbone.mean, backbone.std))
    return (torch.stack(images) / 255 - mean) / std


@torch.no_grad()
def errors(base: str, folder: str) -> dict[str, Any]:
    whole, _ = load_backbone(base, NetworkOptions())
    pixels = pixels_of(folder, whole)
    expected = whole.eval()(pixels)
    found: dict[str, Any] = {}
    for bits in (16, 8, 4):
        backbone, _ = load_backbone(base, NetworkOptions())
        pack_trunk(backbone.requires_grad_(False).eval(), bits)
        tokens = backbone(pixels)
        maps = [m for m in backbone.modules() if isinstance(m, PackedLinear)]
        found[str(bits)] = {
            "cls": _relative(tokens.cls, expected.cls),
            "patches": _relative(tokens.patches, expected.patches),
            "patch_cosine": float(torch.cosine_similarity(tokens.patches, expected.patches, dim=-1).mean()),
            "map_bytes": sum(p.nbytes for m in maps for p in m.packed),
        }
    return found


def _relative(found: torch.Tensor | None, expected: torch.Tensor | None) -> float:
    assert found is not None and expected is not None
    return float((found - expected).norm() / expected.norm())


if __name__ == "__main__":
    torch.set_num_threads(1)
    base, folder = sys.argv[1:]
    trunks = {
        "ViT-S": Trunk(384, 12, 6, 1536, 14),
        "ViT-B": Trunk(768, 12, 12, 3072, 14),
        "ViT-L": Trunk(1024, 24, 16, 4096, 14),
    }
    numbers = {name: t.depth * t.block_maps for name, t in trunks.items()}
    each = {"float32": 4.0, **{str(bits): bytes_each for bits, bytes_each in PACKED_BYTES.items()}}
    result = {
        "base": Path(base).name,
        "images": f"{IMAGES} of CamVid, {SIZE} px",
        "errors": errors(base, folder),
        "map_bytes": {name: {bits: round(n * b) for bits, b in each.items()} for name, n in numbers.items()},
    }
    OUT.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result["errors"], indent=1))
