# SPDX-License-Identifier: Apache-2.0
"""Images that a run does not learn from: what its method makes of them (LOCA, figures 3 and 5)."""

from __future__ import annotations

import torch

from rekindle.core.distributed import world_size
from rekindle.core.errors import RequestError
from rekindle.core.progress import Progress
from rekindle.core.rng import seeded_default
from rekindle.data.images import ImageSource, find_images
from rekindle.methods.base import Method
from rekindle.pretraining.feeding import few_views
from rekindle.pretraining.options import PretrainOptions
from rekindle.pretraining.pictures import looking

UNSEEN = "unseen"


def unseen_images(options: PretrainOptions, learnt: ImageSource) -> ImageSource | None:
    """Find the images of --unseen; None where none are asked for.

    Raises: RequestError for a source that is missing, or that holds images which are learnt from.
    """
    if not options.unseen:
        return None
    try:
        found = find_images(options.unseen)
    except RequestError as error:
        raise RequestError(f"--unseen: {error}") from error
    seen = {learnt.name(i) for i in range(len(learnt))}
    both = [name for name in map(found.name, range(len(found))) if name in seen]
    if both:
        raise RequestError(
            f"--unseen {options.unseen}: {len(both)} of its {len(found)} images are learnt from as well, {both[0]} for example; "
            "give images that --images leaves out"
        )
    return found


class UnseenLoss:
    """The loss, terms and figures of a method on images that it does not learn from.

    Views and draws are the same each time, and schedules stand where the run ends, so that only what was learnt changes.

    Args: method, in training; end, the run's last step; device, where the method computes.
    Raises: RequestError in several processes, of which one alone measures, while losses wait for all of them.
    """

    def __init__(
        self, options: PretrainOptions, images: ImageSource, method: Method, end: Progress, device: torch.device
    ) -> None:
        if world_size() > 1:
            raise RequestError(f"--probe {UNSEEN} computes the loss in one process; use --devices 1, or leave it out")
        self._method, self._end = method, end
        self._views = few_views(options, images, min(options.probe_images, len(images))).to(device)

    def measure(self) -> dict[str, float]:
        """Compute them; the method is left as it was."""
        backbone = self._method.exported()
        views = self._views.normalised(backbone.mean, backbone.std)
        with looking(self._method), seeded_default(self._end.seed, UNSEEN):
            found = self._method(views, self._end)
            of_step = self._method.step_stats()
        self._method.abandon_step()  # centres have taken note of rows that no step is to move them by
        named = {"loss": found.total, **found.terms, **found.stats, **of_step}
        return {f"{UNSEEN}/{name}": float(value) for name, value in named.items()}
