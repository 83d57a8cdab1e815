# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pickle

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


def test_views_without_photometry_are_the_resized_flipped_crops_as_bytes() -> None:
    options = PLAIN.model_copy(update={"vflip_p": 0.5})
    picture = 60 + image() // 2  # away from black and white: on bytes each pass of the resize is clamped
    for seed in range(4):
        views = MultiCrop(options)(picture, generator(seed))
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
                assert view.dtype == torch.uint8
                assert float((view.float() - cut).abs().mean()) < 1.0
                assert float((view.float() - cut).abs().max()) < 2.0


def test_equal_generators_give_equal_views_and_the_global_state_is_neither_used_nor_changed() -> None:
    transform = MultiCrop(SMALL)
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
        MultiCrop(SMALL)(picture, generator(0))
        assert torch.equal(picture, copy)


@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 50), (3, 2)])
def test_tiny_images_give_views_of_their_colours(height: int, width: int) -> None:
    flat = torch.full((3, height, width), 90, dtype=torch.uint8)
    for seed in range(5):
        views = MultiCrop(PLAIN)(flat, generator(seed))
        assert views.global_pixels.shape == (2, 3, 32, 32)
        assert (views.global_pixels == 90).all()
        assert MultiCrop(SMALL)(image(height, width), generator(seed)).global_pixels.shape == (2, 3, 32, 32)


def test_collation_puts_views_first_and_gathers_what_was_skipped() -> None:
    transform = MultiCrop(SMALL)
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
    transform = MultiCrop(SMALL.model_copy(update={"num_local": 0}))
    assert collate_views([(0, (), transform(image(), generator(0)))]).local_views is None


def test_how_an_image_lies_in_memory_does_not_matter() -> None:
    picture = image()
    by_pixel = picture.permute(1, 2, 0).contiguous().permute(2, 0, 1)
    within = torch.zeros(3, 50, 70, dtype=torch.uint8)
    within[:, 5:45, 7:63] = picture
    wanted = MultiCrop(SMALL)(picture, generator(1))
    for other in (by_pixel, within[:, 5:45, 7:63]):
        assert torch.equal(MultiCrop(SMALL)(other, generator(1)).global_pixels, wanted.global_pixels)


def test_a_crop_that_reaches_the_last_pixel_holds_its_colour() -> None:
    options = PLAIN.model_copy(update={"global_scale": (1.0, 1.0), "hflip_p": 0.0, "aspect_ratio": (1.0, 1.0)})
    picture = torch.zeros(3, 32, 32, dtype=torch.uint8)
    picture[:, 31, 31] = torch.tensor([250, 3, 99])
    view = MultiCrop(options)(picture, generator(0)).global_pixels[0]
    assert view[:, 31, 31].tolist() == [250, 3, 99]
    assert not view[:, :31].any()


def test_the_number_of_threads_does_not_change_a_byte() -> None:
    options = ViewsOptions(num_local=2)  # large enough for torch to share an operation among threads
    picture, before = image(300, 400), torch.get_num_threads()
    views = []
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            views.append(MultiCrop(options)(picture, generator(5)).global_pixels)
    finally:
        torch.set_num_threads(before)
    assert torch.equal(*views)


def test_views_stay_what_they_are_when_the_next_image_is_cut() -> None:
    transform = MultiCrop(SMALL)
    first = transform(image(), generator(0))
    kept = first.global_pixels.clone()
    transform(255 - image(), generator(1))
    assert torch.equal(first.global_pixels, kept)


def test_views_can_be_learnt_from() -> None:
    views = MultiCrop(SMALL)(image(), generator(0))
    for pixels in (views.global_pixels, views.local_pixels):
        assert pixels is not None
        weight = torch.ones((), requires_grad=True)
        (slope,) = torch.autograd.grad((weight * pixels).sum(), weight)  # refused for what inference mode makes
        assert slope == pixels.sum()


def test_a_used_transform_travels_to_another_process() -> None:
    transform = MultiCrop(SMALL)
    wanted = transform(image(), generator(2))
    packed = pickle.dumps(transform)
    assert len(packed) < 2000  # without the memory of its work
    assert torch.equal(pickle.loads(packed)(image(), generator(2)).global_pixels, wanted.global_pixels)


def test_normalisation_is_the_usual_one_and_is_done_once() -> None:
    transform = MultiCrop(SMALL)
    batch = collate_views([(0, (), transform(image(), generator(0)))])
    normalised = batch.normalised(MEAN, STD)
    assert normalised.local_views is not None
    assert batch.local_views is not None
    mean, std = (torch.tensor(values, dtype=torch.float64)[:, None, None] for values in (MEAN, STD))
    for done, bytes_ in ((normalised.global_views, batch.global_views), (normalised.local_views, batch.local_views)):
        assert done.pixels.dtype == torch.float32
        wanted = (bytes_.pixels.double() / 255 - mean) / std
        torch.testing.assert_close(done.pixels.double(), wanted, atol=1e-6, rtol=1e-6)
        assert torch.equal(done.crops.top, bytes_.crops.top)
    with pytest.raises(ValueError, match="normalised already"):
        normalised.normalised(MEAN, STD)
    with pytest.raises(ValueError, match="three numbers each, std above 0"):
        batch.normalised(MEAN, (0.2, 0.2, 0.0))
