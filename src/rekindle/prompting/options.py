# SPDX-License-Identifier: Apache-2.0
"""Options of the prompt and of the app. Torch-free."""

from __future__ import annotations

from typing import Literal

import tyro
from pydantic import Field

from rekindle.data.options import PILLOW_MAX_PIXELS
from rekindle.measuring.options import ModelOptions

Edges = Literal["patches", "smooth"]
SIZE_PX, THRESHOLD = 480, 0.5


class PromptOptions(ModelOptions):
    """What in an image is like the places that you name: a map, a mask and its contour, as files."""

    model: tyro.conf.Positional[str] = ""
    """Folder of a run, of transformers, timm or PEFT, timm name, hf-hub:owner/name, checkpoint file, or vit:width=..,... with
    --init random."""
    image: str = ""
    """One image file."""
    add: tuple[tuple[int, int], ...] = ()
    """Pixels to look for, as row and column counted from 0 at the top left, one after the other: --add 120 44 80 200."""
    subtract: tuple[tuple[int, int], ...] = ()
    """Pixels to leave out: what is more like one of them than like those that are looked for."""
    threshold: float = Field(THRESHOLD, ge=0.0, lt=1.0)
    """The mask is where the cosine exceeds this (MMC's table 1: 0.1 to 0.4, best differs from model to model)."""
    edges: Edges = "patches"
    """The mask follows the patches, as evaluations do, or the map interpolated between them."""
    size_px: int = Field(SIZE_PX, ge=1)
    """Short side that the model gets, rounded like the long one to a multiple of the patch (480 as in MMC's table 1)."""
    max_pixels: int = Field(PILLOW_MAX_PIXELS, ge=1, le=PILLOW_MAX_PIXELS)
    """A larger image is refused: it may be a decompression bomb."""
    out: str = ""
    """New or empty folder."""


class AppOptions(ModelOptions):
    """A page on this machine: click a place of your own image, and see what a model, and its base, find alike."""

    model: tyro.conf.Positional[str] = ""
    """Run folder (its base is shown beside it), timm name, hf-hub:owner/name, checkpoint file, or vit:width=..,... with
    --init random."""
    base: str = ""
    """Where the base of the run lies now, if it has moved."""
    size_px: int = Field(SIZE_PX, ge=1)
    """Short side that the models get, rounded like the long one to a multiple of the patch (480 as in MMC's table 1)."""
    host: str = "127.0.0.1"
    """Address to listen at; any other than this machine's own lets others in."""
    port: int = Field(7860, ge=1, le=65535)
    """Port to listen at; if it is taken, the next free one."""
    max_upload_mb: float = Field(20.0, gt=0.0)
    """Largest file that the page takes, in MiB."""
    max_pixels: int = Field(PILLOW_MAX_PIXELS, ge=1, le=PILLOW_MAX_PIXELS)
    """An image with more pixels is refused: it may be a decompression bomb."""
    open_browser: bool = False
    """Open the page in a browser."""
    share: bool = False
    """Also put the page on the internet, through Gradio's relay, for whoever has its address. Images then pass through it."""
