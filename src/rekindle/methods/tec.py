# SPDX-License-Identifier: Apache-2.0
"""TEC: target-enhanced conditional pre-training of a new encoder by a frozen one (Gao et al., 2022, arXiv:2210.11016)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn.functional import interpolate

from rekindle.adapters.folding import fold
from rekindle.adapters.replacing import ReplacingBlock
from rekindle.core.errors import RequestError
from rekindle.core.options import Options
from rekindle.core.progress import Progress
from rekindle.methods.base import LossBreakdown, Method, PictureRows
from rekindle.methods.papers import tec as tec_paper
from rekindle.methods.shared.masking import PLAIN_CROPS, draw_visible
from rekindle.networks.backbone import Backbone
from rekindle.networks.block_outputs import walk_blocks
from rekindle.networks.blocks import ComposedBlock
from rekindle.networks.checkpoints.drawing import drawn_like, is_of_mae
from rekindle.networks.parts.base_model import BaseModel, LastAttention
from rekindle.networks.parts.conditioning import Conditioning, EncoderAdapters, InputAdapter
from rekindle.networks.parts.target_decoder import AttentionScale, TargetDecoder
from rekindle.networks.sharing import copy_sharing_frozen
from rekindle.objectives.contributions import norm_shares
from rekindle.objectives.reconstruction import TargetNorm, hidden_patch_error, normalised_target
from rekindle.objectives.semantic_attention import attention_loss, attention_target, mean_entropy, strongest_patches
from rekindle.views.batch import ViewBatch
from rekindle.views.marking import RED, as_bytes, boxed, faded, patch_boxes


@dataclass(frozen=True)
class Sharpness:
    """What suits the class-token attention of a family of base models (appendix, table 14)."""

    num_selected: int
    temperature: float


PRESETS = {"mae-b": Sharpness(15, 1.8), "mae-l": Sharpness(15, 1.4), "ibot": Sharpness(9, 1.0)}


class TecOptions(Options):
    """Options of TEC; defaults are the paper's, from its released code where the two differ."""

    start: Literal["random", "base"] = "random"
    """Weights of the new encoder: drawn, or the base model's (which ends 0.4 points lower in the paper)."""
    arch: str = ""
    """Architecture of the new encoder, as in vit:width=768,depth=12,heads=12; empty: the base model's."""
    mask_ratio: float = Field(0.75, gt=0, lt=1)
    """Share of the patches that are hidden from the new encoder."""
    last_layers: int = Field(2, ge=1)
    """Blocks of the base model, from the last one down, whose outputs are averaged into the feature target."""
    target_norm: TargetNorm = "patch"
    """What is standardised in the feature target: each channel over the patches, each patch over its channels, or nothing."""
    attention: Literal["none", "cls_only", "all", "select"] = "select"
    """Rows of the base model's attention that are predicted: none, the class token's, that and all patches', or that and those of
    the patches which the class token attends to most."""
    rank_on: Literal["logits", "prob"] = "logits"
    """What is averaged over the heads to select patches: attention logits, or attention."""
    preset: Literal["auto", "mae-b", "mae-l", "ibot"] = "auto"
    """Family of the base model, which says how many patches are selected and the temperature: 15 and 1.8 for MAE's ViT-B, 15 and
    1.4 for its ViT-L, 9 and 1.0 for iBOT and all others. auto knows MAE by timm's names (...mae)
    and, in any file, by its positions; of a MAE that was trained here, name it."""
    num_selected: int | None = Field(None, ge=1)
    """Patches k whose rows are predicted; None: as the preset has it."""
    temperature: float | None = Field(None, gt=0)
    """Temperature tau of the attention target, above 1 flatter; None: as the preset has it."""
    input_adapter: bool = True
    """An MLP makes the class token; it is merged when training ends."""
    encoder_adapter: bool = True
    """The decoder reads a fusion of all blocks' outputs in place of the last one's; it is left out when training ends."""
    blocks_per_group: int = Field(3, ge=1)
    """Blocks of one group of that fusion."""
    decoder_width: int | None = Field(None, ge=4)
    """Width of the decoder; None: 512, and 768 for encoders of width 1024 and more."""
    decoder_depth: int = Field(2, ge=1)
    """Blocks of the decoder."""
    decoder_heads: int = Field(16, ge=1)
    """Attention heads of the decoder."""
    attention_scale: AttentionScale = "full"
    """Scale of the predicted attention logits: the base model's width to the power -1/2, or that of one head."""


