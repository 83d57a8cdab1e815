# SPDX-License-Identifier: Apache-2.0
"""GLARE: global, regional and local consistency for continual pre-training (Ebouky et al., 2025, arXiv:2509.17816)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from rekindle.adapters.attach import adapters_enabled
from rekindle.core.options import Options
from rekindle.core.progress import Progress
from rekindle.core.rng import generator
from rekindle.core.schedules import cosine
from rekindle.methods.base import LossBreakdown, Method
from rekindle.methods.teacher import Centre, EmaTeacher, cancel_gradients, collapse_alarms, teacher_temperature
from rekindle.networks.backbone import Backbone
from rekindle.networks.cross_attention import CrossAttention
from rekindle.networks.heads import DinoHead
from rekindle.networks.tokens import Tokens
from rekindle.objectives.assignment import centred_softmax, sinkhorn
from rekindle.objectives.distillation import (
    cross_view_entropy,
    divergence_from_uniform,
    entropy,
    masked_patch_mean,
    matched_patch_mean,
    region_mean,
    row_cross_entropy,
)
from rekindle.views.batch import ViewBatch, Views
from rekindle.views.distortion import distort, draw_patch_mask
from rekindle.views.geometry import Match, match_patches, region_partner
from rekindle.views.regions import sample_regions

Level = Literal["cls", "patch", "region"]
LEVELS: tuple[Level, ...] = ("cls", "patch", "region")


class GlareOptions(Options):
    """Options of GLARE. [P] stated in the paper, [R] from the code it builds on, [D] decided here; see docs/methods/glare.md."""

    global_weight: float = Field(1.0, ge=0)
    """Weight w_g of L_glob [P]; 0 switches the term off."""
    regional_weight: float = Field(1.0, ge=0)
    """Weight w_r of L_reg [P]; 0 switches the term and its cross-attention off."""
    local_weight: float = Field(1.0, ge=0)
    """Weight w_l of L_loc1 + L_loc2 [P]; 0 switches both off."""

    num_prototypes: int = Field(8192, ge=2)
    """Outputs K of the one head that all levels share [P]."""
    head_hidden: int = Field(2048, ge=1)
    """Width of the head's hidden layers [R]."""
    head_bottleneck: int = Field(256, ge=1)
    """Width before the prototypes [R]."""
    norm_last_layer: bool = False
    """Keep the prototypes' gain at 1 [R: off for ViT-S]."""
    student_temperature: float = Field(0.1, gt=0)
    """Softmax temperature of the student [R]."""
    teacher_temperature: tuple[float, float] = (0.04, 0.07)
    """Softmax temperature of the teacher before and after its warm-up [R]."""
    teacher_temperature_epochs: int = Field(30, ge=0)
    """Epochs of that warm-up [R]; at most 0.3 of the run [D]."""
    momentum: tuple[float, float] = (0.996, 1.0)
    """Weight of the teacher's old value, cosine over the run [R]."""
    balance: Literal["centre", "sinkhorn"] = "centre"
    """How the targets are kept from collapsing: running centre, or Sinkhorn-Knopp over the step's rows."""
    centre_momentum: float = Field(0.9, ge=0, le=1)
    """Weight of a centre's old value [R]."""
    num_centres: Literal[1, 2, 3] = 3
    """3: class, patch and region tokens have a centre each [D]; 2: patch and region share one; 1: all share one."""
    sinkhorn_iterations: int = Field(3, ge=1)
    """Iterations where `balance` is sinkhorn."""
    freeze_last_layer_epochs: int = Field(1, ge=0)
    """Epochs in which the prototypes do not move [R]."""

    distortion: Literal["blur", "mask", "rotate", "noise", "none"] = "blur"
    """What happens to the chosen patches of the student's global views [P: blur]. `none` drops L_loc1 [D]."""
    distortion_shape: Literal["random", "block"] = "random"
    """Which patches are chosen [P: random]."""
    distortion_ratio: Literal["ibot", "fixed"] = "ibot"
    """ibot: none with probability 1/2, else a share drawn from U(0.1, 0.5) [P]; fixed: 30 % of every view."""
    blur_sigma_px: float = Field(5.0, gt=0)
    """Standard deviation of the patch blur, in pixels of the view [D]."""
    blur_sigma_max_px: float | None = Field(None, gt=0)
    """Draw the standard deviation once a step, uniformly from `blur_sigma_px` to this; None: it is constant [D]."""
    blur_scope: Literal["crop", "patch"] = "crop"
    """Blur the whole view and composite [D], or each patch in isolation."""
    student_input: Literal["distorted", "two_pass"] = "distorted"
    """All losses see the distorted view in one pass [D], or L_loc1 alone does and a second pass is clean."""

    correspondence: Literal["containment", "center", "overlap", "nearest"] = "containment"
    """When a patch of one view corresponds to one of the other [D]."""
    correspondence_threshold: float | None = None
    """Share of the smaller patch for `overlap` (0.5), teacher-patch widths for `nearest` (1); unused otherwise."""
    reduction: Literal["mean", "sum"] = "mean"
    """Eqs. 7-9 as averages [D] or as the printed sums."""
    match_reduction: Literal["mean", "sum"] = "mean"
    """Average over the patches C(s) that correspond to a patch [D], or sum."""
    local_crops_in_loc2: bool = False
    """Let small crops take part in L_loc2 [D: no]."""
    symmetric: bool = True
    """Both directions between the two global views [D]; off: the first is the student's, the second the teacher's."""

    num_regions: int | None = Field(None, ge=1)
    """Regions M per view; None: one per attention head [P]."""
    region_min_patches: int = Field(3, ge=1)
    """Smallest side of a region, in patches [D]."""
    region_max_patches: int = Field(7, ge=1)
    """Largest side of a region, in patches [D]."""
    region_start: Literal["attention", "random"] = "attention"
    """Start at the patch that a head of the class token attends to most [P], or anywhere."""
    region_anchor: Literal["top_left", "clip", "center"] = "top_left"
    """Where the start patch lies in the region [D]."""
    attention_source: Literal["teacher", "base"] = "teacher"
    """Whose attention: the teacher's [D], or the base's (adapters off, one more pass)."""
    min_region_patches: int = Field(1, ge=1)
    """Usable patches that a region needs to count [D]."""
    region_target: Literal["within", "eq6", "query_R"] = "within"
    """Reading of eq. 6 [D]: within: teacher's matched patches read the partner region; eq6: they read the region itself;
    query_R: the region's own patches read the partner region."""
    region_source: Literal["teacher", "student"] = "teacher"
    """Whose tokens of the student's view eq6 and query_R use."""
    attention_temperature: float | None = Field(None, gt=0)
    """Scale of the cross-attention's scores; None: 1 / sqrt(D) [D]."""
    attention_init: Literal["identity_value", "meanshift"] = "identity_value"
    """Start of the cross-attention: values pass unchanged [D], or all three maps identity with a tenth of the scale."""
    attention_residual: bool = False
    """Add a skip and a layer norm to the cross-attention [D: no]."""
    attention_prefix: bool = False
    """Let the student's queries also read the class and register tokens [D: patches only]."""
    export: Literal["teacher", "student"] = "teacher"
    """Which network is saved and evaluated [R]."""

    @model_validator(mode="after")
    def _consistent(self) -> GlareOptions:
        if self.region_min_patches > self.region_max_patches:
            raise ValueError(
                f"region_min_patches = {self.region_min_patches} is larger than region_max_patches = "
                f"{self.region_max_patches}; lower the first or raise the second"
            )
        if self.blur_sigma_max_px is not None and self.blur_sigma_max_px < self.blur_sigma_px:
            raise ValueError(
                f"blur_sigma_max_px = {self.blur_sigma_max_px} is smaller than blur_sigma_px = {self.blur_sigma_px}; "
                "raise it, or leave it out for a constant blur"
            )
        if not (self.global_weight or self.regional_weight or self.local_weight):
            raise ValueError("all weights are 0, so there is no loss; give one of them a value above 0")
        return self


