# SPDX-License-Identifier: Apache-2.0
"""DINO's views from torchvision's transforms on PIL images, as its authors published them; and our operations beside them."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence

import torch
import torchvision
from PIL import Image, ImageFilter, ImageOps
from torch import Tensor
from torchvision import transforms
from torchvision.transforms import functional
from torchvision.transforms.functional import pil_to_tensor, to_pil_image

from rekindle.bench.stage import taken
from rekindle.bench.views import decoded, views_of
from rekindle.views.crops import Box
from rekindle.views.on_cpu import CpuExecutor
from rekindle.views.options import ViewsOptions
from rekindle.views.photometric import Photometric
from rekindle.views.plan import ViewPlan

Picture = Image.Image
Operation = Callable[[Picture], Picture]


class TorchvisionViews:
    """Two global and some local views of every image. Overlap rules of ours have no counterpart and are left out."""

    def __init__(self, case: Mapping[str, object]) -> None:
        options, seed = views_of(case), taken(case, "seed", int)
        random.seed(seed)
        torch.manual_seed(seed)  # torchvision draws from the global state
        images = decoded(case)
        self._parity_images = images[:4]
        self._images: list[Picture] = [to_pil_image(image) for image in images]
        self._pipelines = [pipeline(options, min(index, 2)) for index in range(2 + options.num_local)]

    def run(self) -> int:
        """Make the views of every image once."""
        for image in self._images:
            for make in self._pipelines:
                make(image)
        return len(self._images)

    def facts(self) -> dict[str, object]:
        """Version, and how far our single operations are from these."""
        return {"torchvision": torchvision.__version__, "our_difference_in_levels": parity(self._parity_images)}


def pipeline(options: ViewsOptions, kind: int) -> Callable[[Picture], Tensor]:
    """Image to uint8 view [3, S, S] of global view 1, 2 (kind 0, 1) or a local one (2)."""
    side, scale = options.global_size_px, options.global_scale
    if kind == 2:
        side, scale = options.local_size_px, options.local_scale
    bicubic = transforms.InterpolationMode.BICUBIC
    jitter = transforms.ColorJitter(options.brightness, options.contrast, options.saturation, options.hue)
    made: Callable[[Picture], Tensor] = transforms.Compose(
        [
            transforms.RandomResizedCrop(side, scale=scale, ratio=options.aspect_ratio, interpolation=bicubic),
            transforms.RandomHorizontalFlip(options.hflip_p),
            transforms.RandomVerticalFlip(options.vflip_p),
            transforms.RandomApply([jitter], p=options.jitter_p),
            transforms.RandomGrayscale(options.grey_p),
            _Sometimes(
                options.blur_p[kind], lambda p: p.filter(ImageFilter.GaussianBlur(random.uniform(*options.blur_sigma)))
            ),
            _Sometimes(options.solarize_p[kind], ImageOps.solarize),
            transforms.PILToTensor(),
        ]
    )
    return made


class _Sometimes:
    """An operation that happens with a probability."""

    def __init__(self, probability: float, operation: Operation) -> None:
        self._probability = probability
        self._operation = operation

    def __call__(self, image: Picture) -> Picture:
        return self._operation(image) if random.random() < self._probability else image


def parity(images: Sequence[Tensor], side: int = 224) -> dict[str, float]:
    """Mean difference in levels of each of our operations, with fixed parameters, from torchvision's.

    Each photometric operation is given the same resized bytes. torchvision works on PIL images, but on tensors for hue and
    blur, because PIL turns the hue in 256 steps and makes a Gaussian from boxes; the rows marked PIL say how far that is.

    Args: images uint8 [3, H, W]; side, of the views in pixels.
    """
    cases: dict[str, tuple[Photometric, Callable[[Picture], Picture | Tensor]]] = {
        "brightness 0.7": (_jitter("brightness", 0.7), lambda p: functional.adjust_brightness(p, 0.7)),
        "brightness 1.3": (_jitter("brightness", 1.3), lambda p: functional.adjust_brightness(p, 1.3)),
        "contrast 0.7": (_jitter("contrast", 0.7), lambda p: functional.adjust_contrast(p, 0.7)),
        "contrast 1.3": (_jitter("contrast", 1.3), lambda p: functional.adjust_contrast(p, 1.3)),
        "saturation 0.8": (_jitter("saturation", 0.8), lambda p: functional.adjust_saturation(p, 0.8)),
        "saturation 1.2": (_jitter("saturation", 1.2), lambda p: functional.adjust_saturation(p, 1.2)),
        "hue -0.1": (_jitter("hue", -0.1), lambda p: functional.adjust_hue(pil_to_tensor(p), -0.1)),
        "hue 0.05": (_jitter("hue", 0.05), lambda p: functional.adjust_hue(pil_to_tensor(p), 0.05)),
        "hue 0.05 (PIL)": (_jitter("hue", 0.05), lambda p: functional.adjust_hue(p, 0.05)),
        "grey": (Photometric(is_grey=True), lambda p: functional.to_grayscale(p, 3)),
        **{f"blur sigma {sigma}": (Photometric(blur_sigma=sigma), _blur(sigma)) for sigma in (0.5, 1.0, 2.0)},
        "blur sigma 1.0 (PIL)": (Photometric(blur_sigma=1.0), lambda p: p.filter(ImageFilter.GaussianBlur(1.0))),
        "solarise": (Photometric(is_solarized=True), ImageOps.solarize),
    }
    execute = CpuExecutor()
    sums = dict.fromkeys(("crop, resize and flip", *cases), 0.0)
    for image in images:
        height, width = image.shape[1:]
        box = Box(height // 8, width // 5, height // 2, width // 2)
        plan = ViewPlan((height, width), (box,), ((True, False),), (Photometric(),))
        (ours,) = execute(image, plan, [(1, side)])
        resized = functional.resized_crop(
            to_pil_image(image),
            box.top,
            box.left,
            box.height,
            box.width,
            [side, side],
            transforms.InterpolationMode.BICUBIC,
        )
        sums["crop, resize and flip"] += _difference(ours[0], functional.hflip(resized))
        view = pil_to_tensor(resized)
        whole = Box(0, 0, side, side)
        for name, (chain, operation) in cases.items():
            (ours,) = execute(view, ViewPlan((side, side), (whole,), ((False, False),), (chain,)), [(1, side)])
            sums[name] += _difference(ours[0], operation(resized))
    return {name: total / len(images) for name, total in sums.items()}


def _blur(sigma: float) -> Callable[[Picture], Tensor]:
    return lambda picture: functional.gaussian_blur(pil_to_tensor(picture), [13, 13], [sigma, sigma])


def _jitter(name: str, value: float) -> Photometric:
    return Photometric(jitter=((name, value),))  # type: ignore[arg-type]


def _difference(ours: Tensor, theirs: Picture | Tensor) -> float:
    levels = theirs if isinstance(theirs, Tensor) else pil_to_tensor(theirs)
    return float((ours.float() - levels.float()).abs().mean())
