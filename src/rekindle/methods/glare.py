# SPDX-License-Identifier: Apache-2.0
"""GLARE: global, regional and local consistency for continual pre-training (Ebouky et al., 2025, arXiv:2509.17816)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor, nn

from rekindle.adapters.attach import adapters_enabled
from rekindle.core.progress import Progress
from rekindle.core.rng import generator, part_draws
from rekindle.methods.base import LossBreakdown, Method, MicroBatch
from rekindle.methods.glare_matching import Level, LocalPairs, Matching, Regions, Seen, take_patches
from rekindle.methods.glare_options import GlareOptions
from rekindle.methods.papers import glare as glare_paper
from rekindle.methods.shared.distillation import (
    Centre,
    Distillation,
    HeadPair,
    class_comparison,
    new_centres,
    new_head,
)
from rekindle.methods.shared.parts import gradient_in_advance
from rekindle.methods.shared.teacher import EmaTeacher
from rekindle.networks.backbone import Backbone
from rekindle.networks.parts.cross_attention import CrossAttention
from rekindle.networks.parts.heads import DinoHead
from rekindle.networks.tokens import Stem, Tokens
from rekindle.objectives.pairs import Pairs, count_per_part, region_pairs, used_rows
from rekindle.objectives.prototypes import Compared, TargetRows
from rekindle.views.batch import ViewBatch
from rekindle.views.distortion import distort, draw_patch_mask
from rekindle.views.geometry import region_partner
from rekindle.views.regions import sample_regions

LEVELS: tuple[Level, ...] = ("cls", "patch", "region")


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
    views (`symmetric`). Targets are balanced, and means run, over the rows of the step, however it is cut.
    """

    Config = GlareOptions
    STATED = glare_paper.STATED
    upkeep: Distillation

    def __init__(self, config: GlareOptions, backbone: Backbone) -> None:
        super().__init__()
        self.config = config
        attention = None
        if config.regional_weight:
            attention = CrossAttention(
                backbone.width,
                temperature=config.attention_temperature,
                init=config.attention_init,
                residual=config.attention_residual,
            )
        self.student = GlareStudent(backbone, new_head(config, backbone.width), attention)
        self.teacher = EmaTeacher(self.student)
        self.mask_token = nn.Parameter(torch.zeros(backbone.width)) if config.distortion == "mask" else None
        self.centres = new_centres(LEVELS[: config.num_centres], config)
        self.upkeep = Distillation(config, self.student, self.teacher, self.centres)

    def loss(self, batch: ViewBatch, progress: Progress) -> LossBreakdown:
        """Return the weighted sum of the terms that are switched on (eq. 10).

        L_glob equals `objectives.plain.cross_view_entropy`. The others average `objectives.plain.row_cross_entropy`: L_reg as
        `objectives.plain.region_mean`, L_loc1 as `objectives.plain.masked_patch_mean`, L_loc2 as
        `objectives.plain.matched_patch_mean`. Centred targets are `objectives.plain.centred_softmax`.
        """
        return self.only_part(batch, progress)

    def parts(self, micro_batches: Iterable[MicroBatch]) -> Iterator[Callable[[], LossBreakdown]]:
        """First the teacher sees all views of the step and its rows are balanced together; then the student learns by parts."""
        with torch.no_grad():
            seen = [self._see(batch, progress) for batch, progress in micro_batches]
            shifts: dict[Level, Tensor] = {}
            if self.config.balance == "sinkhorn":
                heads, iterations = self.upkeep.head_pair(seen[0].progress), self.config.sinkhorn_iterations
                shifts = {level: heads.balance([own.rows[level] for own in seen], iterations) for level in seen[0].rows}
        counts = {}
        if seen[0].counts:  # all at once
            shares = count_per_part([torch.stack(list(own.counts.values())) for own in seen])
            counts = dict(zip(seen[0].counts, shares.unbind(), strict=True))
        for own in seen:
            yield partial(self._part, own, shifts, counts)

    def _part(self, seen: Seen, shifts: dict[Level, Tensor], counts: dict[str, Tensor]) -> LossBreakdown:
        """A micro-batch's part of the loss.

        The small crops' part and the large views' need nothing of each other's graph, so each gradient is taken at once, and the
        activations of the first are gone before those of the second exist.

        Args: shifts, that balance the targets of each level; counts, this part's share of those of the step.
        """
        config, batch, progress = self.config, seen.batch, seen.progress
        heads = self.upkeep.head_pair(progress)

        def targets(level: Level, used: Tensor | None = None) -> TargetRows:
            """The teacher's distributions of the rows of a level, or of the `used` ones."""
            rows = seen.rows[level] if used is None else seen.rows[level][used]
            return heads.balanced(rows, shifts[level]) if shifts else heads.centred(rows, self._centre(level))

        levels: dict[str, TargetRows] = {level: targets(level) for level in seen.rows if level != "patch"}
        cls, local = levels.get("cls"), None
        if config.local_weight:
            local = self._local_pairs(seen, counts, partial(targets, "patch"))
            levels["patch"] = local.targets
        stats = {"matched": seen.match.large.valid.float().mean()}
        if seen.regions is not None:
            stats["regions"] = seen.regions.usable.any(dim=-1).float().sum() / seen.match.num_views

        def large_part() -> LossBreakdown:
            distorted = self.student_pass(seen.clean, seen.hit, progress, seen.start)
            large = self._clean_pass(seen.start, progress) if config.student_input == "two_pass" else distorted
            compared: list[Compared] = []
            if cls is not None:
                compared.append(self._global(large.class_token, range(2), batch, cls))  # eq. 4
            if seen.regions is not None:
                compared.append(self._regional(large, seen.regions, levels["region"], counts))  # eqs. 5-7
            if local is not None:
                compared.extend(self._local(distorted, large, local))  # eqs. 8 and 9
            return heads.losses(compared)

        parts = [*self._small_part(batch, heads, cls, local), large_part]
        found = gradient_in_advance(parts, [*self._trained(), *heads.inputs])
        return LossBreakdown.join([found], stats | self.upkeep.stats(progress, levels, stats["matched"]))  # eq. 10

    def _trained(self) -> Iterator[Tensor]:
        """What trains besides the head."""
        yield from self.student.backbone.parameters()
        if self.student.attention is not None:
            yield from self.student.attention.parameters()
        if self.mask_token is not None:
            yield self.mask_token

    # What is known before any loss

    def _see(self, batch: ViewBatch, progress: Progress) -> Seen:
        """The teacher's pass, its rows on each level, and which patches and regions count; centres take note of the rows."""
        config, clean = self.config, batch.global_views.pixels.flatten(0, 1)  # [2B, 3, S, S], views first
        teacher, heads = self.teacher.network, self.upkeep.head_pair(progress)
        start = teacher.backbone.shared(clean)
        target: Tokens = teacher.backbone(start, cls_attention=self._needs_teacher_attention)
        hit = self.draw_hit(batch, target.grid, progress)
        match = Matching(config, batch, self.student.backbone.patch_size)  # C(s)
        rows: dict[Level, Tensor] = {}
        counts: dict[str, Tensor] = {}
        regions = None
        if config.global_weight:
            rows["cls"] = heads.project(target.class_token)
        if config.regional_weight:
            regions, tokens = self._see_regions(clean, hit, target, match, progress)
            rows["region"] = heads.project(tokens)
            counts["reg"] = regions.usable.any(dim=-1).sum()
        if config.local_weight:
            rows["patch"] = heads.project(target.patches.flatten(0, 2))
            counts["loc2"] = match.num_matched()
        if config.balance == "centre":
            for level, own in rows.items():
                heads.observe(own, self._centre(level))
        return Seen(batch, progress, clean, start, target.grid, hit, match, rows, regions, counts)

    def _see_regions(
        self, clean: Tensor, hit: Tensor, target: Tokens, match: Matching, progress: Progress
    ) -> tuple[Regions, Tensor]:
        """Regions R, and eq. 6: the teacher's partners of their usable patches read R' alone; [T, D]."""
        config = self.config
        assert self.teacher.network.attention is not None
        region = self.draw_regions(clean, target, progress)  # [2B, M, N]
        partner, matched = match.partner.to(clean.device), match.large
        region_there = region_partner(region, matched.relation)  # R', [2B, M, N']

        longest = min(config.region_max_patches**2, region.shape[-1])
        index = region.float().topk(longest, dim=-1).indices  # patches of R first, then padding; [2B, M, L]
        nearest = take_patches(matched.nearest[..., None], index).squeeze(-1)
        usable = region.gather(-1, index) & take_patches(matched.valid[..., None], index).squeeze(-1)
        usable = match.directions(usable & region_there.gather(-1, nearest))
        valid = usable.sum(dim=-1) >= config.min_region_patches  # [2B, M]
        usable = usable & valid[..., None]

        there = target.patches.flatten(1, 2)[partner]
        here = target.patches.flatten(1, 2)
        if config.region_source == "student" and config.region_target != "within":
            is_clean = config.student_input == "two_pass"
            large = self._clean_pass(clean, progress) if is_clean else self.student_pass(clean, hit, progress)
            here = large.patches.flatten(1, 2)
        query = take_patches(here, index) if config.region_target == "query_R" else take_patches(there, nearest)
        source, keys = (here, region) if config.region_target == "eq6" else (there, region_there)
        return Regions(index, usable), self.teacher.network.attention(query, source, key_mask=keys)[usable]  # eq. 6

    @property
    def _needs_teacher_attention(self) -> bool:
        regional = self.config.regional_weight > 0 and self.config.region_start == "attention"
        return regional and self.config.attention_source == "teacher"

    def _centre(self, level: Level) -> Centre:
        return self.upkeep.centre(LEVELS[min(LEVELS.index(level), self.config.num_centres - 1)])

    def draw_hit(self, batch: ViewBatch, grid: tuple[int, int], progress: Progress) -> Tensor:
        """Patches to distort, [2B, gh, gw]."""
        config, device = self.config, batch.global_views.pixels.device
        if config.distortion == "none":
            return torch.zeros(2 * len(batch), *grid, dtype=torch.bool, device=device)
        mask = draw_patch_mask(
            progress, len(batch), 2, grid, ratio_mode=config.distortion_ratio, shape=config.distortion_shape
        )
        return mask.flatten(0, 1).to(device)

    def student_pass(
        self, clean: Tensor, hit: Tensor, progress: Progress, start: Tensor | Stem | None = None
    ) -> Tokens:
        """The student on the distorted global views X_m.

        Args: clean [2B, 3, S, S]; hit [2B, gh, gw], patches to distort; start, `Backbone.shared` of `clean`, which is taken where
        nothing is hit.
        """
        config, backbone = self.config, self.student.backbone
        pixels = distort(
            clean,
            hit,
            backbone.patch_size,
            kind=config.distortion,
            sigma=self._blur_sigma(progress),
            scope=config.blur_scope,
            progress=progress,
            num_views=2,
        )
        hidden = None if self.mask_token is None else hit
        with part_draws(progress, len(clean) // 2, "distorted views"):
            if not isinstance(start, Stem):
                tokens: Tokens = backbone(pixels, patch_mask=hidden, mask_token=self.mask_token)
                return tokens
            some = hit.flatten(1).any(dim=1).nonzero()[:, 0]
            own = backbone.stem(pixels[some], None if hidden is None else hidden[some], self.mask_token)
            tokens = backbone(replace(start, tokens=start.tokens.index_copy(0, some, own.tokens)))
        return tokens

    def _clean_pass(self, clean: Tensor | Stem, progress: Progress) -> Tokens:
        """The student on the global views as they are."""
        images = len(clean.tokens if isinstance(clean, Stem) else clean) // 2
        with part_draws(progress, images, "clean views"):
            tokens: Tokens = self.student.backbone(clean)
        return tokens

    def _blur_sigma(self, progress: Progress) -> float:
        low, high = self.config.blur_sigma_px, self.config.blur_sigma_max_px
        if high is None:
            return low
        draw = torch.rand((), generator=generator(progress.seed, "blur sigma", progress.step))
        return low + (high - low) * float(draw)

    # Terms, in the order of the paper

    def _global(self, cls: Tensor, views: range, batch: ViewBatch, targets: TargetRows) -> Compared:
        """Eq. 4 with multi-crop."""
        return class_comparison("glob", cls, targets, views=views, batch=batch, weight=self.config.global_weight)

    def _small_part(
        self, batch: ViewBatch, heads: HeadPair, cls: TargetRows | None, local: LocalPairs | None
    ) -> list[Callable[[], LossBreakdown]]:
        """What the small crops add to eq. 4 (and to eq. 9, if they take part), if anything."""
        matched = None if local is None else local.small
        if batch.local_views is None or (cls is None and matched is None):
            return []
        pixels, views = batch.local_views.pixels.flatten(0, 1), range(2, 2 + batch.num_local)

        def part() -> LossBreakdown:
            compared: list[Compared] = []
            if local is None or matched is None:
                cls_tokens = self.student.backbone.class_token(pixels)
            else:
                tokens: Tokens = self.student.backbone(pixels)
                cls_tokens = tokens.class_token
                compared.append(self._patches(tokens, local, {"loc2": matched}))
            if cls is not None:
                compared.append(self._global(cls_tokens, views, batch, cls))
            return heads.losses(compared)

        return [part]

    def _regional(self, large: Tokens, regions: Regions, targets: TargetRows, counts: dict[str, Tensor]) -> Compared:
        """Eqs. 5 and 7: patches of a region R read their whole view; their partners have read R' alone."""
        config, usable = self.config, regions.usable
        assert self.student.attention is not None
        student_tokens = large.patches.flatten(1, 2)
        memory = large.sequence if config.attention_prefix else student_tokens
        z_s = self.student.attention(student_tokens, memory).flatten(0, 1)  # eq. 5, once for all regions of a patch
        num_patches = student_tokens.shape[1]
        pairs = {
            "reg": region_pairs(
                regions.index, usable, num_patches, reduction=config.reduction, count=counts["reg"]
            )  # eq. 7
        }
        used, pairs = used_rows(pairs, "student", len(z_s))
        return Compared(
            z_s[used],
            targets,
            pairs,
            {"reg": config.regional_weight},
            student_image=used // num_patches,  # pairs stay within a view
            teacher_image=usable.nonzero()[:, 0],
        )

    @torch.no_grad()
    def draw_regions(self, clean: Tensor, target: Tokens, progress: Progress) -> Tensor:
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

    def _local_pairs(
        self, seen: Seen, counts: dict[str, Tensor], targets: Callable[[Tensor], TargetRows]
    ) -> LocalPairs:
        """Which patches eqs. 8 and 9 compare, and the teacher's distributions of those that they use."""
        hit, match = seen.hit, seen.match
        found = match.matched_pairs(hit.device, counts["loc2"])
        terms = {f"loc2/{place}": pairs for place, pairs in enumerate(found)}
        if self.config.distortion != "none":
            terms["loc1"] = match.distorted_pairs(hit)
        used, terms = used_rows(terms, "teacher", len(seen.rows["patch"]))
        small = [terms[name] for name in terms if name.startswith("loc2/") and name != "loc2/0"]
        return LocalPairs(
            targets=targets(used),
            image=used // (seen.grid[0] * seen.grid[1]) % len(seen.batch),
            num_images=len(seen.batch),
            same=terms.get("loc1"),
            matched=terms["loc2/0"],
            small=Pairs.join(small) if small else None,
        )

    def _local(self, distorted: Tokens, large: Tokens, local: LocalPairs) -> list[Compared]:
        """Eqs. 8 and 9; where one pass serves both, a patch goes through the head once."""
        if local.same is None:
            return [self._patches(large, local, {"loc2": local.matched})]
        if large is distorted:
            return [self._patches(large, local, {"loc1": local.same, "loc2": local.matched})]
        return [
            self._patches(distorted, local, {"loc1": local.same}),
            self._patches(large, local, {"loc2": local.matched}),
        ]

    def _patches(self, tokens: Tokens, local: LocalPairs, terms: dict[str, Pairs]) -> Compared:
        patches = tokens.patches.flatten(1, 2)
        used, terms = used_rows(terms, "student", patches.shape[0] * patches.shape[1])
        return Compared(
            patches.flatten(0, 1)[used],
            local.targets,
            terms,
            dict.fromkeys(terms, self.config.local_weight),
            student_image=used // patches.shape[1] % local.num_images,
            teacher_image=local.image,
        )
