# SPDX-License-Identifier: Apache-2.0
"""ViT-S at its real sizes, with random weights: `pytest -m slow -s tests/exporting/test_real_sizes.py` prints the figures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import rekindle
from rekindle.core.errors import RequestError
from tests.exporting.making import write_base, write_run

SMALL = {
    "ViT-S/16": "vit:width=384,depth=12,heads=6,patch=16,img=224",
    "DINOv2 ViT-S/14": "vit:width=384,depth=12,heads=6,patch=14,img=518,registers=4,no_embed_class=true,layer_scale=true",
    "DINOv3 ViT-S/16": "dinov3:width=384,depth=12,heads=6,patch=16,img=256,registers=4",
}
PLAIN_ONLY = ("timm", "mmseg")


@pytest.mark.slow
@pytest.mark.parametrize("adapter", [{}, {"kind": "uniadapter", "rank": 512}, {"kind": "lora", "rank": 8}], ids=str)
@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("format", ["timm", "hf", "onnx", "mmseg", "safetensors"])
def test_vit_small_keeps_its_features(format: str, name: str, adapter: dict[str, Any], tmp_path: Path) -> None:
    for package in {"hf": ["transformers"], "onnx": ["onnx", "onnxscript", "onnxruntime"]}.get(format, []):
        pytest.importorskip(package)
    arch = SMALL[name]
    model = write_run(tmp_path, arch, amount=0.02, **adapter) if adapter else write_base(tmp_path, arch, amount=0.02)
    rigid = format in PLAIN_ONLY and adapter.get("kind") == "uniadapter"
    if rigid or (format == "mmseg" and name != "ViT-S/16"):
        with pytest.raises(RequestError, match=f"--format {format} cannot hold this model"):
            rekindle.export(model, format=format, out=tmp_path / "out")
        return
    done = rekindle.export(model, format=format, out=tmp_path / "out")
    print(f"\n{name} | {adapter.get('kind', 'none')} | {format} | {done.parity} | elsewhere {done.parity.elsewhere}")
    assert done.parity.difference < 1e-4
