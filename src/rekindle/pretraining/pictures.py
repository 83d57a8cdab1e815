# SPDX-License-Identifier: Apache-2.0
"""Pictures of a model while it is trained, of the same few images each time: for TensorBoard, and for the run's folder."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from rekindle.core.progress import Progress
from rekindle.data.images import ImageSource
from rekindle.methods.base import Method, ViewBatch
from rekindle.networks.backbone import Backbone
from rekindle.networks.tokens import Tokens
from rekindle.pretraining.feeding import few_views
from rekindle.pretraining.options import PretrainOptions

PICTURED = 6  # images


class RunPictures:
    """Draws what a model has become, beside what it was.

    Args:
        options: of the run; they say which views are drawn.
        images: a few of them are shown; of the run, or unseen ones.
        method: in training. It is left as it was.
        end: the run's last step.
        device: where the method computes when it is drawn.
        base: the model that training starts from, to show it beside; None where it is not wanted.

    """

    def __init__(
        self,
        options: PretrainOptions,
        images: ImageSource,
        method: Method,
        end: Progress,
        device: torch.device,
        base: Backbone | None = None,
    ) -> None:
        self._options, self._images, self._method, self._end = options, images, method, end
        self._device = device
        self._bytes: ViewBatch | None = None
        self._before = None if base is None else self._look(base.to(device))

    def draw(self, step: int) -> dict[str, NDArray[np.uint8]]:
        """Return pictures [H, W, 3] by name, after `step` steps."""
        from rekindle.drawing.pictures import drawn_grid, enlarged, joint_colours, overlay

        backbone = self._method.exported()
        now = self._look(backbone)
        pixels = self._views().global_views.pixels[0].permute(0, 2, 3, 1).cpu().numpy()
        size = pixels.shape[1:3]
        sides = [("base", self._before), (f"step {step}", now)]
        # a new network beside the base (TEC) may have another width, and another space in any case
        known = [(n, t) for n, t in sides if t is not None and t.patches.shape[-1] == now.patches.shape[-1]]
        colours = joint_colours([t.patches.float().cpu().numpy() for _, t in known])
        rows = {name: enlarged(shown, size) for (name, _), shown in zip(known, colours, strict=True)}
        found = {"tokens": drawn_grid({"view": pixels, **rows})}
        maps = {
            n: t.cls_attention.float().mean(dim=1).cpu().numpy() for n, t in sides if t and t.cls_attention is not None
        }
        if maps:
            high = float(np.percentile(np.concatenate([m.ravel() for m in maps.values()]), 99.5))
            shown_maps = {name: overlay(pixels, m, low=0.0, high=high) for name, m in maps.items()}
            found["attention"] = drawn_grid({"view": pixels, **shown_maps})
        for stem, shown_rows in self._own(step).items():
            found[stem] = drawn_grid(shown_rows)
        return found

    def write_own(self, folder: Path) -> None:
        """Write what the method itself draws at the end, as PNGs."""
        from rekindle.drawing.pictures import write_grid

        for stem, rows in self._own(self._end.step).items():
            write_grid(folder / f"{stem}.png", rows)

    def _own(self, step: int) -> dict[str, dict[str, NDArray[np.uint8]]]:
        if type(self._method).pictures is Method.pictures:  # no image is read where nothing is drawn
            return {}
        backbone = self._method.exported()
        views = self._views().normalised(backbone.mean, backbone.std)
        with looking(self._method):
            found = self._method.pictures(views, replace(self._end, step=step))
        return {
            stem: {title: v.permute(0, 2, 3, 1).cpu().numpy() for title, v in rows.items()}
            for stem, rows in found.items()
        }

    def _look(self, backbone: Backbone) -> Tokens:
        views = self._views().normalised(backbone.mean, backbone.std).global_views.pixels[0]
        with looking(backbone):
            tokens: Tokens = backbone(views, cls_attention=backbone.has_class_token)
        return tokens

    def _views(self) -> ViewBatch:
        if self._bytes is None:
            self._bytes = few_views(self._options, self._images, PICTURED).to(self._device)
        return self._bytes


@contextmanager
def looking(module: torch.nn.Module) -> Iterator[None]:
    """Evaluation mode without gradient; every part's own mode comes back."""
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for part, mode in modes:
            part.training = mode
