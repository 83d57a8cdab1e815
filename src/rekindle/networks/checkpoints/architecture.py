# SPDX-License-Identifier: Apache-2.0
"""Descriptions of vision transformers: from a short name or a checkpoint's tensors, to a timm model."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields, replace
from functools import partial
from typing import Any, Literal, cast

import timm
import torch
from timm.layers.activations import QuickGELU
from timm.layers.mlp import SwiGLUPacked
from timm.layers.norm import LayerNorm
from timm.models.eva import Eva
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from rekindle.core.errors import RequestError, unknown_name

ACTIVATIONS: Mapping[str, Callable[[], nn.Module]] = {
    "gelu": nn.GELU,
    "gelu_tanh": partial(nn.GELU, approximate="tanh"),
    "quick_gelu": QuickGELU,
    "relu": nn.ReLU,
    "silu": nn.SiLU,
}
HEADS_OF_WIDTH = {192: 3, 384: 6, 768: 12, 1024: 16, 1280: 16, 1408: 16, 1536: 24, 1664: 16, 4096: 32}


@dataclass(frozen=True)
class Architecture:
    """A plain ViT (`vit`), one with DINOv3's rotary positions (`dinov3`), or a timm model by name (`timm`).

    Attributes:
        family: which of the three.
        timm_name: for `timm` only; everything but `img`, `img_width`, `registers` and `no_embed_class` then comes from
            timm.
        width, depth, heads, patch, registers: as in the tensors; `img` is the native size of the position
            table (px): its height, where `img_width` is not 0.
        hidden: width of the MLP; 0 is 4 * width.
        swiglu: gated MLP; `hidden` then counts one of its two halves.
        layer_scale: blocks have layer scale.
        class_token: a class token leads the sequence.
        no_embed_class: prefix tokens have no row in the position table.
        qkv_bias: biases in the attention's projections.
        pre_norm: LayerNorm before the first block (CLIP).
        eps: of every LayerNorm; 0 is the family's (1e-6; 1e-5 for `dinov3`).
        act: activation of the MLPs (`ACTIVATIONS`); "" is the family's: gelu, silu where it is gated.
        rope_theta: base of the rotary frequencies of `dinov3`.

    """

    family: Literal["vit", "dinov3", "timm"] = "vit"
    timm_name: str = ""
    width: int = 384
    depth: int = 12
    heads: int = 6
    patch: int = 16
    registers: int = 0
    img: int = 224
    hidden: int = 0
    swiglu: bool = False
    layer_scale: bool = False
    class_token: bool = True
    no_embed_class: bool = False
    qkv_bias: bool = True
    pre_norm: bool = False
    eps: float = 0.0
    img_width: int = 0
    act: str = ""
    rope_theta: float = 100.0

    @property
    def img_size(self) -> tuple[int, int]:
        """Native height and width in px."""
        return self.img, self.img_width or self.img

    def with_grid(self, grid: tuple[int, int], patch: int) -> Architecture:
        """The same with a position table of (gh, gw) patches."""
        height, width = grid[0] * patch, grid[1] * patch
        return replace(self, img=height, img_width=0 if width == height else width)

    def to_dict(self) -> dict[str, object]:
        """Plain values, for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, object]) -> Architecture:
        """Return the architecture that `to_dict` described; unknown keys are refused."""
        known = {f.name for f in fields(cls)}
        for key in values:
            if key not in known:
                raise unknown_name("architecture key", key, known)
        return cls(**values)  # type: ignore[arg-type]


def is_grammar(name: str) -> bool:
    """Return True for `vit:...` and `dinov3:...`."""
    return name.partition(":")[0] in ("vit", "dinov3") and ":" in name


