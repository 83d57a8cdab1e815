# SPDX-License-Identifier: Apache-2.0
"""Options of reading images. No torch is imported here."""

from __future__ import annotations

from pydantic import Field

from rekindle.core.options import Options

# Pillow itself refuses to open an image above this: twice the size at which it warns.
PILLOW_MAX_PIXELS = 178_956_970


class DataOptions(Options):
    """How images are read."""

    fraction: float = Field(default=1.0, gt=0.0, le=1.0)
    """Share of the images to learn from; a smaller share of one seed is part of a larger one (GLARE, section 9.4)."""
    fraction_seed: int = Field(default=0, ge=0)
    """Draws the share; the seed of the run does not change it."""
    num_workers: int | None = Field(default=None, ge=0)
    """Processes that read images and make views; 0 reads in the main process, none chooses by the machine."""
    draft_px: int | None = Field(default=512, ge=1)
    """A JPEG is decoded at a half, quarter or eighth of its size while both sides keep at least this many
    pixels; none always decodes in full. From 448 on, no view of the default sizes is enlarged by it (own)."""
    store_gib: float | None = Field(default=None, ge=0.0)
    """Memory, in GiB, in which decoded images are kept for the next epochs, shared by all workers and processes of a
    machine; none takes a quarter of what is free, 0 decodes every image each time. Training is the same (own)."""
    max_pixels: int = Field(default=PILLOW_MAX_PIXELS, ge=1, le=PILLOW_MAX_PIXELS)
    """An image with more pixels counts as unreadable: it may be a decompression bomb (Pillow's own limit)."""
    max_unreadable_fraction: float = Field(default=0.5, ge=0.0, le=1.0)
    """The run stops with a summary when more than this share of the images could not be read (own choice)."""

    @property
    def chosen(self) -> dict[str, object]:
        """Options that say which images are used, by dotted name: a run cannot go on with others."""
        return {"data.fraction": self.fraction, "data.fraction_seed": self.fraction_seed}
