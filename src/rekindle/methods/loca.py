# SPDX-License-Identifier: Apache-2.0
"""LOCA: location-aware pre-training, where a query lies in its reference and what cluster it shows (Caron et al., 2024)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.transforms.v2.functional import resize

from rekindle.core.distributed import all_sum_with_gradient, world_size
from rekindle.core.errors import RequestError
from rekindle.core.options import Options
from rekindle.core.progress import Progress
from rekindle.methods.base import LossBreakdown, Method, PictureRows
from rekindle.methods.loca_matching import Queries, kept_with
from rekindle.methods.loca_options import LocaOptions
from rekindle.methods.shared.distillation import Distillation, new_head
from rekindle.methods.shared.teacher import EmaTeacher
from rekindle.networks.backbone import Backbone
from rekindle.networks.parts.heads import DinoHead
from rekindle.networks.parts.locator import Locator
from rekindle.networks.tokens import Tokens
from rekindle.objectives.assignment import sinkhorn
from rekindle.objectives.location import box_error
from rekindle.objectives.pairs import count_per_process
from rekindle.objectives.soft_clustering import volume
from rekindle.views.batch import ViewBatch, Views
from rekindle.views.marking import as_bytes, located
from rekindle.views.options import VisibleShape
from rekindle.views.token_masks import draw_kept
from rekindle.views.tracking import relative_box


class LocaStudent(nn.Module):
    """What the student trains and the teacher averages: backbone, prototypes, and what locates a query."""

    def __init__(self, backbone: Backbone, head: DinoHead, locate: Locator | None) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = head
        self.locate = locate


class Loca(Method):
    """Query patches predict which reference patch shows the same, and in which cluster the teacher puts that one.

    The reference is the first large view, the first query the second one with some of its patches, the others the small ones.
    Deviations: the teacher runs in evaluation mode; brightness is multiplied, as everywhere here;
    sums over valid patches run over all processes. A backbone's class token stays in its sequence. Targets are
    balanced, and predictions averaged, over the images that are computed at a time (without `engine.micro-batch-size` a
    process's batch).
    """

    Config = LocaOptions
    upkeep: Distillation
    COMPARES_IMAGES: ClassVar[bool] = True
    NEEDS: ClassVar[Mapping[str, object]] = {
        "views.global_scale": (0.32, 1.0),
        "views.local_scale": (0.05, 0.32),
        "views.num_local": 9,
        "views.flip_first": False,
    }
    PAPER: ClassVar[Mapping[str, object]] = {
        "optim.lr_per_256": 2.5e-4,
        "optim.warmup_epochs": 15.0,
        "optim.final_lr": 1e-5,
        "optim.weight_decay": 0.1,
        "optim.clip_norm": 1.0,
        "optim.clip_over": "all",
    }

    def __init__(self, config: LocaOptions, backbone: Backbone) -> None:
        super().__init__()
        self.config = config
        if config.cluster_level == "image_cls" and not backbone.has_class_token:
            raise RequestError(
                "--loca.cluster-level image_cls needs a class token, and this backbone has none; use image_gap or patch"
            )
        self.side = config.reference_grid or int(backbone.vit.patch_embed.grid_size[0])
        locate = None
        if config.position_weight and config.position_mode == "single":
            locate = Locator(backbone.width, None, self.side**2, box=False)
            if backbone.vit.pos_embed is not None:  # nobody sees it
                backbone.vit.pos_embed.requires_grad_(False)
        elif config.position_weight:
            is_box = config.position_target == "box"
            locate = Locator(backbone.width, backbone.num_heads, self.side**2, box=is_box)
            if not self._num_visible:
                locate.stop_reading()
        head = new_head(config, backbone.width)
        if not config.cluster_weight:
            head.requires_grad_(False)
        self.student = LocaStudent(backbone, head, locate)
        self.teacher = EmaTeacher(self.student)
        self.upkeep = Distillation(config, self.student, self.teacher)

    @classmethod
    def fitted(cls, config: Options, grid: tuple[int, int]) -> Options:
        """Count the reference's patches where nobody did."""
        assert isinstance(config, LocaOptions)
        return config if config.reference_grid else config.model_copy(update={"reference_grid": grid[0]})

    def decays(self, name: str, parameter: nn.Parameter) -> bool:
        """The authors' biases of queries, keys and values have an axis of heads besides, and are decayed."""
        return name.endswith((".qkv.bias", ".query.bias", ".key_value.bias")) or super().decays(name, parameter)

    def loss(self, batch: ViewBatch, progress: Progress) -> LossBreakdown:
        """Return L_pos + L_clu + L_me (eqs. 1 and 2).

        They equal `objectives.plain.position_cross_entropy`, the mean of `objectives.plain.row_cross_entropy` over query patches
        that the reference holds, and `objectives.plain.mean_negative_entropy` over all query patches.
        """
        config = self.config
        reference = batch.global_views.pixels[0]
        grid = self._grid(reference)
        if grid != (self.side, self.side):
            raise RequestError(
                f"the reference view has {grid[0]} x {grid[1]} patches and the classifier {self.side} x {self.side} places; "
                f"set --loca.reference-grid {grid[0]}, or leave it out"
            )
        visible_index = self._draw(
            progress, len(batch), grid, self._num_visible, config.mask_shape, "visible reference"
        )
        if config.position_mode == "single":
            return self._single(reference, visible_index.to(reference.device), progress)
        target, visible = self._reference(reference, visible_index.to(reference.device))
        queries = self._queries(batch, progress)
        terms: dict[str, Tensor] = {}
        weights: dict[str, float] = {}
        matched = torch.cat([q.valid.flatten() for q in queries]).float().mean()
        stats = {"matched": matched}
        if self.student.locate is not None:
            terms["position"] = self._position(queries, visible, stats)
            weights["position"] = config.position_weight
        if target is not None:
            terms["cluster"], terms["memax"] = self._cluster(queries, target, progress, stats)
            weights |= {"cluster": config.cluster_weight, "memax": config.memax_weight}
        return LossBreakdown.weigh(terms, weights, stats | self.upkeep.stats(progress, {}, matched))

    def _single(self, pixels: Tensor, index: Tensor, progress: Progress) -> LossBreakdown:
        """Every patch of a view is classified by its own place; keys and values are the visible patches alone."""
        assert self.student.locate is not None
        unread = torch.ones(len(pixels), self.side**2, dtype=torch.bool, device=pixels.device).scatter_(1, index, False)
        tokens: Tokens = self.student.backbone(pixels, positions=False, unread=unread.view(-1, self.side, self.side))
        patches = tokens.patches.flatten(1, 2)
        logits = self.student.locate(patches, patches[:, :0]).float().flatten(0, 1)
        wanted = torch.arange(self.side**2, device=pixels.device).repeat(len(pixels))
        loss = F.cross_entropy(logits, wanted)
        stats = {"position_accuracy": (logits.argmax(dim=-1) == wanted).float().mean()}
        return LossBreakdown.weigh(
            {"position": loss}, {"position": self.config.position_weight}, stats | self.upkeep.stats(progress, {}, loss)
        )

    # Views

    @property
    def _num_visible(self) -> int:
        """Patches of the reference that queries may read: 39 of 196 at a ratio of 0.8, as in the code."""
        return int((1 - self.config.mask_ratio) * self.side**2 + 1e-9)

    def _grid(self, pixels: Tensor) -> tuple[int, int]:
        patch = self.student.backbone.patch_size
        return pixels.shape[-2] // patch, pixels.shape[-1] // patch

    def _draw(
        self, progress: Progress, rows: int, grid: tuple[int, int], count: int, shape: VisibleShape, purpose: str
    ) -> Tensor:
        return draw_kept(progress, rows, grid, count, shape=shape, shared=self.config.shared_masks, purpose=purpose)

    def _reference(self, pixels: Tensor, index: Tensor) -> tuple[Tokens | None, Tensor]:
        """The teacher's tokens of the reference, and those of its patches that queries may read (late dropping).

        Without clusters no target is wanted: the student encodes the visible patches alone, with gradient (early dropping).
        """
        backbone = self.student.backbone
        if not self.config.cluster_weight:
            return None, backbone.visible_tokens(pixels, index)[:, backbone.num_prefix :]
        with torch.no_grad():
            target: Tokens = self.teacher.network.backbone(pixels)
        patches = target.patches.flatten(1, 2)
        return target, patches.gather(1, index[..., None].expand(-1, -1, patches.shape[-1]))

    def _queries(self, batch: ViewBatch, progress: Progress) -> list[Queries]:
        """The large query with the patches it keeps, then the small ones."""
        backbone, positions = self.student.backbone, self.config.cluster_weight > 0
        large = batch.global_views.pixels[1]
        grid = self._grid(large)
        count = max(1, int(self.config.query_keep * grid[0] * grid[1]))
        keep = self._draw(progress, len(batch), grid, count, "unstructured", "large query")
        central = grid[0] // 2 * grid[1] + grid[1] // 2
        if self.config.position_target == "central":  # it has to be among them
            keep = kept_with(keep, central)
        keep = keep.to(large.device)
        tokens = backbone.visible_tokens(large, keep, positions=positions)
        found = [
            Queries.tracked(
                batch,
                Views(batch.global_views.pixels[1:], batch.global_views.crops[1:]),
                tokens[:, backbone.num_prefix :],
                tokens[:, 0] if backbone.has_class_token else None,
                grids=(self.side, grid),
                keep=keep,
                central=0,
            )
        ]
        if (local := batch.local_views) is not None:
            small: Tokens = backbone(local.pixels.flatten(0, 1), positions=positions)
            rows, columns = small.grid
            found.append(
                Queries.tracked(
                    batch,
                    local,
                    small.patches.flatten(1, 2),
                    small.cls,
                    grids=(self.side, small.grid),
                    keep=None,
                    central=rows // 2 * columns + columns // 2,
                )
            )
        return found

    def pictures(self, batch: ViewBatch, progress: Progress) -> PictureRows:
        """The paper's figure 5: where patches of a small view are placed, with all, some and none of the reference visible."""
        if self.config.position_mode == "single" or self.config.position_target == "box":
            return {}
        if self.student.locate is None or batch.local_views is None:
            return {}
        backbone, grid = self.student.backbone, (self.side, self.side)
        reference, small = batch.global_views.pixels[0], batch.local_views.pixels[0]
        tokens: Tokens = backbone(small, positions=self.config.cluster_weight > 0)
        query = tokens.patches.flatten(1, 2)
        boxes = relative_box(batch.global_views.crops[0], batch.local_views.crops[0])[0].cpu()
        shown = as_bytes(reference, backbone.mean, backbone.std)
        size = [shown.shape[-2], shown.shape[-1]]
        rows = {"query": resize(as_bytes(small, backbone.mean, backbone.std), size, antialias=True)}
        ratios = (0.0, 0.8, 1.0) if self._num_visible else (1.0,)
        for ratio in ratios:
            count = int((1 - ratio) * self.side**2 + 1e-9)
            index = self._draw(progress, len(batch), grid, count, self.config.mask_shape, "picture").to(small.device)
            _, visible = self._reference(reference, index)
            placed = self.student.locate(query, visible).argmax(dim=-1).cpu()
            is_visible = torch.zeros(len(batch), self.side**2, dtype=torch.bool).scatter_(1, index.cpu(), True)
            title = {0.0: "all visible", 1.0: "nothing visible"}.get(ratio, f"{ratio:.0%} hidden")
            rows[title] = located(shown, is_visible.view(-1, *grid), placed, boxes)
        return {"locations": rows}

    # Terms

    def _position(self, queries: list[Queries], visible: Tensor, stats: dict[str, Tensor]) -> Tensor:
        """Eq. 1: each query patch that the reference holds is classified by its place there."""
        assert self.student.locate is not None
        losses, hits, counts = [], [], []
        for query in queries:
            memory = visible.repeat(len(query.tokens) // len(visible), 1, 1)
            found = self.student.locate(query.tokens, memory).float()
            if self.config.position_target == "box":
                losses.append((box_error(found, query.box) * query.has_box).sum())
                counts.append(query.has_box.sum())
                continue
            index, valid = query.index, query.valid
            if self.config.position_target == "central":
                at = slice(query.central, query.central + 1)
                found, index, valid = found[:, at], index[:, at], valid[:, at]
            losses.append(F.cross_entropy(found[valid], index[valid], reduction="sum"))
            hits.append((found[valid].argmax(dim=-1) == index[valid]).sum())
            counts.append(valid.sum())
        total = torch.stack(counts).sum()
        if hits:
            stats["position_accuracy"] = torch.stack(hits).sum() / total.clamp_min(1)
        return torch.stack(losses).sum() / count_per_process(total)

    def _cluster(
        self, queries: list[Queries], target: Tokens, progress: Progress, stats: dict[str, Tensor]
    ) -> tuple[Tensor, Tensor]:
        """Eq. 2 and the mean-entropy maximisation."""
        images, level = target.patches.shape[0], self.config.cluster_level
        wanted = self._targets(self._level(target.patches.flatten(1, 2), target.cls), progress)
        log_p, row, valid = [], [], []
        for query in queries:
            rows = self._level(query.tokens, query.cls)
            log_p.append(F.log_softmax(self.student.head(rows).float() / self.config.student_temperature, dim=-1))
            image = torch.arange(len(query.tokens), device=rows.device) % images
            if level == "patch":
                row.append((image[:, None] * self.side**2 + query.index).flatten())
                valid.append(query.valid.flatten())
            else:
                row.append(image)
                valid.append(torch.ones_like(image, dtype=torch.bool))
        scores, at, counts = torch.cat(log_p), torch.cat(row), torch.cat(valid)
        entropy = -(wanted[at[counts]] * scores[counts]).sum() / count_per_process(counts.sum())
        mean = all_sum_with_gradient(scores.exp().sum(dim=0)) / (len(scores) * world_size())
        with torch.no_grad():
            stats["prediction_entropy"] = -torch.special.xlogy(mean, mean).sum()
            stats["target_confidence"] = wanted.amax(dim=-1).mean()
            stats["used_prototypes"] = (
                (torch.bincount(scores.argmax(dim=-1), minlength=scores.shape[1]) > 0).sum().float()
            )
            stats["entropy_patch"] = -torch.special.xlogy(wanted, wanted).sum(dim=-1).mean()
        return entropy, volume(mean) - math.log(len(mean))

    def _level(self, patches: Tensor, cls: Tensor | None) -> Tensor:
        """Rows that are clustered: patches [N * Q, D], class tokens or means [N, D]."""
        if self.config.cluster_level == "patch":
            return patches.flatten(0, 1)
        if self.config.cluster_level == "image_gap":
            return patches.mean(dim=1)
        assert cls is not None
        return cls

    @torch.no_grad()
    def _targets(self, rows: Tensor, progress: Progress) -> Tensor:
        """The teacher's assignments of the reference's rows, sharpened and balanced over all of them, float32."""
        sharp: Tensor = (self.teacher.network.head(rows).float() / self.upkeep.temperature(progress)).log_softmax(
            dim=-1
        )
        if not self.config.sinkhorn:
            return sharp.exp()
        balanced: Tensor = sinkhorn(sharp, temperature=1.0, iterations=self.config.sinkhorn_iterations)
        return balanced