class Tec(Method):
    """A new encoder sees a quarter of an image's patches, and predicts what a frozen base model makes of the whole image.

    Targets are the base's features, standardised along the patches, and rows of its last attention. An input adapter and encoder
    adapters let one plain encoder fit different bases; they and the decoder are gone from what is exported.

    Deviations: every image gives two crops, each hidden on its own, and the base sees both. The new encoder's positions are sines
    and cosines at the base's native grid, followed to other sizes as `network.pos_interp` says; with rotary positions it
    has the base's kind. Registers of a base are built into the new encoder too, take part in it, and stay behind before adapters
    and decoder. Base models are not registered by name: any MODEL is one, and `preset` holds the rest.
    """

    Config = TecOptions
    STATED = tec_paper.STATED
    PAPER: ClassVar[Mapping[str, object]] = {
        "optim.lr_per_256": 1.5e-4,
        "optim.warmup_epochs": 40.0,
        "optim.final_lr": 0.0,
        "optim.weight_decay": 0.05,
        "optim.beta2": 0.95,
        "optim.clip_norm": 0.0,
    }
    # The encoder is new although its base is pretrained, so it trains as from scratch: no head goes ahead of it.
    NEEDS: ClassVar[Mapping[str, object]] = {
        **PLAIN_CROPS,
        **PAPER,
        "train": "all",
        "recipe": "paper",
        "optim.head_warmup": 0.0,
    }

    def __init__(self, config: TecOptions, backbone: Backbone) -> None:
        super().__init__()
        self.config = config
        student, base = _new_and_base(config, backbone)
        if config.attention != "none" and not (base.has_class_token and student.has_class_token):
            raise RequestError(
                "the attention that TEC predicts is that of a class token, and the base model or --tec.arch has none; use "
                "--tec.attention none --tec.input-adapter false, or networks with a class token"
            )
        if config.input_adapter and not student.has_class_token:
            raise RequestError("the new encoder has no class token to adapt; use --tec.input-adapter false")
        self.base_model = BaseModel(base, last_layers=config.last_layers)
        self.student = student
        width = config.decoder_width or (512 if student.width < 1024 else 768)
        self.conditioning = Conditioning(
            InputAdapter(student.width) if config.input_adapter else None,
            EncoderAdapters(student.width, student.depth, blocks_per_group=config.blocks_per_group, hidden=4 * width)
            if config.encoder_adapter
            else None,
        )
        self.decoder = TargetDecoder(
            student.width,
            width=width,
            depth=config.decoder_depth,
            heads=config.decoder_heads,
            feature_width=base.width,
            attention_heads=None if config.attention == "none" else base.num_heads,
            scale=config.attention_scale,
            num_prefix=int(student.has_class_token),
        )
        sharpness = _preset(config, base)
        self.num_selected = config.num_selected or sharpness.num_selected
        self.temperature = config.temperature or sharpness.temperature

    @classmethod
    def fitted(cls, config: Options, grid: tuple[int, int]) -> Options:
        """Return the options as they are. Raises RequestError where a grid leaves nothing visible or too little to select."""
        assert isinstance(config, TecOptions)
        preset = PRESETS["ibot" if config.preset == "auto" else config.preset]  # auto selects as many, or more
        _check_grid(config, config.num_selected or preset.num_selected, grid[0] * grid[1])
        return config

    @classmethod
    def learns_beside(cls, config: Options) -> bool:
        """The named backbone is the base model, unless a copy of it is what trains."""
        assert isinstance(config, TecOptions)
        return config.start == "random"

    def loss(self, batch: ViewBatch, progress: Progress) -> LossBreakdown:
        """Return L_fea + L_att (eqs. 4 and 5).

        They equal `objectives.plain.hidden_patch_error` of the standardised features, and the mean over rows and heads of
        `objectives.plain.row_cross_entropy` over the patches, at temperature 1 for what is predicted.
        """
        config, pixels = self.config, batch.global_views.pixels.flatten(0, 1)
        patch = self.student.patch_size
        grid = pixels.shape[-2] // patch, pixels.shape[-1] // patch
        num_patches = grid[0] * grid[1]
        _check_grid(config, self.num_selected, num_patches)
        keep, hidden = draw_visible(progress, len(batch), 2, num_patches, config.mask_ratio)
        keep, hidden = keep.to(pixels.device), hidden.to(pixels.device)

        base = self.base_model(pixels)
        index = self._selected(base.attention, num_patches)
        outputs = self.encode(pixels, keep)
        fused, shares = self._fused(outputs)
        features, attention = self.decoder(fused, keep, grid, index)

        target = normalised_target(base.features, config.target_norm)  # eq. 3
        terms = {"fea": hidden_patch_error(features, target, hidden, normalise=False)}  # eq. 4
        stats = {
            "visible": 1 - hidden.float().mean(),
            "feature_variance": outputs[-1][:, -keep.shape[1] :].float().var(dim=1, correction=0).mean(),
        }
        stats |= shares
        if index is not None:
            rows = attention_target(base.attention.rows(index), self.temperature)
            terms["att"] = attention_loss(attention, rows)  # eq. 5
            stats["target_entropy"] = mean_entropy(rows)
        return LossBreakdown.weigh(terms, dict.fromkeys(terms, 1.0), stats)

    def _fused(self, outputs: list[Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """What the decoder reads, and the share of each group of blocks in it (figure 5)."""
        adapters = self.conditioning.encoder
        if adapters is None:
            return outputs[-1], {}
        groups = adapters.groups(outputs)
        shares = norm_shares(torch.stack([group.detach() for group in groups]))
        return adapters.joined(groups), {
            f"adapter_share_{n}": share for n, share in enumerate(shares.unbind(), start=1)
        }

    def _selected(self, attention: LastAttention, num_patches: int) -> Tensor | None:
        """Patches [N, k] whose rows are predicted after the class token's; None where no attention is."""
        class_row = attention.class_logits
        if self.config.attention == "none":
            return None
        if self.config.attention == "all":
            return torch.arange(num_patches, device=class_row.device).expand(len(class_row), -1)
        if self.config.rank_on == "prob":
            class_row = class_row.softmax(dim=-1)
        k = self.num_selected if self.config.attention == "select" else 0
        return strongest_patches(class_row[..., -num_patches:], k)

    def encode(self, pixels: Tensor, keep: Tensor) -> list[Tensor]:
        """Return X_1 .. X_D of the new encoder, class token and visible patches; the last one after the final norm."""
        student, token = self.student, self.conditioning.class_token(self.student)
        outputs = [step.after for step in walk_blocks(student, pixels, keep=keep, class_token=token)]
        outputs[-1] = student.vit.norm(outputs[-1])
        return _without_registers(outputs, student)

    def pictures(self, batch: ViewBatch, progress: Progress) -> PictureRows:
        """The base model's class attention (mean over heads), the patches that it selects, and what the new encoder sees."""
        pixels, student = batch.global_views.pixels[0], self.student
        grid = pixels.shape[-2] // student.patch_size, pixels.shape[-1] // student.patch_size
        shown = as_bytes(pixels, student.mean, student.std)
        _, hidden = draw_visible(progress, len(batch), 1, grid[0] * grid[1], self.config.mask_ratio)
        rows = {
            "image": shown,
            "visible": torch.stack([faded(v, ~h.view(grid)) for v, h in zip(shown, hidden, strict=True)]),
        }
        if self.config.attention == "none":
            return {"targets": rows}
        attention = self.base_model(pixels).attention
        share = attention.class_logits.softmax(dim=-1).mean(dim=1)[:, -grid[0] * grid[1] :].cpu()
        bright = (share / share.amax(dim=1, keepdim=True)).view(-1, 1, *grid)
        light = interpolate(bright, size=shown.shape[-2:], mode="nearest")
        rows["attention"] = (shown.float() * light).round().to(torch.uint8)
        index = self._selected(attention, grid[0] * grid[1])
        if index is not None and index.shape[1]:
            boxes = [patch_boxes(chosen, grid) for chosen in index.cpu()]
            rows["selected"] = torch.stack([boxed(v, b, RED) for v, b in zip(shown, boxes, strict=True)])
        return {"targets": rows}

    def exported(self) -> Backbone:
        """The new encoder as a plain network, its class token merged."""
        return self.conditioning.merged(self.student)


def _new_and_base(config: TecOptions, backbone: Backbone) -> tuple[Backbone, Backbone]:
    """Return the network that trains and the frozen one, from the one that was named."""
    adapted = [block for block in backbone.vit.blocks if isinstance(block, ComposedBlock)]
    is_updated = any(isinstance(block, ReplacingBlock) for block in adapted)
    if config.start == "base":
        if config.arch:
            raise RequestError(
                "--tec.arch gives the new encoder another shape than --tec.start base; leave one of them out"
            )
        if adapted and config.input_adapter:
            raise RequestError(
                "a run with adapters keeps the class token of its base, and the input adapter makes a new one; use "
                "--tec.input-adapter false, or --train all"
            )
        return backbone, fold(backbone) if is_updated else copy_sharing_frozen(backbone)
    return drawn_like(backbone, config.arch), fold(backbone) if is_updated else backbone


def _preset(config: TecOptions, base: Backbone) -> Sharpness:
    """The base model's own, unless the options name one."""
    if config.preset != "auto":
        return PRESETS[config.preset]
    if base.width in (768, 1024) and is_of_mae(base):
        return PRESETS["mae-b" if base.width == 768 else "mae-l"]
    return PRESETS["ibot"]


def _check_grid(config: TecOptions, num_selected: int, num_patches: int) -> None:
    """Raise RequestError unless something of `num_patches` patches stays visible and enough can be selected."""
    if int(num_patches * (1 - config.mask_ratio)) < 1:
        raise RequestError(
            f"--tec.mask-ratio {config.mask_ratio} leaves none of {num_patches} patches visible; use at most "
            f"{1 - 1 / num_patches:.3g}, or larger views (--views.global-size-px)"
        )
    if config.attention == "select" and num_selected > num_patches:
        raise RequestError(
            f"--tec.num-selected {num_selected}: the views have {num_patches} patches; use at most that, or --tec.attention all"
        )


def _without_registers(outputs: Sequence[Tensor], backbone: Backbone) -> list[Tensor]:
    """Class token and patches of each output; registers stay behind."""
    if not backbone.num_registers:
        return list(outputs)
    first = int(backbone.has_class_token)
    return [torch.cat([x[:, :first], x[:, backbone.num_prefix :]], dim=1) for x in outputs]
