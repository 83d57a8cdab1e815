# SPDX-License-Identifier: Apache-2.0
"""Backbone: one wrapper for every plain vision transformer, pixels in, `Tokens` out, at any size the patch divides."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64
from timm.layers.drop import DropPath
from timm.layers.patch_embed import PatchEmbed
from timm.models.eva import Eva
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from rekindle.core.errors import RequestError
from rekindle.networks.blocks import (
    BlockPass,
    ComposedBlock,
    check_block,
    first_row_attention,
    plain_block,
    recompute_block,
    run_block,
)
from rekindle.networks.identity import BackboneIdentity
from rekindle.networks.position import PositionMode, interpolate_positions, rope_rows
from rekindle.networks.stochastic_depth import Paths, draw_paths
from rekindle.networks.tokens import Stem, Tokens

Triple = tuple[float, float, float]


def check_plain_vit(vit: Any) -> None:
    """Raise RequestError, naming what is in the way, for a timm model that `Backbone` cannot run."""
    if type(vit) not in (VisionTransformer, Eva) or type(vit.patch_embed) is not PatchEmbed:
        raise RequestError(
            f"{type(vit).__name__} is not a plain vision transformer; use a timm VisionTransformer or Eva "
            "with one convolution for its patches (`rekindle list backbones`)"
        )
    for block in vit.blocks:
        check_block(block)
    height, width = vit.patch_embed.patch_size
    if height != width:
        raise RequestError(f"patches of {height} x {width} px are not supported; they must be square")


class Backbone(nn.Module):
    """A plain ViT of timm (`VisionTransformer`: DINO, DINOv2, MAE, ...; `Eva`: DINOv3) that returns `Tokens`.

    The loops are ours, for three things timm's forward does not do: DINO's position interpolation, masking of
    patch embeddings, and blocks that something was put around.

    Args:
        vit: the timm model, without classifier.
        mean, std: normalisation its pixels expect, per channel, for pixels in [0, 1].
        identity: where the weights come from.
        pos_interp: see `networks.position`.
        patch_norm: norm of the patch tokens in place of the final one (UDI's `norm1`).
        mean_as_cls: the mean of the normalised patch tokens plays the class token (FLSL,
            `flsl_cls="meanpool"`).
        fixed_positions: the position table is a fixed one and never trains (FLSL, MAE).
        fresh: names of parameters that the checkpoint could not bring, so that they must train.

    Attributes:
        recompute_blocks: where gradients are wanted, keep the blocks' inputs alone and compute the rest again on the way back.
        skip_dropped: do not compute what stochastic depth drops, where that pays.
        compiled: a compiled form of each block (`networks.compiling`), or None.
        stem_depth: number of first blocks that stay as they are, after an embedding that does (`set_stem`).

    """

    def __init__(
        self,
        vit: Any,
        *,
        mean: Triple,
        std: Triple,
        identity: BackboneIdentity,
        pos_interp: PositionMode = "dino",
        patch_norm: nn.Module | None = None,
        mean_as_cls: bool = False,
        fixed_positions: bool = False,
        fresh: tuple[str, ...] = (),
    ) -> None:
        super().__init__()
        check_plain_vit(vit)
        self.vit: Any = vit
        self.patch_norm = patch_norm
        self.mean, self.std, self.identity = mean, std, identity
        self.pos_interp: PositionMode = pos_interp
        self.mean_as_cls, self.fixed_positions = mean_as_cls, fixed_positions
        self.fresh = fresh
        self.recompute_blocks = False
        self.skip_dropped = True
        self.compiled: dict[Any, Callable[..., Tensor]] | None = None
        self.stem_depth = 0
        self.width: int = vit.embed_dim
        self.depth: int = len(vit.blocks)
        self.num_heads: int = vit.blocks[0].attn.num_heads
        self.patch_size: int = vit.patch_embed.patch_size[0]
        self.is_rotary: bool = isinstance(vit, Eva) and vit.rope is not None
        self.has_class_token: bool = vit.cls_token is not None
        self.has_cls: bool = self.has_class_token or mean_as_cls
        self.num_registers: int = 0 if vit.reg_token is None else vit.reg_token.shape[1]
        self.num_prefix: int = int(self.has_class_token) + self.num_registers

    def forward(
        self,
        pixels: Float[Tensor, "N C H W"] | Stem,
        *,
        patch_mask: Bool[Tensor, "N gh gw"] | None = None,
        mask_token: Float[Tensor, " D"] | None = None,
        cls_attention: bool = False,
        norm: bool = True,
        positions: bool = True,
        unread: Bool[Tensor, "N gh gw"] | None = None,
    ) -> Tokens:
        """Return the tokens after the last block, normally after the final norm.

        Args:
            pixels: normalised with `mean` and `std`; height and width any multiples of the patch. Or what `stem` returned for
                such pixels, with the same `patch_mask`, `positions` and `unread`.
            patch_mask: True where the patch's embedding (before its position is added) is replaced by
                `mask_token`.
            mask_token: what stands in for hidden patches; needed with `patch_mask`.
            cls_attention: also return the last block's attention of the class token to the patches, without
                gradient.
            norm: False leaves the final norm out (UDI's patch branch has its own).
            positions: False hides from the network where its patches lie (LOCA's queries without clusters).
            unread: True for patches that no token may read in any block; they read the others themselves.

        Raises: ValueError for a size that the patch does not divide, for a mask without a token, and for `cls_attention` of a
        network without a class token.
        """
        if cls_attention and not self.has_class_token:
            raise ValueError("cls_attention=True needs a network with a class token; this one has none")
        start = pixels
        if not isinstance(start, Stem):
            start = self.stem(start, patch_mask, mask_token, positions=positions, unread=unread)
        hidden = None if unread is None else F.pad(unread.flatten(1), (self.num_prefix, 0), value=False)
        x, rope, path = self._before_last(start, hidden)
        last, attention = self.vit.blocks[-1], None
        if cls_attention:
            attention = first_row_attention(last, x, rope)[:, :, self.num_prefix :]
            attention = attention.reshape(*attention.shape[:2], *start.grid)
        done = self.run_one_block(last, x, BlockPass(rope, paths=path, unread=hidden))
        return self._tokens(done, start.grid, attention, norm=norm)

    def stem(
        self,
        pixels: Float[Tensor, "N C H W"],
        patch_mask: Bool[Tensor, "N gh gw"] | None = None,
        mask_token: Float[Tensor, " D"] | None = None,
        *,
        positions: bool = True,
        unread: Bool[Tensor, "N gh gw"] | None = None,
    ) -> Stem:
        """Return the tokens after the first `stem_depth` blocks (0: before the first), for `forward` and `class_token`.

        Nothing trains in them and nothing is drawn: student and teacher get the same. Arguments as of `forward`.
        """
        x, ropes, grid = self.embed(pixels, patch_mask, mask_token, positions=positions)
        hidden = None if unread is None else F.pad(unread.flatten(1), (self.num_prefix, 0), value=False)
        for block, rope in zip(self.vit.blocks[: self.stem_depth], ropes, strict=False):
            x = self.run_one_block(block, x, BlockPass(rope, unread=hidden))
        return Stem(x, ropes, grid)

    def shared(self, pixels: Float[Tensor, "N C H W"]) -> Tensor | Stem:
        """What student and teacher both need of images: the stem's tokens, or the pixels where there is no stem."""
        return self.stem(pixels) if self.stem_depth else pixels

    def set_stem(self) -> None:
        """Count the first blocks in which, and before which, nothing trains now; the last block is never one of them."""
        blocks = list(self.vit.blocks)
        inside = {id(p) for block in blocks for p in block.parameters()}
        trains = [
            isinstance(block, ComposedBlock) or any(p.requires_grad for p in block.parameters()) for block in blocks
        ]
        after = {id(p) for norm in (self.vit.norm, self.patch_norm) if norm is not None for p in norm.parameters()}
        if any(p.requires_grad and id(p) not in inside | after for p in self.parameters()):
            trains[0] = True
        trains[-1] = True
        self.stem_depth = trains.index(True)

    def _before_last(self, start: Stem, hidden: Tensor | None = None) -> tuple[Tensor, Tensor | None, Paths | None]:
        """Tokens that go into the last block, and its rotary table and stochastic depth."""
        x, first = start.tokens, self.stem_depth
        paths = self.draw_block_paths(x)
        for number in range(first, self.depth - 1):
            how = BlockPass(start.ropes[number], paths=paths[number], unread=hidden)
            x = self.run_one_block(self.vit.blocks[number], x, how)
        return x, start.ropes[-1], paths[-1]

    def class_token(self, pixels: Float[Tensor, "N C H W"] | Stem) -> Float[Tensor, "N D"]:
        """Return what `forward(pixels).class_token` is, without the last block's work on the patches.

        Args: pixels, or what `stem` returned for them. Raises: RequestError for a network without a class token.
        """
        if self.mean_as_cls or not self.has_class_token:
            return self(pixels).class_token  # type: ignore[no-any-return]
        return self._first_tokens(pixels, 1)[:, 0]

    def prefix_tokens(self, pixels: Float[Tensor, "N C H W"]) -> Float[Tensor, "N R D"]:
        """Return class token and registers after the final norm, without the last block's work on the patches."""
        return self._first_tokens(pixels, self.num_prefix)

    def visible_tokens(
        self, pixels: Float[Tensor, "N C H W"], keep: Int64[Tensor, "N L"], *, positions: bool = True
    ) -> Float[Tensor, "N T D"]:
        """Return prefix tokens and the patches `keep` of each image, encoded without the others, after the final norm.

        The position is added (or the rotary table chosen) before patches are dropped, as in MAE (arXiv:2111.06377), sec. 3.
        """
        x, ropes, _ = self.embed(pixels, positions=positions)
        prefix, patches = x[:, : self.num_prefix], x[:, self.num_prefix :]
        x = torch.cat([prefix, patches.gather(1, keep[..., None].expand(-1, -1, self.width))], dim=1)
        ropes = [None if rope is None else rope_rows(rope, keep) for rope in ropes]
        for block, rope, path in zip(self.vit.blocks, ropes, self.draw_block_paths(x), strict=True):
            x = self.run_one_block(block, x, BlockPass(rope, paths=path))
        return self.vit.norm(x)  # type: ignore[no-any-return]

    def _first_tokens(self, pixels: Tensor | Stem, rows: int) -> Tensor:
        """The first tokens after the final norm; in the last block only theirs are computed."""
        x, rope, path = self._before_last(pixels if isinstance(pixels, Stem) else self.stem(pixels))
        tokens: Tensor = self.vit.norm(self.run_one_block(self.vit.blocks[-1], x, BlockPass(rope, rows, path)))
        return tokens

    def intermediate(
        self, pixels: Float[Tensor, "N C H W"], blocks: Sequence[int], *, norm: bool = True
    ) -> list[Tokens]:
        """Return the tokens after the given blocks, in the order asked for; -1 is the last.

        Raises: ValueError for a block that the network does not have.
        """
        indices = [self._block_index(i) for i in blocks]
        x, ropes, grid = self.embed(pixels)
        kept: dict[int, Tokens] = {}
        for i, (block, rope, path) in enumerate(zip(self.vit.blocks, ropes, self.draw_block_paths(x), strict=True)):
            if i > max(indices, default=-1):
                break
            x = self.run_one_block(block, x, BlockPass(rope, paths=path))
            if i in indices:
                kept[i] = self._tokens(x, grid, None, norm=norm)
        return [kept[i] for i in indices]

    def forward_features(self, pixels: Float[Tensor, "N C H W"]) -> Float[Tensor, "N T D"]:
        """Return what timm's method of this name does: all tokens after the final norm, patches last."""
        x, ropes, _ = self.embed(pixels)
        for block, rope in zip(self.vit.blocks, ropes, strict=True):
            x = run_block(block, x, BlockPass(rope))
        features: Tensor = self.vit.norm(x)
        return features

    def forward_intermediates(
        self,
        pixels: Float[Tensor, "N C H W"],
        indices: int | Sequence[int] | None = None,
        return_prefix_tokens: bool = False,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: Literal["NCHW", "NLC"] = "NCHW",
        intermediates_only: bool = False,
    ) -> Any:
        """Return what timm's method of this name does, with its arguments and defaults.

        Args:
            pixels: as in `forward`.
            indices: the last n blocks for an int, all for None, else these blocks in ascending order.
            return_prefix_tokens: give (patches, prefix) pairs.
            norm: apply the final norm to the intermediates.
            stop_early: skip the blocks after the last one asked for.
            output_fmt: "NCHW" maps or "NLC" sequences.
            intermediates_only: leave out the final features; otherwise (features, intermediates) is returned.

        """
        if indices is None:
            wanted = list(range(self.depth))
        elif isinstance(indices, int):
            wanted = list(range(max(0, self.depth - indices), self.depth))
        else:
            wanted = sorted({self._block_index(i) for i in indices})
        x, ropes, grid = self.embed(pixels)
        outputs: list[Tensor] = []
        for i, (block, rope) in enumerate(zip(self.vit.blocks, ropes, strict=True)):
            if stop_early and i > wanted[-1]:
                break
            x = run_block(block, x, BlockPass(rope))
            if i in wanted:
                outputs.append(self.vit.norm(x) if norm else x)
        patches = [y[:, self.num_prefix :] for y in outputs]
        if output_fmt == "NCHW":
            patches = [y.reshape(len(y), *grid, -1).permute(0, 3, 1, 2).contiguous() for y in patches]
        intermediates: list[Tensor] | list[tuple[Tensor, Tensor]] = patches
        if return_prefix_tokens:
            intermediates = list(zip(patches, [y[:, : self.num_prefix] for y in outputs], strict=True))
        return intermediates if intermediates_only else (self.vit.norm(x), intermediates)

    def attend_plainly(self) -> None:
        """Compute attention as products and a softmax instead of torch's fused kernel.

        On CPUs that is faster in bfloat16 (3 times forward and backward for 197 tokens, 9 times for 37; equal in float32).
        """
        for block in self.vit.blocks:
            plain_block(block).attn.fused_attn = False

    def set_drop_path(self, rate: float) -> None:
        """Set stochastic depth: `rate` in the last block, falling linearly to 0 in the first. It acts in training mode."""
        for number, block in enumerate(map(plain_block, self.vit.blocks)):
            own = rate * number / max(1, self.depth - 1)
            for name in ("drop_path1", "drop_path2"):
                setattr(block, name, DropPath(own) if own else nn.Identity())

    def draw_block_paths(self, x: Tensor) -> list[Paths] | list[None]:
        """Stochastic depth of every block after the stem while training, at the rates that its own modules hold.

        A CPU skips what images drop, a twentieth of a student's work at the usual rate. Elsewhere their number would have to
        come back from the device first; in low precision every other number of rows is a program that oneDNN keeps.
        """
        if not self.training:
            return [None] * self.depth
        drops = [p for block in map(plain_block, self.vit.blocks) for p in (block.drop_path1, block.drop_path2)]
        keep = [1.0 - getattr(drop, "drop_prob", 0.0) for drop in drops]  # the identity where the rate is 0
        keep[: 2 * self.stem_depth] = [1.0] * (2 * self.stem_depth)
        if min(keep) == 1.0:
            return [None] * self.depth
        pays = x.device.type == "cpu" and x.dtype.itemsize > 2 and self.compiled is None
        return draw_paths(torch.tensor(keep, device=x.device, dtype=x.dtype), len(x), skip=pays and self.skip_dropped)

    def run_one_block(self, block: Any, x: Tensor, how: BlockPass) -> Tensor:
        """Return the tokens [N, T, D] after one of its blocks, compiled or recomputed on the way back where that is asked for."""
        if self.recompute_blocks and torch.is_grad_enabled() and any(p.requires_grad for p in block.parameters()):
            return recompute_block(block, x, replace(how, one_graph=True))
        if self.compiled is not None:
            return self.compiled[block](x, how)
        return run_block(block, x, how)

    def _block_index(self, index: int) -> int:
        if not -self.depth <= index < self.depth:
            raise ValueError(f"block {index} does not exist; the network has blocks 0 to {self.depth - 1}")
        return index % self.depth

    def embed(
        self,
        pixels: Tensor,
        patch_mask: Tensor | None = None,
        mask_token: Tensor | None = None,
        *,
        positions: bool = True,
    ) -> tuple[Tensor, list[Tensor | None], tuple[int, int]]:
        """Tokens before the first block, one rotary table per block (None without), and the grid."""
        height, width = pixels.shape[-2:]
        p = self.patch_size
        if height % p or width % p or not (height and width):
            raise ValueError(
                f"images of {height} x {width} px do not divide into patches of {p} px; "
                f"use {max(1, round(height / p)) * p} x {max(1, round(width / p)) * p}"
            )
        grid = height // p, width // p
        vit = self.vit
        pixels = pixels.to(vit.patch_embed.proj.weight.dtype)
        x = vit.patch_embed.norm(vit.patch_embed.proj(pixels).flatten(2).transpose(1, 2))
        if patch_mask is not None:
            if mask_token is None or patch_mask.shape != (len(x), *grid):
                raise ValueError(
                    f"patch_mask of shape {tuple(patch_mask.shape)} needs a mask_token "
                    f"and the shape of the patches, {(len(x), *grid)}"
                )
            x = torch.where(patch_mask.flatten(1)[..., None], mask_token.to(x.dtype), x)
        prefix = [t.expand(len(x), -1, -1) for t in (vit.cls_token, vit.reg_token) if t is not None]
        if vit.pos_embed is None or not positions:
            x = torch.cat([*prefix, x], dim=1)
        else:
            rows = 0 if vit.no_embed_class else self.num_prefix
            native = vit.patch_embed.grid_size
            table = interpolate_positions(vit.pos_embed, grid, native, num_prefix=rows, mode=self.pos_interp)
            # a table without prefix rows is added before class and register tokens join
            x = torch.cat([*prefix, x + table], 1) if vit.no_embed_class else torch.cat([*prefix, x], 1) + table
        ropes: list[Tensor | None] = self._rotary_tables(grid) if positions else [None] * self.depth
        return vit.norm_pre(vit.pos_drop(x)), ropes, grid

    def _rotary_tables(self, grid: tuple[int, int]) -> list[Tensor | None]:
        if not self.is_rotary:
            return [None] * self.depth
        table = self.vit.rope.get_embed(shape=grid)
        return list(table) if self.vit.rope_mixed else [table] * self.depth

    def _tokens(self, x: Tensor, grid: tuple[int, int], attention: Tensor | None, *, norm: bool) -> Tokens:
        sequence = self.vit.norm(x) if norm else x
        patches = sequence[:, self.num_prefix :]
        if norm and self.patch_norm is not None:
            patches = self.patch_norm(x[:, self.num_prefix :])
        registers = sequence[:, self.num_prefix - self.num_registers : self.num_prefix]
        cls = sequence[:, 0] if self.has_class_token else None
        if self.mean_as_cls:
            cls = patches.mean(dim=1)
        return Tokens(cls, registers, patches.reshape(len(x), *grid, -1), attention)
