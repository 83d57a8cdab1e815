# SPDX-License-Identifier: Apache-2.0
"""The DINO step from LightlySSL's building blocks: its loss, head, EMA and weight groups around a timm ViT.

Put together as its ImageNet benchmark of DINO does (AdamW, clipping at 3, EMA before the forward pass), with views of one
size in one pass.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import version

import timm
import torch
from lightly.loss import DINOLoss
from lightly.models.modules import DINOProjectionHead
from lightly.models.utils import get_weight_decay_parameters, update_momentum
from torch import Tensor, nn

from rekindle.bench.stage import (
    architecture_of,
    case_device,
    count_flops,
    device_facts,
    fixed_views,
    settle,
    taken,
    view_list,
)
from rekindle.core.rng import derived_seed
from rekindle.networks.checkpoints.architecture import Architecture


def _network(arch: Architecture, prototypes: int) -> nn.Sequential:
    vit = timm.create_model(
        "vit_small_patch16_224",
        num_classes=0,
        dynamic_img_size=True,
        embed_dim=arch.width,
        depth=arch.depth,
        num_heads=arch.heads,
        patch_size=arch.patch,
        img_size=arch.img,
    )
    return nn.Sequential(vit, DINOProjectionHead(arch.width, 2048, 256, prototypes, norm_last_layer=False))


class LightlyDino:
    """Student and momentum teacher, all weights trained."""

    def __init__(self, case: Mapping[str, object]) -> None:
        self._device = case_device(case)
        arch = architecture_of(case)
        prototypes = taken(case, "num_prototypes", int)
        torch.manual_seed(derived_seed(taken(case, "seed", int), "bench peer"))
        self._student = _network(arch, prototypes).to(self._device)
        self._teacher = _network(arch, prototypes).to(self._device).requires_grad_(False)
        self._teacher.load_state_dict(self._student.state_dict())  # its head cannot be deep-copied
        self._loss = DINOLoss(output_dim=prototypes, warmup_teacher_temp=0.04, teacher_temp=0.07).to(self._device)
        decayed, plain = get_weight_decay_parameters([self._student])
        self._optimizer = torch.optim.AdamW([{"params": decayed}, {"params": plain, "weight_decay": 0.0}], lr=1e-5)
        self._is_bf16 = taken(case, "precision", str) == "bf16"
        self._views = view_list(fixed_views(case))
        self._losses: list[float] = []

    def run(self) -> int:
        """One step."""
        update_momentum(self._student, self._teacher, m=0.996)
        with torch.autocast(self._device.type, torch.bfloat16, enabled=self._is_bf16):
            large = torch.cat(self._views[:2])
            with torch.no_grad():
                targets = self._teacher(large)
            logits: list[Tensor] = [self._student(large)]
            if len(self._views) > 2:
                logits.append(self._student(torch.cat(self._views[2:])))
            loss = self._loss(targets.chunk(2), torch.cat(logits).chunk(len(self._views)), teacher_temp=0.07)
        self._optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self._student.parameters(), 3.0)
        self._optimizer.step()
        self._losses.append(float(loss.detach()))
        settle(self._device)
        return len(self._views[0])

    def facts(self) -> dict[str, object]:
        """Numbers that train, FLOPs of a step, losses, versions."""
        memory = device_facts(self._device)
        losses = list(self._losses)
        return memory | {
            "trained_parameters": sum(p.numel() for p in self._student.parameters() if p.requires_grad),
            "train": "all",
            "optimizer": type(self._optimizer).__name__,
            "flops": count_flops(self.run),
            "losses": losses,
            "torch": torch.__version__,
            "lightly": version("lightly"),
            "timm": version("timm"),
        }
