# SPDX-License-Identifier: Apache-2.0
"""One ONNX file for every number of images and every size that the patch divides."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from timm.layers.pos_embed_sincos import RotaryEmbeddingDinoV3

import rekindle
from rekindle.core.errors import RequestError
from rekindle.exporting.onnx_model import resize_positions, rotary_table
from rekindle.networks.position import PositionMode, interpolate_positions
from tests.exporting.making import DINOV2, DINOV3, VIT, features, write_base, write_run


@pytest.mark.parametrize("mode", ["dino", "size", "antialias"])
@pytest.mark.parametrize("grid", [(4, 4), (4, 5), (5, 4), (1, 1), (2, 3), (3, 9), (12, 7), (37, 37)], ids=str)
def test_two_matrices_resize_positions_as_torch_does(mode: PositionMode, grid: tuple[int, int]) -> None:
    table = torch.randn(1, 16, 6, generator=torch.Generator().manual_seed(0))
    expected = interpolate_positions(table, grid, (4, 4), num_prefix=0, mode=mode)
    torch.testing.assert_close(resize_positions(table, grid, (4, 4), mode), expected, rtol=1e-5, atol=5e-6)


def test_the_native_grid_gives_the_very_table() -> None:
    table = torch.randn(1, 15, 6)
    for mode in ("dino", "size"):
        assert torch.equal(resize_positions(table, (3, 5), (3, 5), mode), table)


@pytest.mark.parametrize("half", [True, False])
def test_the_rotary_table_is_timms(half: bool) -> None:
    rope = RotaryEmbeddingDinoV3(16, rotate_half=half)
    for grid in ((1, 1), (3, 5), (14, 14)):
        torch.testing.assert_close(rotary_table(rope, grid), rope.get_embed(shape=list(grid)))


@pytest.mark.parametrize(
    ("arch", "adapter"),
    [
        (VIT, {"kind": "uniadapter"}),
        (DINOV3, {"kind": "lora"}),
        pytest.param(DINOV2, None, marks=pytest.mark.slow),
        pytest.param(VIT, {"kind": "adaptformer"}, marks=pytest.mark.slow),
        pytest.param(DINOV2, {"kind": "uniadapter", "learn_scale": True}, marks=pytest.mark.slow),
        pytest.param(VIT + ",registers=2,class_token=false", None, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_any_runtime_gets_the_tokens_at_sizes_and_batches_never_traced(
    arch: str, adapter: dict[str, Any] | None, tmp_path: Path
) -> None:
    runtime = _runtime()
    model = write_base(tmp_path, arch) if adapter is None else write_run(tmp_path, arch, **adapter)
    done = rekindle.export(model, format="onnx", out=tmp_path / "out")
    assert len(done.parity.sizes) >= 3 and any(h != w for _, h, w in done.parity.sizes)
    session = runtime.InferenceSession(done.out / "model.onnx", providers=["CPUExecutionProvider"])
    original = rekindle.load(model)
    patch = original.patch_size
    assert session.get_modelmeta().custom_metadata_map["patch_size"] == str(patch)
    assert json.loads(session.get_modelmeta().custom_metadata_map["mean"]) == list(original.mean)
    names = [output.name for output in session.get_outputs()]
    for size in ((4 * patch, 4 * patch), (patch, 2 * patch), (9 * patch, 3 * patch)):
        pixels, _ = features(original, size)
        with torch.no_grad():
            tokens = original(torch.cat([pixels, pixels.flip(0), pixels[:1]]))
        feed = torch.cat([pixels, pixels.flip(0), pixels[:1]]).numpy()
        found = dict(zip(names, map(torch.from_numpy, session.run(None, {"pixels": feed})), strict=True))
        assert found.keys() == {
            name
            for name, t in (("cls", tokens.cls), ("registers", tokens.registers), ("patches", tokens.patches))
            if t is not None and t.numel()
        }
        for name, value in found.items():
            torch.testing.assert_close(value, getattr(tokens, name), rtol=1e-4, atol=2e-5)
    assert b"exporting/onnx_model.py" not in (done.out / "model.onnx").read_bytes()


def test_without_the_extra_the_message_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    base = write_base(tmp_path, VIT)
    for format, package in (("onnx", "onnx"), ("hf", "transformers")):
        with pytest.raises(RequestError, match=rf'{package}: pip install "rekindle\[export\]"'):
            rekindle.export(base, format=format, out=tmp_path / "out")


def _runtime() -> Any:
    for package in ("onnx", "onnxscript"):
        pytest.importorskip(package)
    return pytest.importorskip("onnxruntime")
