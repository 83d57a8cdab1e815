# SPDX-License-Identifier: Apache-2.0
"""The executor for a device, against that of a data worker on the same plans; on a CPU, where both can run."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from rekindle.views import on_device
from rekindle.views.batch import Crops, ViewBatch
from rekindle.views.crops import Box
from rekindle.views.multicrop import MultiCrop, PlanCrop, view_maker
from rekindle.views.on_cpu import CpuExecutor
from rekindle.views.on_device import DeviceExecutor, make_views, resize_weights, turn_hue
from rekindle.views.options import ViewsOptions
from rekindle.views.photometric import Photometric
from rekindle.views.plan import ViewPlan
from tests.views.scenes import noise, reference, scene

OPTIONS = ViewsOptions(global_size_px=64, local_size_px=32, num_local=4, vflip_p=0.3, solarize_p=(0.2, 0.2, 0.2))


def made(maker: MultiCrop | PlanCrop, images: list[Tensor], seed: int) -> ViewBatch:
    drawn = [(i, (), maker(image, torch.Generator().manual_seed(seed + i))) for i, image in enumerate(images)]
    batch = maker.collate(drawn)  # type: ignore[arg-type]
    return batch if isinstance(batch, ViewBatch) else DeviceExecutor(OPTIONS)(batch)


def test_both_executors_make_the_same_views_of_images_of_several_sizes() -> None:
    images = [scene(90, 120, 1), scene(150, 70, 2), scene(64, 64, 3), scene(33, 200, 4)]
    means, levels = [], []
    for seed in range(0, 60, 10):
        worker, device = made(MultiCrop(OPTIONS), images, seed), made(PlanCrop(OPTIONS), images, seed)
        assert worker.image_index.tolist() == device.image_index.tolist()
        assert worker.local_views is not None
        assert device.local_views is not None
        for a, b in ((worker.global_views, device.global_views), (worker.local_views, device.local_views)):
            assert a.pixels.dtype == b.pixels.dtype == torch.uint8
            assert a.pixels.shape == b.pixels.shape
            for name in Crops.__dataclass_fields__:
                assert torch.equal(getattr(a.crops, name), getattr(b.crops, name)), name
            wrong = (a.pixels.int() - b.pixels.int()).abs().float()
            means += wrong.mean((2, 3, 4)).flatten().tolist()
            levels.append(wrong.flatten())
    assert sum(means) / len(means) < 0.5
    assert max(means) < 1  # of a single view
    everything = torch.cat(levels)
    assert float((everything > 3).float().mean()) < 0.001
    assert float(everything.max()) <= 8


@pytest.mark.parametrize(
    "chain",
    [
        Photometric(),
        Photometric(jitter=(("brightness", 1.3),)),
        Photometric(jitter=(("contrast", 0.7),)),
        Photometric(jitter=(("saturation", 1.2),)),
        Photometric(jitter=(("hue", -0.42),)),
        Photometric(jitter=(("hue", 0.08), ("contrast", 1.4), ("brightness", 0.8), ("saturation", 0.8))),
        Photometric(is_grey=True),
        Photometric(blur_sigma=0.4),
        Photometric(blur_sigma=1.9),
        Photometric(is_solarized=True),
    ],
)
@pytest.mark.parametrize("picture", [scene(48, 48), noise(48, 48)], ids=["scene", "noise"])
def test_each_operation_is_torchvisions(picture: Tensor, chain: Photometric) -> None:
    plan = ViewPlan((48, 48), (Box(0, 0, 48, 48),), ((False, False),), (chain,))
    view = make_views(picture[None], [plan], [0], 48)[0, 0]
    wrong = (view.double() - reference(picture, chain)).abs()
    assert float(wrong.mean()) < 0.3
    assert float(wrong.max()) < 1.1


@pytest.mark.parametrize("box", [Box(0, 0, 60, 80), Box(7, 11, 20, 31), Box(30, 40, 3, 2), Box(59, 79, 1, 1)])
@pytest.mark.parametrize("flip", [(False, False), (True, False), (False, True)])
def test_resize_is_torchs_antialiased_bicubic_in_both_executors(box: Box, flip: tuple[bool, bool]) -> None:
    picture = 40 + scene(60, 80) // 2  # away from black and white, where bytes are cut after each pass
    plan = ViewPlan((60, 80), (box,), (flip,), (Photometric(),))
    crop = picture[None, :, box.top : box.top + box.height, box.left : box.left + box.width].float()
    wanted = F.interpolate(crop, (24, 24), mode="bicubic", antialias=True).clamp(0, 255)[0]
    wanted = wanted.flip([axis for axis, is_flipped in zip((2, 1), flip, strict=True) if is_flipped])
    for view in (make_views(picture[None], [plan], [0], 24)[0, 0], CpuExecutor()(picture, plan, [(1, 24)])[0][0]):
        assert float((view.float() - wanted).abs().mean()) < 0.5
        assert float((view.float() - wanted).abs().max()) < 2


def test_resize_weights_stay_inside_the_crop_and_sum_to_one() -> None:
    start, extent, mirrored = (torch.tensor([[value, other]]) for value, other in ((3.0, 0.0), (5.0, 40.0), (0.0, 1.0)))
    weights = resize_weights(start, extent, mirrored, 40, 8)
    torch.testing.assert_close(weights.sum(-1), torch.ones(1, 2, 8))
    assert not weights[0, 0, :, :3].any()
    assert not weights[0, 0, :, 8:].any()
    torch.testing.assert_close(weights[0, 1], weights[0, 1].flip(0, 1))  # a whole axis looks the same from its end


def test_a_full_turn_in_parts_ends_where_it_began() -> None:
    picture = noise(16, 16)[None].float()
    turned = picture
    for part in (0.07, 0.33, 0.1, 0.5):
        turned = turn_hue(turned, torch.tensor([part]).view(1, 1, 1, 1))
    torch.testing.assert_close(turned, picture, atol=0.01, rtol=0)


def test_views_do_not_depend_on_how_many_are_made_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    images = [scene(50, 60, 1), scene(40, 80, 2)]
    together = made(PlanCrop(OPTIONS), images, 0)
    monkeypatch.setattr(on_device, "_BYTES_AT_ONCE", 1)
    apart = made(PlanCrop(OPTIONS), images, 0)
    assert together.local_views is not None
    assert apart.local_views is not None
    for a, b in ((together.global_views, apart.global_views), (together.local_views, apart.local_views)):
        assert float((a.pixels.int() - b.pixels.int()).abs().float().mean()) < 0.01  # sums in another order


def test_auto_leaves_the_views_to_a_gpu_only() -> None:
    options = ViewsOptions()
    assert options.executor == "auto"
    assert isinstance(view_maker(options, on_gpu=True), PlanCrop)
    assert isinstance(view_maker(options, on_gpu=False), MultiCrop)
    for executor, kind in (("worker", MultiCrop), ("device", PlanCrop)):
        for on_gpu in (True, False):
            assert isinstance(view_maker(options.model_copy(update={"executor": executor}), on_gpu=on_gpu), kind)


def test_no_local_views_is_none_and_what_was_skipped_is_kept() -> None:
    options = OPTIONS.model_copy(update={"num_local": 0})
    plan = PlanCrop(options)
    batch = plan.collate([(4, (2, 3), plan(scene(40, 50), torch.Generator().manual_seed(0)))])
    views = DeviceExecutor(options)(batch)
    assert views.local_views is None
    assert views.skipped == (2, 3)
    assert views.image_index.tolist() == [4]
