# SPDX-License-Identifier: Apache-2.0
"""GLARE's and DINO's step without any measure against cost: the oracle of the fast step, and what it is timed against.

Two whole models of their own, gradients of all weights, heads on every patch of every view, logits of all rows as tensors in
the graph, the equations of `objectives.plain`, and a pass of its own for the distorted views of L_loc1. Only what a step
draws (distorted patches, regions) and which patches correspond is asked of the method, so that both see the same.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor

from rekindle.core.progress import Progress
from rekindle.core.schedules import cosine
from rekindle.methods.dino import Dino
from rekindle.methods.glare import Glare
from rekindle.methods.glare_matching import Matching
from rekindle.methods.shared.distillation import Centre, teacher_temperature
from rekindle.networks.tokens import Tokens
from rekindle.objectives.plain import (
    centred_softmax,
    cross_view_entropy,
    masked_patch_mean,
    matched_patch_mean,
    region_mean,
    row_cross_entropy,
)
from rekindle.views.batch import ViewBatch
from rekindle.views.geometry import Match, region_partner


class Straightforward(torch.nn.Module):
    """A copy of a method that takes the long way round. Default options of the method only.

    Args: method, Glare or Dino, left as it is; own_pass, give the distorted views of L_loc1 a student pass of their own.
    """

    def __init__(self, method: Glare | Dino, *, own_pass: bool = True) -> None:
        super().__init__()
        self.method = copy.deepcopy(method)
        self.method.teacher.network = copy.deepcopy(
            self.method.teacher.network
        )  # a copy of its own, shared with nobody
        self.method.student.requires_grad_(True)
        self.method.student.backbone.skip_dropped = False
        self._own_pass = own_pass

    def forward(self, batch: ViewBatch, progress: Progress) -> dict[str, Tensor]:
        """The terms, each with its graph; all weights are 1."""
        return self._glare(batch, progress) if isinstance(self.method, Glare) else self._dino(batch, progress)

    def after_step(self, progress: Progress) -> None:
        """Average every tensor of the teacher, one at a time."""
        momentum = cosine(progress, *self.method.config.momentum)
        with torch.no_grad():
            theirs = dict(self.method.student.named_parameters())
            for name, parameter in self.method.teacher.network.named_parameters():
                parameter.mul_(momentum).add_(theirs[name], alpha=1 - momentum)

    def _targets(self, logits: Tensor, centre: Centre, progress: Progress) -> Tensor:
        config = self.method.config
        temperature = teacher_temperature(progress, config.teacher_temperature, config.teacher_temperature_epochs)
        return centred_softmax(logits, centre.value, temperature=temperature)

    def _class_loss(self, student: list[Tensor], teacher: Tensor, centre: Centre, progress: Progress) -> Tensor:
        method, images = self.method, teacher.shape[0] // 2
        logits = method.student.head(torch.cat(student)).unflatten(0, (-1, images))
        with torch.no_grad():
            probs = self._targets(method.teacher.network.head(teacher).unflatten(0, (2, images)), centre, progress)
        return cross_view_entropy(logits, probs, temperature=method.config.student_temperature)

    def _dino(self, batch: ViewBatch, progress: Progress) -> dict[str, Tensor]:
        method = self.method
        assert isinstance(method, Dino) and batch.local_views is not None
        clean = batch.global_views.pixels.flatten(0, 1)
        with torch.no_grad():
            target = method.teacher.network.backbone(clean).class_token
        views = [clean, batch.local_views.pixels.flatten(0, 1)]
        student = [method.student.backbone(pixels).class_token for pixels in views]
        return {"glob": self._class_loss(student, target, method.upkeep.centre("cls"), progress)}

    def _glare(self, batch: ViewBatch, progress: Progress) -> dict[str, Tensor]:
        method = self.method
        assert isinstance(method, Glare) and batch.local_views is not None
        net, teacher, config = method.student, method.teacher.network, method.config
        clean = batch.global_views.pixels.flatten(0, 1)
        with torch.no_grad():
            target: Tokens = teacher.backbone(clean, cls_attention=True)
            probs = self._targets(teacher.head(target.patches.flatten(1, 2)), self._centre("patch"), progress)
        hit = method.draw_hit(batch, target.grid, progress)
        large = method.student_pass(clean, hit, progress)
        distorted = method.student_pass(clean, hit, progress) if self._own_pass else large
        small: Tokens = net.backbone(batch.local_views.pixels.flatten(0, 1))
        matching = Matching(config, batch, net.backbone.patch_size)
        match, partner = matching.large, matching.partner
        views = clean.shape[0]

        glob = self._class_loss(
            [large.class_token, small.class_token], target.class_token, self._centre("cls"), progress
        )
        reg = self._regional(clean, large, target, match, partner, progress)

        masked = hit.flatten(1)
        logits = net.head(distorted.patches.flatten(1, 2))
        rows = row_cross_entropy(logits.flatten(0, 1), probs.flatten(0, 1), temperature=config.student_temperature)
        loc1 = masked_patch_mean(rows.view(masked.shape)[masked], masked.nonzero()[:, 0], num_views=views)

        if self._own_pass:
            logits = net.head(large.patches.flatten(1, 2))
        coupling = match.relation.to(probs.dtype)
        mixed = coupling / coupling.sum(dim=-1, keepdim=True).clamp_min(1) @ probs[partner]
        rows = row_cross_entropy(logits.flatten(0, 1), mixed.flatten(0, 1), temperature=config.student_temperature)
        loc2 = matched_patch_mean(rows.view(masked.shape)[match.valid], num_views=views)
        return {"glob": glob, "reg": reg, "loc1": loc1, "loc2": loc2}

    def _regional(
        self, clean: Tensor, large: Tokens, target: Tokens, match: Match, partner: Tensor, progress: Progress
    ) -> Tensor:
        method = self.method
        assert isinstance(method, Glare)
        net, teacher, config = method.student, method.teacher.network, method.config
        assert net.attention is not None and teacher.attention is not None
        region = method.draw_regions(clean, target, progress)  # [2B, M, N]
        there = region_partner(region, match.relation)
        student, other = large.patches.flatten(1, 2), target.patches.flatten(1, 2)[partner]
        views, number, patches = region.shape
        nearest = match.nearest[:, None].expand(views, number, patches)
        usable = region & match.valid[:, None] & there.gather(-1, nearest)
        usable = usable & (usable.sum(-1, keepdim=True) >= config.min_region_patches)
        queries = student[:, None].expand(views, number, patches, -1)  # every patch once per region
        z_s = net.attention(queries.contiguous(), student)
        with torch.no_grad():
            rows = torch.arange(views)[:, None, None]
            z_t = teacher.attention(other[rows, nearest], other, key_mask=there)
            probs = self._targets(teacher.head(z_t[usable]), self._centre("region"), progress)
        losses = row_cross_entropy(net.head(z_s[usable]), probs, temperature=config.student_temperature)
        index = torch.arange(views * number).view(views, number, 1).expand_as(usable)[usable]
        return region_mean(losses, index, usable.any(-1).flatten())

    def _centre(self, level: str) -> Centre:
        assert isinstance(self.method, Glare)
        centre = self.method.centres[level]
        assert isinstance(centre, Centre)
        return centre