def parse_arch(name: str) -> Architecture:
    """Read `vit:width=128,depth=8,heads=4,patch=8,registers=0,img=64` ; what is left out is ViT-S/16.

    `dinov3:...` takes the same keys.

    Example:
        >>> parse_arch("vit:width=64,depth=2,heads=2,patch=8,img=32").width
        64

    """
    family, _, text = name.partition(":")
    known = {f.name: f.default for f in fields(Architecture) if f.name not in ("family", "timm_name")}
    values: dict[str, object] = {}
    for part in filter(None, (p.strip() for p in text.split(","))):
        key, equals, value = part.partition("=")
        if key not in known:
            raise unknown_name(f"architecture key in '{name}':", key, known)
        kind: Any = type(known[key])
        try:
            if not equals:
                raise ValueError
            values[key] = {"true": True, "false": False}[value.lower()] if kind is bool else kind(value)
        except (ValueError, KeyError):
            raise RequestError(
                f"'{name}': {key} needs a value of type {kind.__name__}, as in {key}={known[key]}"
            ) from None
    if family == "dinov3":
        values = {"layer_scale": True, "registers": 4, "qkv_bias": False} | values
    arch = Architecture(family=cast(Literal["vit", "dinov3"], family), **values)  # type: ignore[arg-type]
    if min(arch.width, arch.depth, arch.heads, arch.patch, arch.img) < 1 or arch.width % arch.heads:
        raise RequestError(f"'{name}': sizes must be positive and width a multiple of heads")
    for key, side in zip(("img", "img_width"), arch.img_size, strict=True):
        if side % arch.patch:
            raise RequestError(f"'{name}': {key}={side} is not a multiple of patch={arch.patch}")
    if arch.act and arch.act not in ACTIVATIONS:
        raise unknown_name(f"activation in '{name}':", arch.act, ACTIVATIONS)
    if family == "dinov3" and (arch.width // arch.heads) % 4:
        raise RequestError(f"'{name}': rotary positions need width / heads to be a multiple of 4")
    return arch


def build_vit(arch: Architecture, *, drop_path: float = 0.0) -> Any:
    """Build the timm model, without classifier, with random weights drawn from torch's default generator."""
    vit = _build_from_timm(arch, drop_path) if arch.family == "timm" else _build(arch, drop_path)
    if arch.act:
        for block in vit.blocks:
            block.mlp.act = ACTIVATIONS[arch.act]()
    return vit


def _build(arch: Architecture, drop_path: float) -> Any:
    hidden = arch.hidden or 4 * arch.width
    if arch.family == "dinov3":
        return Eva(
            img_size=arch.img_size,
            patch_size=arch.patch,
            num_classes=0,
            global_pool="",
            embed_dim=arch.width,
            depth=arch.depth,
            num_heads=arch.heads,
            qkv_bias=arch.qkv_bias,
            mlp_ratio=hidden / arch.width,
            swiglu_mlp=arch.swiglu,
            swiglu_align_to=8 if arch.swiglu else 0,
            drop_path_rate=drop_path,
            norm_layer=partial(LayerNorm, eps=arch.eps or 1e-5),
            init_values=1e-5 if arch.layer_scale else None,
            class_token=arch.class_token,
            num_reg_tokens=arch.registers,
            use_abs_pos_emb=False,
            use_rot_pos_emb=True,
            rope_type="dinov3",
            rope_temperature=arch.rope_theta,
            rope_rotate_half=True,
            use_fc_norm=False,
            dynamic_img_size=True,
        )
    gated: dict[str, Any] = {"mlp_layer": SwiGLUPacked, "act_layer": nn.SiLU} if arch.swiglu else {}
    return VisionTransformer(
        img_size=arch.img_size,
        patch_size=arch.patch,
        num_classes=0,
        global_pool="",
        embed_dim=arch.width,
        depth=arch.depth,
        num_heads=arch.heads,
        mlp_ratio=(2 if arch.swiglu else 1) * hidden / arch.width,
        qkv_bias=arch.qkv_bias,
        init_values=1e-5 if arch.layer_scale else None,
        class_token=arch.class_token,
        no_embed_class=arch.no_embed_class,
        reg_tokens=arch.registers,
        pre_norm=arch.pre_norm,
        dynamic_img_size=True,
        drop_path_rate=drop_path,
        norm_layer=partial(LayerNorm, eps=arch.eps or 1e-6),
        **gated,
    )


def _build_from_timm(arch: Architecture, drop_path: float) -> Any:
    entry = timm.models.model_entrypoint(arch.timm_name).__module__
    sized: dict[str, Any] = {"img_size": arch.img_size} if arch.img else {}
    if entry.endswith("vision_transformer"):
        sized |= {"reg_tokens": arch.registers, "no_embed_class": arch.no_embed_class}
    return bare(
        timm.create_model(
            arch.timm_name,
            pretrained=False,
            num_classes=0,
            dynamic_img_size=True,
            drop_path_rate=drop_path,
            **sized,
        )
    )


def bare(vit: Any) -> Any:
    """Take pooling and classifier off a timm ViT; a norm behind its pooling becomes the final norm."""
    if isinstance(vit, VisionTransformer | Eva):
        vit.reset_classifier(0, "")
        if isinstance(vit.norm, nn.Identity) and not isinstance(vit.fc_norm, nn.Identity):
            vit.norm, vit.fc_norm = vit.fc_norm, nn.Identity()
    return vit


def infer_arch(
    state: Mapping[str, Tensor],
    *,
    heads: int | None = None,
    layout: str = "timm",
    grid: tuple[int, int] | None = None,
) -> Architecture:
    """Read the architecture off the tensors' shapes (timm names, see `conversion`).

    Args:
        state: the backbone's tensors.
        heads: number of heads, which no tensor tells; None takes the usual one for this width, else width /
            64.
        layout: for the message.
        grid: (gh, gw) of the position table, which no tensor tells either; None takes a square.

    Raises:
        RequestError: if the tensors leave it open, naming `--network.arch` or `--network.grid`.

    """
    ask = "; name it with --network.arch, as in vit_small_patch16_224 or vit:width=384,depth=12,heads=6"
    width, _, patch, _ = state["patch_embed.proj.weight"].shape
    depth = 1 + max((int(k.split(".")[1]) for k in state if k.startswith("blocks.")), default=-1)
    if depth == 0 or "blocks.0.norm1.weight" not in state:
        raise RequestError(f"this {layout} file holds no transformer blocks of a plain ViT{ask}")
    if heads is None:
        heads = HEADS_OF_WIDTH.get(width) or (width // 64 if width % 64 == 0 else None)
    if heads is None or width % heads:
        raise RequestError(f"cannot tell the number of heads of a ViT of width {width}{ask}")
    registers = state["reg_token"].shape[1] if "reg_token" in state else 0
    gated = "blocks.0.mlp.fc1_g.weight" in state
    packed = not gated and state["blocks.0.mlp.fc1.weight"].shape[0] != state["blocks.0.mlp.fc2.weight"].shape[1]
    arch = Architecture(
        width=width,
        depth=depth,
        heads=heads,
        patch=patch,
        registers=registers,
        hidden=state["blocks.0.mlp.fc2.weight"].shape[1],
        swiglu=gated or packed,
        class_token="cls_token" in state,
        pre_norm="norm_pre.weight" in state,
    )
    if "pos_embed" not in state:
        biased = "blocks.0.attn.q_bias" in state
        return replace(arch, family="dinov3", layer_scale="blocks.0.gamma_1" in state, qkv_bias=biased)
    found, no_embed_class = _native_grid(state["pos_embed"].shape[1], int(arch.class_token) + registers, grid)
    return replace(
        arch.with_grid(found, patch),
        no_embed_class=no_embed_class,
        layer_scale="blocks.0.ls1.gamma" in state,
        qkv_bias="blocks.0.attn.qkv.bias" in state,
    )


def _native_grid(rows: int, prefix: int, grid: tuple[int, int] | None) -> tuple[tuple[int, int], bool]:
    """The native grid, and whether the prefix tokens have no rows in the table."""
    told = f"a position table of {rows} rows with {prefix} prefix tokens"
    for patches, no_embed_class in ((rows - prefix, False), (rows, True)):
        side = math.isqrt(max(0, patches))
        if grid is not None and grid[0] * grid[1] == patches:
            return grid, no_embed_class
        if grid is None and side and side * side == patches:
            return (side, side), no_embed_class
    fitting = [f"{h}x{n // h}" for n in (rows - prefix, rows) for h in _divisors(n)][:4]
    examples = f"as in --network.grid {' or '.join(fitting)}"
    if grid is None:
        raise RequestError(f"{told} is not a square grid; say its height and width in patches, {examples}")
    raise RequestError(
        f"--network.grid {grid[0]}x{grid[1]} has {grid[0] * grid[1]} patches, and {told} fits others, {examples}"
    )


def _divisors(number: int) -> list[int]:
    """Heights of the grids of so many patches, the nearly square first, and none higher than wide."""
    return [h for h in range(math.isqrt(max(0, number)), 1, -1) if number % h == 0]


def sincos_rows(table: Tensor) -> bool:
    """Tell a fixed 2-D sine-cosine table: every row holds D/2 pairs with sin^2 + cos^2 = 1."""
    norms = table.double().square().sum(dim=-1)
    return bool(torch.allclose(norms, torch.full_like(norms, table.shape[-1] / 2), rtol=1e-3))