class GlareStudent(nn.Module):
    """What the student trains and the teacher averages: backbone (its adapters), head g, cross-attention CA."""

    def __init__(self, backbone: Backbone, head: DinoHead, attention: CrossAttention | None) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = head
        self.attention = attention


class Glare(Method):
    """Consistency of class tokens, of regions and of patches between a student and its momentum teacher (section 4).

    Symbols: e, e' patch tokens of student and teacher; g, g' the shared head; CA, CA' cross-attention; C(s) the teacher
    patches that correspond to the student patch s; R a region of the student's view, R' its partner.

    Deviations, each an option: sums of eqs. 7-9 are averages (`reduction`); one student pass on the distorted view
    (`student_input`); eq. 6 read with the teacher's own region (`region_target`); both directions between the global
    views (`symmetric`). A micro-batch is normalised by its own counts of matched patches and regions.
    """

    Config = GlareOptions

    def __init__(self, config: GlareOptions, backbone: Backbone) -> None:
        super().__init__()
        self.config = config
        head = DinoHead(
            backbone.width,
            config.num_prototypes,
            hidden=config.head_hidden,
            bottleneck=config.head_bottleneck,
            norm_last_layer=config.norm_last_layer,
        )
        attention = None
        if config.regional_weight:
            attention = CrossAttention(
                backbone.width,
                temperature=config.attention_temperature,
                init=config.attention_init,
                residual=config.attention_residual,
            )
        self.student = GlareStudent(backbone, head, attention)
        self.teacher = EmaTeacher(self.student)
        self.mask_token = nn.Parameter(torch.zeros(backbone.width)) if config.distortion == "mask" else None
        self.centres = nn.ModuleDict(
            {level: Centre(config.num_prototypes, config.centre_momentum) for level in LEVELS[: config.num_centres]}
        )

    def loss(self, batch: ViewBatch, progress: Progress) -> LossBreakdown:
        """Weighted sum of the terms that are switched on (eq. 10)."""
        config, clean = self.config, batch.global_views.pixels.flatten(0, 1)  # [2B, 3, S, S], views first
        with torch.no_grad():
            target: Tokens = self.teacher.network.backbone(clean, cls_attention=self._needs_teacher_attention)
        hit = self._draw_hit(batch, target.grid, progress)  # [2B, gh, gw]
        distorted = self._student_pass(clean, hit, progress)
        large = self.student.backbone(clean) if config.student_input == "two_pass" else distorted
        small = self._local_pass(batch)
        match = self._match(batch.global_views, batch.global_views, target.grid, self._partner(len(batch)))  # C(s)

        terms: dict[str, Tensor] = {}
        stats: dict[str, Tensor] = {"matched": match.valid.float().mean()}
        if config.global_weight:
            terms["glob"] = self._global(large, small, target, progress, stats)  # eq. 4
        if config.regional_weight:
            terms["reg"] = self._regional(clean, large, target, match, progress, stats)  # eqs. 5-7
        if config.local_weight:
            probs = self._patch_targets(target, progress, stats)  # [2B, N, K]
            same = self._directions(hit.flatten(1))
            matched = self._directions(match.valid)
            rows = PatchRows(distorted, large, same, matched, self.student.head)
            if config.distortion != "none":
                terms["loc1"] = self._same_patch(rows, probs)  # eq. 8
            terms["loc2"] = self._matched_patch(rows, probs, match, batch, small)  # eq. 9
        stats["momentum"] = clean.new_tensor(cosine(progress, *config.momentum))
        weights = {"glob": config.global_weight, "reg": config.regional_weight}
        return LossBreakdown.weigh(terms, {n: weights.get(n, config.local_weight) for n in terms}, stats)  # eq. 10

    # Passes and correspondences

    @property
    def _needs_teacher_attention(self) -> bool:
        regional = self.config.regional_weight > 0 and self.config.region_start == "attention"
        return regional and self.config.attention_source == "teacher"

    def _draw_hit(self, batch: ViewBatch, grid: tuple[int, int], progress: Progress) -> Tensor:
        """Patches to distort, [2B, gh, gw]."""
        config, device = self.config, batch.global_views.pixels.device
        if config.distortion == "none":
            return torch.zeros(2 * len(batch), *grid, dtype=torch.bool, device=device)
        mask = draw_patch_mask(
            progress, len(batch), 2, grid, ratio_mode=config.distortion_ratio, shape=config.distortion_shape
        )
        return mask.flatten(0, 1).to(device)

    def _student_pass(self, clean: Tensor, hit: Tensor, progress: Progress) -> Tokens:
        """The student on the distorted global views X_m."""
        config = self.config
        pixels = distort(
            clean,
            hit,
            self.student.backbone.patch_size,
            kind=config.distortion,
            sigma=self._blur_sigma(progress),
            scope=config.blur_scope,
            progress=progress,
            num_views=2,
        )
        hidden = None if self.mask_token is None else hit
        tokens: Tokens = self.student.backbone(pixels, patch_mask=hidden, mask_token=self.mask_token)
        return tokens

    def _blur_sigma(self, progress: Progress) -> float:
        low, high = self.config.blur_sigma_px, self.config.blur_sigma_max_px
        if high is None:
            return low
        draw = torch.rand((), generator=generator(progress.seed, "blur sigma", progress.step))
        return low + (high - low) * float(draw)

    def _local_pass(self, batch: ViewBatch) -> Tokens | None:
        """The student on the small crops, where a term uses them."""
        used = self.config.global_weight > 0 or (self.config.local_weight > 0 and self.config.local_crops_in_loc2)
        if batch.local_views is None or not used:
            return None
        tokens: Tokens = self.student.backbone(batch.local_views.pixels.flatten(0, 1))
        return tokens

    @staticmethod
    def _partner(batch: int) -> Tensor:
        """Row of the other global view of the same image, for each of the 2B rows."""
        return torch.arange(2 * batch).roll(batch)

    def _match(self, student: Views, teacher: Views, teacher_grid: tuple[int, int], rows: Tensor) -> Match:
        """C(s) between the student's views and the teacher's `rows`, [V*B, Ns, Nt]."""
        patch = self.student.backbone.patch_size
        grid = (student.pixels.shape[-2] // patch, student.pixels.shape[-1] // patch)
        crops = teacher.crops.flatten()[rows.to(teacher.crops.top.device)]
        return match_patches(
            student.crops.flatten(),
            crops,
            grid,
            teacher_grid,
            mode=self.config.correspondence,
            threshold=self.config.correspondence_threshold,
        )

    def _directions(self, mask: Tensor) -> Tensor:
        """A mask of 2B rows; where one direction is asked for, without the rows of the second view."""
        if self.config.symmetric:
            return mask
        first = torch.arange(mask.shape[0], device=mask.device) < mask.shape[0] // 2
        return mask & first.view(-1, *[1] * (mask.ndim - 1))

    def _num_views(self, rows: int) -> int:
        return rows if self.config.symmetric else rows // 2

    # Targets

    def _targets(self, level: Level, logits: Tensor, progress: Progress, stats: dict[str, Tensor]) -> Tensor:
        """Teacher logits [..., K] -> target distributions; takes note of the rows for the level's centre."""
        config = self.config
        temperature = teacher_temperature(progress, config.teacher_temperature, config.teacher_temperature_epochs)
        if config.balance == "sinkhorn":
            probs = sinkhorn(logits.flatten(0, -2), temperature=temperature, iterations=config.sinkhorn_iterations)
            probs = probs.view(logits.shape)
        else:
            centre = self._centre(level)
            centre.observe(logits)
            probs = centred_softmax(logits, centre.value, temperature=temperature)
        stats["teacher_temperature"] = logits.new_tensor(temperature)
        stats[f"entropy_{level}"] = entropy(probs)
        stats[f"divergence_{level}"] = divergence_from_uniform(probs)
        return probs

    def _centre(self, level: Level) -> Centre:
        centre = self.centres[LEVELS[min(LEVELS.index(level), self.config.num_centres - 1)]]
        assert isinstance(centre, Centre)
        return centre

    @torch.no_grad()
    def _patch_targets(self, target: Tokens, progress: Progress, stats: dict[str, Tensor]) -> Tensor:
        return self._targets("patch", self.teacher.network.head(target.patches.flatten(1, 2)), progress, stats)

    # Terms, in the order of the paper

    def _global(
        self, large: Tokens, small: Tokens | None, target: Tokens, progress: Progress, stats: dict[str, Tensor]
    ) -> Tensor:
        """Eq. 4 with multi-crop: class tokens of all views against the teacher's of the other global view."""
        batch = large.class_token.shape[0] // 2
        cls = [large.class_token] if small is None else [large.class_token, small.class_token]
        logits = self.student.head(torch.cat(cls)).unflatten(0, (-1, batch))
        with torch.no_grad():
            target_logits = self.teacher.network.head(target.class_token).unflatten(0, (2, batch))
            probs = self._targets("cls", target_logits, progress, stats)
        return cross_view_entropy(logits, probs, temperature=self.config.student_temperature)

    def _regional(
        self, clean: Tensor, large: Tokens, target: Tokens, match: Match, progress: Progress, stats: dict[str, Tensor]
    ) -> Tensor:
        """Eqs. 5-7: patches of a region R read their whole view; their partners read R' alone."""
        config = self.config
        assert self.student.attention is not None and self.teacher.network.attention is not None
        region = self._sample_regions(clean, target, progress)  # [2B, M, N]
        partner = self._partner(large.patches.shape[0] // 2).to(clean.device)
        region_there = region_partner(region, match.relation)  # R', [2B, M, N']

        longest = min(config.region_max_patches**2, region.shape[-1])
        index = region.float().topk(longest, dim=-1).indices  # patches of R first, then padding; [2B, M, L]
        nearest = take_patches(match.nearest[..., None], index).squeeze(-1)
        usable = region.gather(-1, index) & take_patches(match.valid[..., None], index).squeeze(-1)
        usable = self._directions(usable & region_there.gather(-1, nearest))
        valid = usable.sum(dim=-1) >= config.min_region_patches  # [2B, M]
        usable = usable & valid[..., None]
        stats["regions"] = valid.float().sum() / self._num_views(valid.shape[0])

        student_tokens = large.patches.flatten(1, 2)
        memory = large.sequence if config.attention_prefix else student_tokens
        z_s = self.student.attention(take_patches(student_tokens, index), memory)[usable]  # eq. 5

        with torch.no_grad():
            there = target.patches.flatten(1, 2)[partner]
            here = target.patches.flatten(1, 2) if config.region_source == "teacher" else student_tokens.detach()
            query = take_patches(here, index) if config.region_target == "query_R" else take_patches(there, nearest)
            source, keys = (here, region) if config.region_target == "eq6" else (there, region_there)
            z_t = self.teacher.network.attention(query, source, key_mask=keys)[usable]  # eq. 6
            probs = self._targets("region", self.teacher.network.head(z_t), progress, stats)
        rows = row_cross_entropy(self.student.head(z_s), probs, temperature=config.student_temperature)
        number = torch.arange(valid.numel(), device=valid.device).view(*valid.shape, 1).expand_as(usable)
        return region_mean(rows, number[usable], valid.flatten(), reduction=config.reduction)  # eq. 7

    @torch.no_grad()
    def _sample_regions(self, clean: Tensor, target: Tokens, progress: Progress) -> Tensor:
        """Regions R of each student view, [2B, M, N]."""
        config, attention = self.config, target.cls_attention
        if config.region_start == "attention" and config.attention_source == "base":
            with adapters_enabled(self.teacher.network.backbone, False):
                attention = self.teacher.network.backbone(clean, cls_attention=True).cls_attention
        num_regions = config.num_regions
        if num_regions is None and config.region_start == "random":
            num_regions = self.student.backbone.num_heads
        regions = sample_regions(
            progress,
            clean.shape[0] // 2,
            2,
            target.grid,
            num_regions=num_regions,
            min_patches=config.region_min_patches,
            max_patches=config.region_max_patches,
            start=config.region_start,
            anchor=config.region_anchor,
            cls_attention=attention,
        )
        return regions.mask.flatten(2).to(clean.device)

    def _same_patch(self, rows: PatchRows, probs: Tensor) -> Tensor:
        """Eq. 8: a distorted patch matches the teacher's clean patch at the same place of the same view."""
        view, patch = rows.same.nonzero(as_tuple=True)
        losses = row_cross_entropy(rows.same_logits, probs[view, patch], temperature=self.config.student_temperature)
        num_views = self._num_views(rows.same.shape[0])
        return masked_patch_mean(losses, view, num_views=num_views, reduction=self.config.reduction)

    def _matched_patch(
        self, rows: PatchRows, probs: Tensor, match: Match, batch: ViewBatch, small: Tokens | None
    ) -> Tensor:
        """Eq. 9: a patch matches the teacher's patches C(s) of the other view; without any it does not count."""
        partner = self._partner(len(batch)).to(probs.device)
        losses = [self._matched_rows(rows.matched_logits, match.relation, rows.matched, probs[partner])]
        num_views = self._num_views(2 * len(batch))
        if small is not None and self.config.local_crops_in_loc2:
            assert batch.local_views is not None
            num_local = batch.local_views.pixels.shape[0]
            tokens = small.patches.flatten(1, 2)
            grid = (batch.global_views.pixels.shape[-2] // self.student.backbone.patch_size,) * 2
            for q in range(2):
                teacher_rows = (torch.arange(len(batch)) + q * len(batch)).repeat(num_local).to(probs.device)
                found = self._match(batch.local_views, batch.global_views, grid, teacher_rows)
                logits = self.student.head(tokens[found.valid])
                losses.append(self._matched_rows(logits, found.relation, found.valid, probs[teacher_rows]))
                num_views += num_local * len(batch)
        return matched_patch_mean(torch.cat(losses), num_views=num_views, reduction=self.config.reduction)

    def _matched_rows(self, logits: Tensor, relation: Tensor, valid: Tensor, probs: Tensor) -> Tensor:
        """Cross-entropy of each valid patch with the teacher's distribution over C(s)."""
        weights = relation.to(probs.dtype)
        if self.config.match_reduction == "mean":
            weights = weights / weights.sum(dim=-1, keepdim=True).clamp_min(1)
        target = (weights @ probs)[valid]  # H is linear in the target, so the targets are averaged first
        return row_cross_entropy(logits, target, temperature=self.config.student_temperature)

    # Steps

    def before_step(self, progress: Progress) -> None:
        """Hold the prototypes still in the first epochs: without a gradient AdamW skips them, decay included."""
        if progress.epoch < self.config.freeze_last_layer_epochs:
            cancel_gradients(self.student.head.last_layer)

    def after_step(self, progress: Progress) -> None:
        """Move the teacher and the centres."""
        self.teacher.update(self.student, cosine(progress, *self.config.momentum))
        for centre in self.centres.values():
            assert isinstance(centre, Centre)
            centre.update()

    def alarms(self, stats: Mapping[str, float]) -> list[str]:
        """Levels on which the teacher has collapsed."""
        return collapse_alarms(stats, self.config.num_prototypes)

    def exported(self) -> Backbone:
        """The teacher's backbone unless the options ask for the student's."""
        return self.teacher.network.backbone if self.config.export == "teacher" else self.student.backbone


class PatchRows:
    """Student logits of the patches that eqs. 8 and 9 use: each row goes through the head once.

    Args: distorted and large, the student's tokens for eq. 8 and eq. 9 (the same object in one-pass mode); same and
    matched, the patches that each uses, [2B, N].
    """

    def __init__(self, distorted: Tokens, large: Tokens, same: Tensor, matched: Tensor, head: DinoHead) -> None:
        self.same, self.matched = same, matched
        if large is distorted:
            used = same | matched
            logits = head(large.patches.flatten(1, 2)[used])
            self.same_logits, self.matched_logits = logits[same[used]], logits[matched[used]]
        else:
            self.same_logits = head(distorted.patches.flatten(1, 2)[same])
            self.matched_logits = head(large.patches.flatten(1, 2)[matched])


def take_patches(values: Tensor, index: Tensor) -> Tensor:
    """Gather values [N, P, C] at patch indices [N, M, L] -> [N, M, L, C]."""
    rows = torch.arange(values.shape[0], device=values.device).view(-1, 1, 1)
    return values[rows, index]
