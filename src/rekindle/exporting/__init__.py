# SPDX-License-Identifier: Apache-2.0
"""Models for other programs, each checked against the original. `FORMATS` names what writes a format. Torch-free."""

from __future__ import annotations

FORMATS: dict[str, str] = {
    "timm": "rekindle.exporting.timm_model:write",
    "hf": "rekindle.exporting.hugging_face:write",
    "onnx": "rekindle.exporting.onnx_model:write",
    "mmseg": "rekindle.exporting.mmseg:write",
    "safetensors": "rekindle.exporting.whole:write",
}
