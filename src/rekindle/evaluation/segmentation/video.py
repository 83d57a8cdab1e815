# SPDX-License-Identifier: Apache-2.0
"""Video object segmentation by label propagation: the first mask walks along with the features (Jabri et al., 2020; DINO).

A patch of a frame takes the weighted labels of its nearest patches in the first frame and the last frames, within a window
around its own place. Nothing is trained, and nothing is random.
"""

from __future__ import annotations

from collections import deque
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from rekindle.core.errors import RequestError
from rekindle.core.files import write_atomically
from rekindle.data.labelled.davis import DavisVideos
from rekindle.evaluation.features.dense_features import resize_image, resize_labels
from rekindle.evaluation.protocol import Outcome, Protocol
from rekindle.evaluation.scores.kinds import Means
from rekindle.evaluation.scores.video_metrics import contour_accuracy, decay, recall, region_overlap
from rekindle.evaluation.segmentation.options import VideoOptions

NAMES = ["J&F", "J", "F", "J-recall", "F-recall", "J-decay", "F-decay"]
BATCH = 8  # frames per forward pass
AFFINITIES = 1 << 25  # numbers in one block of the affinity matrix: 128 MiB


def frame_size(height: int, width: int, short_px: int, patch: int) -> tuple[int, int]:
    """Return the size with this short side; the long one is cut to four patches (64 px at a patch of 16 or 8).

    Example:
        >>> frame_size(480, 854, 480, 16), frame_size(854, 480, 240, 8)
        ((480, 832), (384, 240))
    """
    unit = 64 if 64 % patch == 0 else 4 * patch
    short = max(1, short_px // patch) * patch
    long = max(unit, int(max(height, width) * short_px / min(height, width)) // unit * unit)
    return (short, long) if height <= width else (long, short)


def window(grid: tuple[int, int], radius: int) -> Tensor:
    """Return True [P, P] where two patches of a grid are at most `radius` rows and columns apart."""
    rows, columns = torch.arange(grid[0]), torch.arange(grid[1])
    near_rows = (rows[:, None] - rows).abs() <= radius
    near_columns = (columns[:, None] - columns).abs() <= radius
    near = near_rows[:, None, :, None] & near_columns[None, :, None, :]
    return near.reshape(grid[0] * grid[1], -1)


def propagate(
    target: Tensor, context: Tensor, labels: Tensor, near: Tensor, *, temperature: float, neighbours: int
) -> Tensor:
    """Label the patches of a frame with those of earlier frames.

    Args:
        target: features [P, D] of unit length.
        context: [T, P, D], of the earlier frames.
        labels: [T, P, C], their soft labels.
        near: [P, P], the window.
        temperature: of exp(cosine / temperature).
        neighbours: how many of all T * P patches count, at most.

    Returns: soft labels [P, C]; weights of a patch sum to 1.
    """
    rows, flat = context.flatten(0, 1), labels.flatten(0, 1)
    count = min(neighbours, len(rows))
    found = []
    for part, inside in zip(
        torch.split(target, max(1, AFFINITIES // len(rows))),
        torch.split(near, max(1, AFFINITIES // len(rows))),
        strict=True,
    ):
        cosine = part @ rows.T
        cosine = cosine.masked_fill(~inside.repeat(1, len(context)), -torch.inf)
        best, index = cosine.topk(count, dim=1)
        weights = (best / temperature).softmax(dim=1)
        found.append(torch.einsum("pk,pkc->pc", weights, flat[index]))
    return torch.cat(found)


def object_map(soft: Tensor, grid: tuple[int, int], size: tuple[int, int], original: tuple[int, int]) -> Tensor:
    """Turn soft labels [P, C] into objects [H, W]: upsampled, each channel stretched to [0, 1], the largest wins.

    Args:
        soft: labels of the patches.
        grid: of the patches.
        size: of the frame that the network saw.
        original: of the result.

    """
    maps = functional.interpolate(soft.T.reshape(1, -1, *grid), size=size, mode="bilinear", align_corners=False)[0]
    low, high = maps.amin(dim=(1, 2), keepdim=True), maps.amax(dim=(1, 2), keepdim=True)
    stretched = (maps - low) / (high - low).clamp(min=1e-12)
    return resize_labels(stretched.argmax(dim=0).cpu(), original)


class Video(Protocol[VideoOptions, DavisVideos]):
    """The protocol; see the module. Items are sequences; their rows are sums over the objects."""

    Config = VideoOptions
    DATA = "video"
    USES_TRAIN = False

    _rows: list[list[float]]

    def check(self) -> None:
        """Refuse frames smaller than a patch."""
        if self.config.size_px < self.extractor.patch_size:
            raise RequestError(
                f"video.size_px = {self.config.size_px} is smaller than a patch of {self.extractor.patch_size} px"
            )

    def prepare(self) -> None:
        """Follow the objects of every sequence; all seeds share it."""
        self._rows = []
        for index, name in enumerate(self.test.items):
            self._rows.append(self._scores(index))
            self.message(f"{name}: {self._rows[-1][0] / self._rows[-1][-1]:.1%} J&F ({index + 1} of {len(self.test)})")

    def run(self, seed: int) -> Outcome:
        """Return the scores; the same for every seed."""
        rows = np.array(self._rows)
        counts = {
            "sequences": len(self.test),
            "frames": sum(len(self.test.frames(i)) for i in range(len(self.test))),
            "objects": int(rows[:, -1].sum()),
        }
        return Outcome(self.test.items, rows, Means(headline="J&F", names=NAMES), counts)

    def _scores(self, index: int) -> list[float]:
        """Sums over the objects of a sequence of its means over the frames (first and last excluded), and their number."""
        frames = self.test.frames(index)
        predicted = self.followed(index)
        if self.config.masks:
            self._save(index, predicted)
        num_objects = int(self.test.mask(index, frames[0]).max())
        sums = np.zeros(len(NAMES) + 1)
        truths = [self.test.mask(index, frame).numpy() for frame in frames[1:-1]]
        guesses = [found.numpy() for found in predicted[1:-1]]
        for number in range(1, num_objects + 1):
            pairs = [(guess == number, truth == number) for guess, truth in zip(guesses, truths, strict=True)]
            j, f = [region_overlap(*pair) for pair in pairs], [contour_accuracy(*pair) for pair in pairs]
            mean_j, mean_f = float(np.mean(j)), float(np.mean(f))
            sums += [(mean_j + mean_f) / 2, mean_j, mean_f, recall(j), recall(f), decay(j), decay(f), 1.0]
        return [float(value) for value in sums]

    def followed(self, index: int) -> list[Tensor]:
        """Return the objects [H, W] of every frame of a sequence, the first one as given."""
        config, patch, device = self.config, self.extractor.patch_size, self.extractor.device
        frames = self.test.frames(index)
        first = self.test.mask(index, frames[0])
        original = first.shape[0], first.shape[1]
        size = frame_size(*original, config.size_px, patch)
        grid = size[0] // patch, size[1] // patch
        near = window(grid, config.radius).to(device)
        channels = int(first.max()) + 1
        label = functional.one_hot(resize_labels(first, grid).flatten(), channels).float().to(device)
        found = [first]
        recent: deque[tuple[Tensor, Tensor]] = deque(maxlen=config.num_context)
        anchor: tuple[Tensor, Tensor] | None = None
        for start in range(0, len(frames), BATCH):
            images = torch.stack([resize_image(self.test.image(f), size) for f in frames[start : start + BATCH]])
            patches = self.extractor.extract(images)[0].patches.flatten(1, 2)
            for features in functional.normalize(patches, dim=-1):
                if anchor is None:
                    anchor = features, label
                    continue
                context = [anchor, *recent]
                soft = propagate(
                    features,
                    torch.stack([f for f, _ in context]),
                    torch.stack([own for _, own in context]),
                    near,
                    temperature=config.temperature,
                    neighbours=config.num_neighbours,
                )
                recent.append((features, soft))
                found.append(object_map(soft, grid, size, original))
        return found

    def _save(self, index: int, predicted: list[Tensor]) -> None:
        """Write the objects of every frame as indexed PNG: <masks>/<sequence>/00000.png."""
        palette = [0, 0, 0, 213, 94, 0, 0, 114, 178, 0, 158, 115, 204, 121, 167, 230, 159, 0, 86, 180, 233]
        for frame, objects in zip(self.test.frames(index), predicted, strict=True):
            picture = Image.fromarray(objects.numpy().astype(np.uint8), mode="P")
            picture.putpalette(palette)
            path = Path(self.config.masks) / self.test.items[index] / f"{frame.stem}.png"
            write_atomically(path, lambda stream, picture=picture: picture.save(stream, format="PNG"))  # type: ignore[misc]
