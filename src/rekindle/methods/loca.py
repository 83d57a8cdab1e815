# SPDX-License-Identifier: Apache-2.0
"""LOCA: location-aware pre-training, where a query lies in its reference and what cluster it shows (Caron et al., 2024)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.transforms.v2.functional import resize

from rekindle.core.distributed import all_sum, all_sum_with_gradient, world_size
from rekindle.core.errors import RequestError
from rekindle.core.options import Options
from rekindle.core.progress import Progress
from rekindle.methods.base import LossBreakdown, Method, MicroBatch, PictureRows
from rekindle.methods.loca_matching import Queries, kept_with
from rekindle.methods.loca_options import LocaOptions
from rekindle.methods.papers import loca as loca_paper
from rekindle.methods.shared.distillation import Distillation, new_head
from rekindle.methods.shared.teacher import EmaTeacher
from rekindle.methods.shared.whole_step import Joined, Part, Stage, compared_in_parts
from rekindle.networks.backbone import Backbone
from rekindle.networks.parts.heads import DinoHead
from rekindle.networks.parts.locator import Locator
from rekindle.networks.tokens import Tokens
from rekindle.objectives.assignment import sinkhorn_shift
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
    Deviations: the teacher runs in evaluation mode; brightness is multiplied, as everywhere here. A backbone's class token stays
    in its sequence. Targets are balanced, predictions averaged, and valid patches counted over the images of the step, in all
    processes.
    """

    Config = LocaOptions
    STATED = loca_paper.STATED
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
        elif config.position_weight:
            is_box = config.position_target == "box"
            locate = Locator(backbone.width, backbone.num_heads, self.side**2, box=is_box)
            if not self._num_visible:
                locate.stop_reading()
        # queries have positions beside clusters only, and then a reference has them that the student reads
        is_blind = config.position_mode == "single" or not (config.cluster_weight or self._num_visible)
        if is_blind and backbone.vit.pos_embed is not None:
            backbone.vit.pos_embed.requires_grad_(False)  # nobody sees it
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
        return self.only_part(batch, progress)

    def parts(self, micro_batches: Iterable[MicroBatch]) -> Iterator[Callable[[], LossBreakdown]]:
        """The teacher sees all references of the step, and its assignments are balanced together, before a query is encoded."""
        if self.config.position_mode == "single":
            for batch, progress in micro_batches:
                yield partial(self._single, batch, progress)
            return
        parts = [self._see(batch, progress) for batch, progress in micro_batches]
        encode = partial(self._encode, self._balance(parts))
        stage = Stage("queries", encode, partial(self._compare, parts[0].progress))
        yield from compared_in_parts(parts, [stage], self.trained())

    def _single(self, batch: ViewBatch, progress: Progress) -> LossBreakdown:
        """Every patch of a view is classified by its own place; keys and values are the visible patches alone."""
        assert self.student.locate is not None
        pixels, index = batch.global_views.pixels[0], self._visible_index(batch, progress)
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

    def _visible_index(self, batch: ViewBatch, progress: Progress) -> Tensor:
        """Patches [B, L] of the references that may be read. Raises: RequestError for references of another grid."""
        reference = batch.global_views.pixels[0]
        grid = self._grid(reference)
        if grid != (self.side, self.side):
            raise RequestError(
                f"the reference view has {grid[0]} x {grid[1]} patches and the classifier {self.side} x {self.side} places; "
                f"set --loca.reference-grid {grid[0]}, or leave it out"
            )
        shape = self.config.mask_shape
        index = self._draw(progress, len(batch), grid, self._num_visible, shape, "visible reference")
        return index.to(reference.device)

    @torch.no_grad()
    def _see(self, batch: ViewBatch, progress: Progress) -> Part:
        """Which patches of the reference may be read; with clusters, the teacher's tokens of all, and its rows to be balanced."""
        known = {"index": self._visible_index(batch, progress)[None]}
        if self.config.cluster_weight:
            teacher = self.teacher.network
            target: Tokens = teacher.backbone(batch.global_views.pixels[0])
            known["patches"] = target.patches.flatten(1, 2)[None]
            rows = teacher.head.project(self._level(known["patches"][0], target.cls))
            known["rows"] = rows.view(1, len(batch), -1, rows.shape[-1])
        return Part(batch, progress, known)

    def _draw(
        self, progress: Progress, rows: int, grid: tuple[int, int], count: int, shape: VisibleShape, purpose: str
    ) -> Tensor:
        return draw_kept(progress, rows, grid, count, shape=shape, shared=self.config.shared_masks, purpose=purpose)

    @staticmethod
    def _reference_tokens(patches: Tensor, index: Tensor) -> Tensor:
        """Some of the tokens [B, P, D] of each reference."""
        return patches.gather(1, index[..., None].expand(-1, -1, patches.shape[-1]))

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
            known = {"index": index[None]}
            if self.config.cluster_weight:
                known["patches"] = self.teacher.network.backbone(reference).patches.flatten(1, 2)[None]
            visible = self._visible(Part(batch, progress, known))
            placed = self.student.locate(query, visible).argmax(dim=-1).cpu()
            is_visible = torch.zeros(len(batch), self.side**2, dtype=torch.bool).scatter_(1, index.cpu(), True)
            title = {0.0: "all visible", 1.0: "nothing visible"}.get(ratio, f"{ratio:.0%} hidden")
            rows[title] = located(shown, is_visible.view(-1, *grid), placed, boxes)
        return {"locations": rows}

    # Terms

    def _encode(self, shift: Tensor | None, part: Part) -> Joined:
        """Sums over each image's query patches: of the errors, of the distributions, and of how many there are; [1, B, ...]."""
        queries, images = self._queries(part.batch, part.progress), len(part.batch)
        visible = self._visible(part) if self.student.locate is not None else None
        wanted = self._targets(part.known["rows"], part.progress, shift) if self.config.cluster_weight else None
        found: dict[str, Tensor] = {}
        for query in queries:
            new = {"valid": query.valid.float(), "queries": torch.ones_like(query.valid, dtype=torch.float32)}
            sums = {name: _per_image(value, images) for name, value in new.items()}
            if visible is not None:
                sums |= {name: _per_image(value, images) for name, value in self._position(query, visible).items()}
            if wanted is not None:
                sums |= self._cluster(query, wanted)
            found = {name: found[name] + value if name in found else value for name, value in sums.items()}
        if wanted is not None:
            found["confidence"] = wanted.amax(dim=-1).mean(dim=-1)[None]
            found["target_entropy"] = -torch.special.xlogy(wanted, wanted).sum(dim=-1).mean(dim=-1)[None]
        return found

    def _visible(self, part: Part) -> Tensor:
        """Tokens of the reference that queries may read, [B, L, D]: the teacher's (late dropping).

        Without clusters no target is wanted: the student encodes the visible patches alone, with gradient (early dropping).
        """
        index = part.known["index"][0]
        if self.config.cluster_weight:
            return self._reference_tokens(part.known["patches"][0], index)
        backbone = self.student.backbone
        return backbone.visible_tokens(part.batch.global_views.pixels[0], index)[:, backbone.num_prefix :]

    def _position(self, query: Queries, visible: Tensor) -> dict[str, Tensor]:
        """Eq. 1: each query patch that the reference holds is classified by its place there; errors, hits, whether it counts."""
        assert self.student.locate is not None
        found = self.student.locate(query.tokens, visible.repeat(len(query.tokens) // len(visible), 1, 1)).float()
        if self.config.position_target == "box":
            return {"position": box_error(found, query.box) * query.has_box, "located": query.has_box.float()}
        index, valid = query.index, query.valid
        if self.config.position_target == "central":
            at = slice(query.central, query.central + 1)
            found, index, valid = found[:, at], index[:, at], valid[:, at]
        error = F.cross_entropy(found.flatten(0, 1), index.clamp_min(0).flatten(), reduction="none").view(valid.shape)
        hits = (found.argmax(dim=-1) == index) & valid
        return {"position": error * valid, "located": valid.float(), "hits": hits.float()}

    def _cluster(self, query: Queries, wanted: Tensor) -> dict[str, Tensor]:
        """Eq. 2, and the sum of the predicted distributions. Args: wanted [B, P, K], or [B, 1, K] of whole images."""
        images, num_prototypes = len(wanted), wanted.shape[-1]
        rows = self._level(query.tokens, query.cls)
        log_p = F.log_softmax(self.student.head(rows).float() / self.config.student_temperature, dim=-1)
        log_p = log_p.view(-1, images, len(rows) // len(query.tokens), num_prototypes)  # [V, B, Q or 1, K]
        counts = torch.ones(log_p.shape[:3], dtype=torch.bool, device=rows.device)
        place = torch.zeros_like(counts, dtype=torch.int64)
        if self.config.cluster_level == "patch":
            counts, place = query.valid.view_as(counts), query.index.view_as(counts)
        view, image, patch = counts.nonzero(as_tuple=True)
        error = -(wanted[image, place[view, image, patch]] * log_p[view, image, patch]).sum(dim=-1)
        sums = {
            "entropy": error.new_zeros(images).index_add(0, image, error),
            "compared": counts.sum(dim=(0, 2)).float(),
            "mass": log_p.exp().sum(dim=(0, 2)),
        }
        with torch.no_grad():
            best = log_p.argmax(dim=-1).transpose(0, 1).flatten(1)
            sums["used"] = torch.zeros_like(sums["mass"]).scatter_add_(
                1, best, torch.ones_like(best, dtype=sums["mass"].dtype)
            )
        return {name: value[None] for name, value in sums.items()}

    def _compare(self, progress: Progress, student: Joined, teacher: Joined) -> LossBreakdown:
        """The terms, from the sums over all images of the step."""
        config, sums = self.config, {name: value.sum(dim=(0, 1)) for name, value in student.items()}
        terms: dict[str, Tensor] = {}
        weights: dict[str, float] = {}
        stats = {"matched": sums["valid"] / sums["queries"]}
        if "position" in sums:
            terms["position"] = sums["position"] / count_per_process(sums["located"])
            weights["position"] = config.position_weight
        if "hits" in sums:
            stats["position_accuracy"] = sums["hits"] / count_per_process(sums["located"])
        if "entropy" in sums:
            count = sums["mass"].detach().sum().round()  # a distribution of each query row
            mean = all_sum_with_gradient(sums["mass"]) / (count * world_size())
            terms |= {"cluster": sums["entropy"] / count_per_process(sums["compared"])}
            terms |= {"memax": volume(mean) - math.log(len(mean))}
            weights |= {"cluster": config.cluster_weight, "memax": config.memax_weight}
            with torch.no_grad():
                stats["prediction_entropy"] = -torch.special.xlogy(mean, mean).sum()
                stats["target_confidence"] = student["confidence"].mean()
                stats["used_prototypes"] = (all_sum(sums["used"]) > 0).sum().float()
                stats["entropy_patch"] = student["target_entropy"].mean()
        return LossBreakdown.weigh(terms, weights, stats | self.upkeep.stats(progress, {}, stats["matched"]))

    def _level(self, patches: Tensor, cls: Tensor | None) -> Tensor:
        """Rows that are clustered: patches [N * Q, D], class tokens or means [N, D]."""
        if self.config.cluster_level == "patch":
            return patches.flatten(0, 1)
        if self.config.cluster_level == "image_gap":
            return patches.mean(dim=1)
        assert cls is not None
        return cls

    @torch.no_grad()
    def _sharp(self, rows: Tensor, progress: Progress) -> Tensor:
        """Logarithm of the teacher's sharpened assignments, [..., K] in float32."""
        logits = (rows @ self.teacher.network.head.prototypes().to(rows.dtype).T).float()
        sharp: Tensor = (logits / self.upkeep.temperature(progress)).log_softmax(dim=-1)
        return sharp

    @torch.no_grad()
    def _balance(self, parts: Sequence[Part]) -> Tensor | None:
        """The shift that balances the teacher's assignments over the references of the step; None where nothing does."""
        if not (self.config.cluster_weight and self.config.sinkhorn):
            return None
        start = self.teacher.network.head.prototypes().new_zeros(self.config.num_prototypes)

        def blocks() -> Iterator[Tensor]:
            for part in parts:
                yield self._sharp(part.known["rows"].flatten(0, 2), part.progress)

        return sinkhorn_shift(blocks, start, self.config.sinkhorn_iterations)

    @torch.no_grad()
    def _targets(self, rows: Tensor, progress: Progress, shift: Tensor | None) -> Tensor:
        """The teacher's assignments of the references' rows [1, B, ., C], balanced if there is a shift: [B, ., K]."""
        sharp = self._sharp(rows[0], progress)
        return sharp.exp() if shift is None else (sharp + shift).softmax(dim=-1)


def _per_image(values: Tensor, images: int) -> Tensor:
    """Sum of values [V * B, ...] over all but the images: [1, B]."""
    return values.reshape(-1, images, values[0].numel()).sum(dim=(0, 2))[None]
