# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from rekindle.views.multicrop import MultiCrop, collate_views
from rekindle.views.options import ViewsOptions

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SMALL = ViewsOptions(global_size_px=32, local_size_px=16, num_local=3)
PLAIN = SMALL.model_copy(
    update={"jitter_p": 0.0, "grey_p": 0.0, "blur_p": (0.0, 0.0, 0.0), "solarize_p": (0.0, 0.0, 0.0)}
)


def image(height: int = 40, width: int = 56) -> Tensor:
    return torch.randint(0, 256, (3, height, width), dtype=torch.uint8, generator=torch.Generator().manual_seed(9))


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_views_without_photometry_are_the_resized_flipped_normalised_crops() -> None:
    options = PLAIN.model_copy(update={"vflip_p": 0.5})
    picture = 60 + image() // 2  # away from black and white: on bytes each pass of the resize is clamped
    mean, std = torch.tensor(MEAN)[:, None, None], torch.tensor(STD)[:, None, None]
    for seed in range(4):
        views = MultiCrop(options, MEAN, STD)(picture, generator(seed))
        assert views.local_pixels is not None
        assert views.local_crops is not None
        for pixels, crops in (
            (views.global_pixels, views.global_crops),
            (views.local_pixels, views.local_crops),
        ):
            for index, view in enumerate(pixels):
                top, height = (round(float(v[index]) * 40) for v in (crops.top, crops.height))
                left, width = (round(float(v[index]) * 56) for v in (crops.left, crops.width))
                cut = picture[None, :, top : top + height, left : left + width].float()
                side = view.shape[-1]
                cut = F.interpolate(cut, (side, side), mode="bicubic", antialias=True).clamp(0, 255)[0]
                cut = cut.flip(2) if crops.flipped[index] else cut
                cut = cut.flip(1) if crops.flipped_vertically[index] else cut
                shown = view * std + mean
                assert float((shown * 255 - cut).abs().mean()) < 1.0
                assert float((shown * 255 - cut).abs().max()) < 2.0


def test_equal_generators_give_equal_views_and_the_global_state_is_neither_used_nor_changed() -> None:
    transform = MultiCrop(SMALL, MEAN, STD)
    torch.manual_seed(1)
    before = torch.random.get_rng_state()
    first = transform(image(), generator(3))
    assert torch.equal(before, torch.random.get_rng_state())
    torch.manual_seed(2)
    second = transform(image(), generator(3))
    assert torch.equal(first.global_pixels, second.global_pixels)
    assert first.local_pixels is not None
    assert second.local_pixels is not None
    assert torch.equal(first.local_pixels, second.local_pixels)
    assert not torch.equal(first.global_pixels, transform(image(), generator(4)).global_pixels)


def test_the_image_is_left_as_it_is() -> None:
    for picture in (image(), image().permute(1, 2, 0).contiguous().permute(2, 0, 1)):
        copy = picture.clone()
        MultiCrop(SMALL, MEAN, STD)(picture, generator(0))
        assert torch.equal(picture, copy)


@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 50), (3, 2)])
def test_tiny_images_give_finite_views(height: int, width: int) -> None:
    for seed in range(5):
        views = MultiCrop(SMALL, MEAN, STD)(image(height, width), generator(seed))
        assert views.global_pixels.shape == (2, 3, 32, 32)
        assert torch.isfinite(views.global_pixels).all()


def test_collation_puts_views_first_and_gathers_what_was_skipped() -> None:
    transform = MultiCrop(SMALL, MEAN, STD)
    samples = [(7, (5, 6), transform(image(), generator(0))), (2, (), transform(image(20, 30), generator(1)))]
    batch = collate_views(samples)
    assert len(batch) == 2
    assert batch.image_index.tolist() == [7, 2]
    assert batch.skipped == (5, 6)
    assert batch.global_views.pixels.shape == (2, 2, 3, 32, 32)
    assert batch.local_views is not None
    assert batch.local_views.pixels.shape == (3, 2, 3, 16, 16)
    for place, (_, _, single) in enumerate(samples):
        assert torch.equal(batch.global_views.pixels[1, place], single.global_pixels[1])
        assert torch.equal(batch.global_views.crops.top[:, place], single.global_crops.top)
        assert single.local_crops is not None
        assert torch.equal(batch.local_views.crops.flipped[:, place], single.local_crops.flipped)


def test_no_local_views_is_none() -> None:
    transform = MultiCrop(SMALL.model_copy(update={"num_local": 0}), MEAN, STD)
    assert collate_views([(0, (), transform(image(), generator(0)))]).local_views is None


def test_a_wrong_normalisation_is_refused() -> None:
    with pytest.raises(ValueError, match="three numbers each, std above 0"):
        MultiCrop(SMALL, MEAN, (0.2, 0.2, 0.0))
