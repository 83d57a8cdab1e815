# SPDX-License-Identifier: Apache-2.0
"""UDI: self-distillation with a second class token that keeps several levels of semantics (Su and Ji, 2024)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from rekindle.core.errors import RequestError
from rekindle.core.options import Options
from rekindle.core.progress import Progress
from rekindle.methods.base import LossBreakdown, Method, MicroBatch
from rekindle.methods.papers import udi as udi_paper
from rekindle.methods.shared.distillation import Distillation, HeadPair, new_centres, new_head
from rekindle.methods.shared.distillation_options import CentredOptions
from rekindle.methods.shared.parts import gradient_in_advance
from rekindle.methods.shared.teacher import EmaTeacher
from rekindle.networks.backbone import Backbone
from rekindle.networks.parts.heads import DinoHead
from rekindle.networks.parts.sparse_read import SparseRead, one_hot_rows
from rekindle.networks.tokens import Tokens
from rekindle.objectives.pairs import Pairs, count_per_part, cross_view_pairs, own_target_pairs
from rekindle.objectives.prototypes import Compared, TargetRows
from rekindle.views.batch import Crops, ViewBatch
from rekindle.views.geometry import bilinear_rows, patch_centres, places_in
from rekindle.views.windows import check_windows, sample_windows

LEVELS = ("cls", "cls+", "patch")


class UdiOptions(CentredOptions):
    """Options of UDI; defaults as continual pre-training uses them (GLARE, section 8.3 of the specification)."""

    mixture: float = Field(0.5, ge=0, le=1)
    """Weight alpha of the patches' mean in the target of the second class token."""
    window: int = Field(3, ge=1)
    """Side, in patches, of the windows of a large view; one patch of each is sampled."""
    local_window: int = Field(2, ge=1)
    """The same for small views."""


class UdiStudent(nn.Module):
    """What the student trains and the teacher averages: backbone, head, and the module that reads sampled places."""

    def __init__(self, backbone: Backbone, head: DinoHead, read: SparseRead) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = head
        self.read = read


@dataclass(frozen=True)
class TeacherRows:
    """The teacher's unit rows of sampled places.

    Attributes:
        rows: [2B, M, C], M = num_large + num_local * m: in each large view, the places of the other large view and of each
            small one.
        valid: [2B, M], False where the view does not hold the place.
        num_large: n, places of a large view.
        num_local: small views.
    """

    rows: Tensor
    valid: Tensor
    num_large: int
    num_local: int

    def of_partner(self) -> tuple[Tensor, Tensor]:
        """Targets [R, C] of the places that the large views sampled, and which of those [2B * n] they are (indices)."""
        n = self.num_large
        rows, valid = (
            t[:, :n].reshape(2, -1, n, t.shape[-1]).flip(0).flatten(0, 2) for t in (self.rows, self.valid[..., None])
        )
        used = valid[:, 0].nonzero()[:, 0]
        return rows[used], used

    def of_small(self) -> Tensor:
        """Rows [R, C] of the places that small views sampled, as far as a large view holds them."""
        rows: Tensor = self.rows[:, self.num_large :][self.valid[:, self.num_large :]]
        return rows

    def by_view(self) -> list[tuple[Tensor, Tensor]]:
        """(rows, valid) of each view other than the teacher's own: the other large one, then the small ones."""
        n = self.num_large
        groups = [(self.rows[:, :n], self.valid[:, :n])]
        if self.num_local:
            groups.extend(
                zip(
                    self.rows[:, n:].chunk(self.num_local, dim=1),
                    self.valid[:, n:].chunk(self.num_local, dim=1),
                    strict=True,
                )
            )
        return groups


@dataclass(frozen=True)
class Seen:
    """What a micro-batch is before any loss.

    Attributes:
        batch: its views, and progress.
        index: [2, B, n] patches that the large views sample.
        there: what the teacher makes of the sampled places.
        rows: its unit rows that become targets, by level.
    """

    batch: ViewBatch
    progress: Progress
    index: Tensor
    there: TeacherRows
    rows: Mapping[str, Tensor]


