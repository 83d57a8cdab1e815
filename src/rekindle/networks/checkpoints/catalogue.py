# SPDX-License-Identifier: Apache-2.0
"""Backbones worth knowing, by the name that the command line takes. Torch-free."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class KnownBackbone:
    """A line of the catalogue.

    Attributes:
        name: what `--backbone` and MODEL take.
        summary: what it is.
        licence: of the weights, as its publisher states it; read it before you use or share them.

    """

    name: str
    summary: str
    licence: str


_APACHE = "apache-2.0"
_DINOV3 = "dinov3-license (Meta's own; accept it at the hub first)"

BACKBONES: tuple[KnownBackbone, ...] = (
    KnownBackbone("vit_small_patch16_224.dino", "DINO ViT-S/16, 22 M, ImageNet-1k without labels", _APACHE),
    KnownBackbone("vit_small_patch8_224.dino", "DINO ViT-S/8, 22 M, ImageNet-1k without labels", _APACHE),
    KnownBackbone("vit_base_patch16_224.dino", "DINO ViT-B/16, 86 M, ImageNet-1k without labels", _APACHE),
    KnownBackbone("vit_base_patch8_224.dino", "DINO ViT-B/8, 86 M, ImageNet-1k without labels", _APACHE),
    KnownBackbone("vit_small_patch14_dinov2.lvd142m", "DINOv2 ViT-S/14, 22 M", _APACHE),
    KnownBackbone("vit_base_patch14_dinov2.lvd142m", "DINOv2 ViT-B/14, 86 M", _APACHE),
    KnownBackbone("vit_large_patch14_dinov2.lvd142m", "DINOv2 ViT-L/14, 304 M", _APACHE),
    KnownBackbone("vit_small_patch14_reg4_dinov2.lvd142m", "DINOv2 ViT-S/14 with registers", _APACHE),
    KnownBackbone("vit_base_patch14_reg4_dinov2.lvd142m", "DINOv2 ViT-B/14 with registers", _APACHE),
    KnownBackbone("vit_large_patch14_reg4_dinov2.lvd142m", "DINOv2 ViT-L/14 with registers", _APACHE),
    KnownBackbone("vit_small_patch16_dinov3.lvd1689m", "DINOv3 ViT-S/16, 22 M, rotary positions", _DINOV3),
    KnownBackbone("vit_small_plus_patch16_dinov3.lvd1689m", "DINOv3 ViT-S+/16, 29 M, gated MLP", _DINOV3),
    KnownBackbone("vit_base_patch16_dinov3.lvd1689m", "DINOv3 ViT-B/16, 86 M", _DINOV3),
    KnownBackbone("vit_large_patch16_dinov3.lvd1689m", "DINOv3 ViT-L/16, 303 M", _DINOV3),
    KnownBackbone("vit_base_patch16_224.mae", "MAE ViT-B/16, 86 M, ImageNet-1k without labels", "cc-by-nc-4.0"),
    KnownBackbone("vit_small_patch16_224.augreg_in21k", "ViT-S/16 with labels of ImageNet-21k, for reference", _APACHE),
    KnownBackbone("vit_base_patch16_224.augreg_in21k", "ViT-B/16 with labels of ImageNet-21k, for reference", _APACHE),
)

MODEL_FORMS: tuple[tuple[str, str], ...] = (
    ("<timm name>", "any other plain vision transformer of timm"),
    ("hf-hub:owner/name", "a repository of the Hugging Face hub, or what its cache holds of it; @revision behind it"),
    ("path/to/folder", "config.json and weights of transformers or timm, in one file or in parts"),
    ("path/to/checkpoint.pth", "a file of DINO, iBOT, UDI, FLSL, MAE, MoCo-v3, DINOv2, DINOv3, timm or transformers"),
    ("runs/mine", "the folder of a finished run, or of a LoRA that PEFT saved"),
    (
        "vit:width=192,depth=12,heads=3,patch=16,img=224",
        "an architecture, for random weights (--init random)",
    ),
)
