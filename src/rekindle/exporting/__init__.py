# SPDX-License-Identifier: Apache-2.0
"""Models for other programs, each checked against the original. `FORMATS` names what writes a format. Torch-free."""

from __future__ import annotations

from dataclasses import dataclass

from rekindle.core.tables import Entry


@dataclass(frozen=True)
class FormatEntry(Entry):
    """What is told of a format without importing what writes it: a function (Source, folder) -> Exported.

    Attributes:
        holds_all: it holds every model, so it is named where another format refuses one.
    """

    holds_all: bool = False


FORMATS: dict[str, FormatEntry] = {
    "timm": FormatEntry(
        "rekindle.exporting.timm_model:write",
        "model.safetensors, factory.json, config.json: plain ViTs, and adapters that fold into weights",
    ),
    "hf": FormatEntry(
        "rekindle.exporting.hugging_face:write",
        "model.safetensors, config.json for transformers: every model; needs rekindle[export], and adapters that do not fold "
        "need rekindle where they are used",
        holds_all=True,
    ),
    "onnx": FormatEntry(
        "rekindle.exporting.onnx_model:write",
        "model.onnx: every model; any number of images, of any size that the patch divides; needs rekindle[export]",
        holds_all=True,
    ),
    "mmseg": FormatEntry(
        "rekindle.exporting.mmseg:write",
        "model.pth for mmsegmentation: as timm, without registers, rotary positions and layer scale",
    ),
    "peft": FormatEntry(
        "rekindle.exporting.peft_files:write",
        "adapter_config.json, adapter_model.safetensors: LoRA alone, beside the base it was trained on",
    ),
    "safetensors": FormatEntry(
        "rekindle.exporting.whole:write",
        "model.safetensors, model.json: every model, for Rekindle itself; the base is not needed any more",
        holds_all=True,
    ),
}