class Udi(Method):
    """Unsqueezed distillation: DINO, a second class token that also matches the other view's patches, and sampled patches.

    L = (L_cls + L_cls+ + L_patch) / 3. As in the authors' code, both large views of an image sample the same patches of their
    grids and all small views the same, there is one head, and the centre of the patches is the mean over all places that are
    read, those of small views among them. The second class token is the first register; where the backbone is frozen it is, too.
    The centre of cls+ follows the mixed targets. Places of a view that the other view does not hold are left out of every mean.
    Deviations: crops and colour changes of GLARE's recipe, and true patch centres (the code's are those of a grid from corner to
    corner of the crop); a view of which the other holds no place has the class token alone as target of cls+ (the code halves its
    logits, which its shifted crops never meet).
    """

    Config = UdiOptions
    STATED = udi_paper.STATED
    upkeep: Distillation
    PAPER: ClassVar[Mapping[str, object]] = {
        "optim.lr_per_256": 5e-4,
        "optim.warmup_epochs": 10.0,
        "optim.weight_decay": 0.04,
        "optim.final_weight_decay": 0.1,
        "views.num_local": 6,
        "views.overlap": "shift",
        "views.blur_p": (0.425, 0.425, 0.425),  # half of the views at 0.75, the others at 0.1
        "views.solarize_p": (0.1, 0.1, 0.1),
        "udi.num_prototypes": 65536,
    }

    @classmethod
    def check_grids(cls, config: Options, large: int, small: int | None) -> None:
        """Windows fit into their views."""
        assert isinstance(config, UdiOptions)
        check_windows("udi", config.window, config.local_window, large, small)

    def __init__(self, config: UdiOptions, backbone: Backbone) -> None:
        super().__init__()
        self.config = config
        if not (backbone.has_class_token and backbone.num_registers):
            missing = "class token" if not backbone.has_class_token else "second class token"
            raise RequestError(
                f"UDI trains two class tokens, and this backbone has no {missing}; start from a UDI checkpoint, or add "
                "a fresh second one with --network.add-register true"
                + ("" if backbone.has_class_token else " to a backbone with a class token")
            )
        read = SparseRead(backbone.width, backbone.num_heads)
        if backbone.patch_norm is not None:  # the norm that a UDI checkpoint brought for its patches
            read.norm_in.load_state_dict(backbone.patch_norm.state_dict())
        self.student = UdiStudent(backbone, new_head(config, backbone.width), read)
        self.teacher = EmaTeacher(self.student)
        self.centres = new_centres(LEVELS, config)
        self.upkeep = Distillation(config, self.student, self.teacher, self.centres)

    def loss(self, batch: ViewBatch, progress: Progress) -> LossBreakdown:
        """Return (L_cls + L_cls+ + L_patch) / 3.

        Each equals the mean of `objectives.plain.row_cross_entropy`, over pairs of views and images or over sampled places, to
        targets that are `objectives.plain.centred_softmax` of the teacher's logits, mixed for L_cls+.
        """
        return self.only_part(batch, progress)

    def parts(self, micro_batches: Iterable[MicroBatch]) -> Iterator[Callable[[], LossBreakdown]]:
        """The teacher reads its places in all views of the step, so that the mean over sampled places is that of the step."""
        seen = [self._see(batch, progress) for batch, progress in micro_batches]
        count = count_per_part(
            [own.there.valid.new_tensor(len(own.there.of_partner()[1]), dtype=torch.float32) for own in seen]
        )
        for own in seen:
            yield partial(self._part, own, count)

    @torch.no_grad()
    def _see(self, batch: ViewBatch, progress: Progress) -> Seen:
        """What the teacher makes of the large views; centres take note of its rows."""
        large, heads, teacher = (
            batch.global_views.pixels.flatten(0, 1),
            self.upkeep.head_pair(progress),
            self.teacher.network,
        )
        patch = self.student.backbone.patch_size
        index, points = self._sample(batch, (large.shape[-2] // patch, large.shape[-1] // patch), progress)
        target: Tokens = teacher.backbone(large, norm=False)
        there = self._read_by_teacher(batch, target, points, index.shape[-1], heads)
        cls = heads.project(teacher.backbone.vit.norm(target.class_token))
        rows = {"cls": cls, "cls+": mixed_rows(cls, there, self.config.mixture), "patch": there.of_partner()[0]}
        for level, own in rows.items():
            observed = torch.cat([own, there.of_small()]) if level == "patch" else own
            heads.observe(observed, self.upkeep.centre(level))
        return Seen(batch, progress, index, there, rows)

    def _part(self, seen: Seen, count: Tensor) -> LossBreakdown:
        """A micro-batch's part of the loss. Args: count, its share of the sampled places that the mean of L_patch runs over."""
        batch, backbone, heads = seen.batch, self.student.backbone, self.upkeep.head_pair(seen.progress)
        large = batch.global_views.pixels.flatten(0, 1)
        cls, plus, patch = (heads.centred(seen.rows[level], self.upkeep.centre(level)) for level in LEVELS)

        parts = self._small_part(batch, heads, cls, plus)
        tokens: Tokens = backbone(large, norm=False)
        prefix = backbone.vit.norm(torch.stack([tokens.class_token, tokens.registers[:, 0]], dim=1))
        compared = self._class_tokens(prefix, range(2), batch, cls, plus)
        sampling = one_hot_rows(seen.index.flatten(0, 1), tokens.grid[0] * tokens.grid[1], prefix.dtype)
        own = self.student.read(tokens.patches.flatten(1, 2), sampling).flatten(0, 1)[seen.there.of_partner()[1]]
        pairs = own_target_pairs(len(own), device=own.device, count=count)
        compared.append(Compared(own, patch, {"patch": pairs}, {"patch": 1 / 3}))
        parts.append(heads.losses(compared))

        inside = seen.there.valid.float().mean()
        stats = self.upkeep.stats(seen.progress, dict(zip(LEVELS, (cls, plus, patch), strict=True)), inside)
        return LossBreakdown.join(parts, stats | {"sampled_inside": inside})

    def _sample(self, batch: ViewBatch, grid: tuple[int, int], progress: Progress) -> tuple[Tensor, list[Tensor]]:
        """Patches that the large views sample [2, B, n], and points (y, x) of the image that all views sample [V, B, ., 2].

        Views of one size sample the same patches: one draw for an image.
        """
        config, device, images = self.config, batch.global_views.pixels.device, len(batch)
        index = sample_windows(progress, images, 1, grid, config.window).expand(2, -1, -1)
        points = [_points(batch.global_views.crops, grid, index)]
        if batch.local_views is not None:
            patch = self.student.backbone.patch_size
            size = batch.local_views.pixels.shape
            small = size[-2] // patch, size[-1] // patch
            local = sample_windows(progress, images, 1, small, config.local_window, purpose="small windows")
            points.append(_points(batch.local_views.crops, small, local.expand(batch.num_local, -1, -1)))
        return index.to(device), points

    def _read_by_teacher(
        self, batch: ViewBatch, target: Tokens, points: list[Tensor], num_large: int, heads: HeadPair
    ) -> TeacherRows:
        """What the teacher makes, in each large view, of the places that every other view samples."""
        images, crops = len(batch), batch.global_views.crops
        wanted = [points[0].flip(0)[:, :, None]]  # [2, B, 1, n, 2]: each large view is asked for the other's places
        if len(points) == 2:
            wanted.append(points[1].transpose(0, 1)[None].expand(2, -1, -1, -1, -1))  # [2, B, num_local, m, 2]
        places = [places_in(crops, w.flatten(2, 3)) for w in wanted]
        maps = (
            bilinear_rows(torch.cat(places, dim=2), target.grid).flatten(0, 1).to(target.patches.device)
        )  # [2B, M, P]
        rows = heads.project(self.teacher.network.read(target.patches.flatten(1, 2), maps).flatten(0, 1))
        return TeacherRows(rows.view(2 * images, -1, rows.shape[-1]), maps.sum(dim=-1) > 0, num_large, batch.num_local)

    def _class_tokens(
        self, prefix: Tensor, views: range, batch: ViewBatch, cls: TargetRows, plus: TargetRows
    ) -> list[Compared]:
        """L_cls and L_cls+ of both class tokens [len(views) * B, 2, D] of some views."""
        images, num_views = len(batch), 2 + batch.num_local
        pairs = cross_view_pairs(
            images, student_views=views, num_student_views=num_views, num_teacher_views=2, device=prefix.device
        )
        # The target of cls+ depends on the student's view too: row (teacher's view, image, place of that view among the others).
        view = torch.tensor(list(views), device=prefix.device)[pairs.student // images]
        place = (view - 1).clamp_min(0)
        mixed = Pairs(pairs.student, pairs.teacher * (num_views - 1) + place, pairs.weight)
        return [
            Compared(prefix[:, 0], cls, {"cls": pairs}, {"cls": 1 / 3}),
            Compared(prefix[:, 1], plus, {"cls+": mixed}, {"cls+": 1 / 3}),
        ]

    def _small_part(self, batch: ViewBatch, heads: HeadPair, cls: TargetRows, plus: TargetRows) -> list[LossBreakdown]:
        """What the small crops add to L_cls and L_cls+, with its gradient in advance."""
        if batch.local_views is None:
            return []
        backbone, pixels = self.student.backbone, batch.local_views.pixels.flatten(0, 1)

        def part() -> LossBreakdown:
            views = range(2, 2 + batch.num_local)
            compared = self._class_tokens(backbone.prefix_tokens(pixels), views, batch, cls, plus)
            return heads.losses(compared)

        return [gradient_in_advance([part], [*backbone.parameters(), *heads.inputs])]


def mixed_rows(cls: Tensor, there: TeacherRows, mixture: float) -> Tensor:
    """Targets of cls+ before centre and temperature: mixture * mean of the patches + (1 - mixture) * class token.

    Mixed in logit space, in which the prototypes are linear. Args: cls [2B, C]. Returns: [2B * (1 + num_local), C].
    """
    mixed = []
    for rows, valid in there.by_view():
        weight = valid.to(rows.dtype)[..., None]
        mean = (rows * weight).sum(dim=1) / weight.sum(dim=1).clamp_min(1)
        patches = mixture * valid.any(dim=1, keepdim=True).to(rows.dtype)
        mixed.append(patches * mean + (1 - patches) * cls)
    return torch.stack(mixed, dim=1).flatten(0, 1)


def _points(crops: Crops, grid: tuple[int, int], index: Tensor) -> Tensor:
    """Places (y, x) in the image of patches [V, B, M] of views: [V, B, M, 2]."""
    centres_ = patch_centres(crops, grid)
    return centres_.gather(2, index.to(centres_.device)[..., None].expand(-1, -1, -1, 2))
