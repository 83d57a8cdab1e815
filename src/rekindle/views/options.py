# SPDX-License-Identifier: Apache-2.0
"""Options of the views: what is cut from an image, and how its colours change. No torch is imported here."""

from __future__ import annotations

from typing import Literal

from pydantic import field_validator

from rekindle.core.options import Options

MatchMode = Literal["containment", "center", "overlap", "nearest"]
"""When a patch of one view corresponds to one of another (`views.geometry.match_patches`)."""
VisibleShape = Literal["structured", "first", "unstructured", "structured2d"]
"""Which patches stay visible (`views.token_masks.draw_kept`)."""
_DEFAULT_THRESHOLD = {"overlap": 0.5, "nearest": 1.0}


def checked_threshold(mode: MatchMode, threshold: float | None) -> float:
    """Return the threshold of a mode, its default where None. Raises: ValueError for one that the mode does not take."""
    if mode not in _DEFAULT_THRESHOLD:
        if threshold is not None:
            raise ValueError(f"mode '{mode}' has no threshold; leave it out, or use 'overlap' or 'nearest'")
        return 0.0
    limit = _DEFAULT_THRESHOLD[mode] if threshold is None else threshold
    if limit <= 0 or (mode == "overlap" and limit > 1):
        allowed = "in (0, 1]" if mode == "overlap" else "above 0"
        raise ValueError(f"the threshold of mode '{mode}' must be {allowed}; got {limit}")
    return limit


class ViewsOptions(Options):
    """Two global views and some local ones per image, and their photometric chain."""

    global_size_px: int = 224
    """Side of a global view, in pixels; a multiple of the backbone's patch size (GLARE, sec. 4)."""
    local_size_px: int = 96
    """Side of a local view, in pixels; a multiple of the backbone's patch size (GLARE, sec. 4)."""
    num_local: int = 10
    """Local views per image; 0 for none (GLARE, sec. 4)."""
    global_scale: tuple[float, float] = (0.25, 1.0)
    """Smallest and largest area of a global crop, as a share of the image (GLARE; DINO has 0.4 to 1)."""
    second_scale: tuple[float, float] | None = None
    """The same for the second global crop, where it differs (FLSL: 0.5 to 1 of the first); None: as `global_scale`."""
    local_scale: tuple[float, float] = (0.05, 0.25)
    """Smallest and largest area of a local crop, as a share of the image (GLARE, sec. 4)."""
    nested: bool = False
    """Cut the second global crop and the local ones out of the first, and count their areas as shares of it (FLSL)."""
    aspect_ratio: tuple[float, float] = (0.75, 4.0 / 3.0)
    """Smallest and largest width / height of a crop, drawn log-uniformly (DINO's code)."""
    hflip_p: float = 0.5
    """Probability that a view is mirrored left-right (DINO's code)."""
    flip_first: bool = True
    """Mirror the first global view as well as the others (LOCA's reference view is never mirrored)."""
    vflip_p: float = 0.0
    """Probability that a view is mirrored top-bottom; 0.5 suits aerial images and microscopy."""
    jitter_p: float = 0.8
    """Probability of the colour jitter (GLARE, sec. 4; as DINO)."""
    brightness: float = 0.4
    """Strength of the brightness jitter: factor uniform in [1 - b, 1 + b], at least 0 (GLARE, sec. 4)."""
    contrast: float = 0.4
    """Strength of the contrast jitter: factor uniform in [1 - c, 1 + c], at least 0 (GLARE, sec. 4)."""
    saturation: float = 0.2
    """Strength of the saturation jitter: factor uniform in [1 - s, 1 + s], at least 0 (GLARE, sec. 4)."""
    hue: float = 0.1
    """Strength of the hue jitter: shift uniform in [-h, h] of a full turn; at most 0.5 (GLARE, sec. 4)."""
    grey_p: float = 0.2
    """Probability that a view becomes grey (GLARE, sec. 4)."""
    blur_p: tuple[float, float, float] = (1.0, 0.1, 0.5)
    """Probability of a Gaussian blur in global view 1, global view 2, and a local view (GLARE, sec. 4)."""
    blur_sigma: tuple[float, float] = (0.1, 2.0)
    """Smallest and largest standard deviation of that blur, in pixels of the view (DINO's code)."""
    solarize_p: tuple[float, float, float] = (0.0, 0.2, 0.0)
    """Probability that levels from 128 on are inverted, in global view 1, 2, and a local view (GLARE)."""
    overlap: Literal["independent", "reject", "shift"] = "independent"
    """How crops of one image relate: drawn independently (DINO), drawn again until they share `min_overlap`
    (advised for images of 2:1), or the second global crop shifted towards the first (UDI)."""
    min_overlap: float = 0.02
    """For `overlap = reject`: area that the two global crops share at least, as a share of the image; a local
    crop shares half of it with at least one global crop (NeCo's code)."""
    executor: Literal["auto", "worker", "device"] = "auto"
    """Where views are made from decoded images: in the data workers, or on the device for a whole batch at once (auto: on
    the device if that is a GPU). The draws are the same; pixels differ by rounding, about half a level."""

    @field_validator("global_size_px", "local_size_px")
    @classmethod
    def _size(cls, value: int) -> int:
        if value <= 0:
            raise ValueError(f"a view has at least one pixel; got {value}, use for example 224 or 96")
        return value

    @field_validator("num_local")
    @classmethod
    def _count(cls, value: int) -> int:
        if value < 0:
            raise ValueError(f"the number of local views is 0 or more; got {value}")
        return value

    @field_validator("global_scale", "second_scale", "local_scale")
    @classmethod
    def _scale(cls, value: tuple[float, float] | None) -> tuple[float, float] | None:
        if value is None:
            return None
        low, high = value
        if not 0.0 < low <= high <= 1.0:
            raise ValueError(f"give smallest and largest area with 0 < smallest <= largest <= 1; got {low} {high}")
        return value

    @field_validator("aspect_ratio", "blur_sigma")
    @classmethod
    def _positive_range(cls, value: tuple[float, float]) -> tuple[float, float]:
        low, high = value
        if not 0.0 < low <= high < float("inf"):
            raise ValueError(f"give two finite numbers with 0 < smallest <= largest; got {low} {high}")
        return value

    @field_validator("hflip_p", "vflip_p", "jitter_p", "grey_p", "min_overlap")
    @classmethod
    def _share(cls, value: float) -> float:
        if not 0.0 <= value <= 1.0:
            raise ValueError(f"a probability or share lies in [0, 1]; got {value}")
        return value

    @field_validator("blur_p", "solarize_p")
    @classmethod
    def _probabilities(cls, value: tuple[float, float, float]) -> tuple[float, float, float]:
        if not all(0.0 <= p <= 1.0 for p in value):
            raise ValueError(f"give three probabilities in [0, 1], for global 1, global 2, local; got {value}")
        return value

    @field_validator("brightness", "contrast", "saturation")
    @classmethod
    def _strength(cls, value: float) -> float:
        if not 0.0 <= value <= 100.0:  # at a factor of 100 nearly every level is black or white
            raise ValueError(f"a jitter strength lies in [0, 100] (0 switches it off); got {value}")
        return value

    @field_validator("hue")
    @classmethod
    def _turn(cls, value: float) -> float:
        if not 0.0 <= value <= 0.5:
            raise ValueError(f"the hue shift is a share of a turn in [0, 0.5]; got {value}")
        return value
