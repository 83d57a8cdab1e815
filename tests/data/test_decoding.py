# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import io
import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from rekindle.data.decoding import UnreadableImage, image_size, read_image


def colours(height: int = 6, width: int = 8) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def saved(image: Image.Image, kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def expected(levels: object) -> Tensor:
    """[H, W, 3] or [H, W] -> [3, H, W]."""
    array = torch.as_tensor(np.array(levels, dtype=np.uint8))
    return array.permute(2, 0, 1) if array.ndim == 3 else array.expand(3, -1, -1)


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "PPM"])
def test_lossless_colour_files_are_read_exactly(kind: str) -> None:
    pixels = read_image(saved(Image.fromarray(colours()), kind))
    assert pixels.dtype == torch.uint8
    assert torch.equal(pixels, expected(colours()))
    assert pixels[None].is_contiguous(memory_format=torch.channels_last)


def test_grey_one_bit_and_palette_become_three_channels() -> None:
    grey = Image.fromarray(colours()[..., 0])
    assert torch.equal(read_image(saved(grey, "PNG")), expected(colours()[..., 0]))
    bits = Image.fromarray(colours()[..., 0] > 127)
    assert torch.equal(read_image(saved(bits, "PNG")), expected((colours()[..., 0] > 127) * 255))
    palette = Image.fromarray(colours()).quantize(16)
    assert torch.equal(read_image(saved(palette, "PNG")), expected(palette.convert("RGB")))


def test_transparent_pixels_are_composited_on_black() -> None:
    alpha = np.zeros((6, 8, 1), np.uint8)
    alpha[:, 4:] = 255
    rgba = Image.fromarray(np.concatenate([colours(), alpha], 2))
    assert torch.equal(read_image(saved(rgba, "PNG")), expected(colours() * (alpha > 0)))
    grey = Image.fromarray(np.concatenate([colours()[..., :1], alpha], 2), "LA")
    assert torch.equal(read_image(saved(grey, "PNG")), expected(colours()[..., 0] * (alpha[..., 0] > 0)))
    palette = Image.fromarray(np.arange(4, dtype=np.uint8)[None], "P")
    palette.putpalette([10, 20, 30, 40, 50, 60, 70, 80, 90, 100, 110, 120])
    clear = read_image(saved(palette, "PNG", transparency=bytes([255, 0, 255, 255])))
    assert clear[0, 0].tolist() == [10, 0, 70, 100]


def test_cmyk_becomes_rgb() -> None:
    flat = Image.new("CMYK", (8, 8), (0, 255, 255, 0))
    red = read_image(saved(flat, "TIFF"))
    assert (red[0] > 200).all()
    assert (red[1:] < 60).all()


def test_sixteen_bit_grey_is_scaled_and_not_clipped() -> None:
    values = np.array([[0, 257, 25700, 65535]], np.uint16)
    for kind in ("PNG", "TIFF", "PPM"):
        assert read_image(saved(Image.fromarray(values), kind))[2, 0].tolist() == [0, 1, 100, 255]


def test_wide_integers_and_floats_are_stretched_over_their_finite_range() -> None:
    floats = Image.fromarray(np.array([[-1.0, 0.0, 1.0, np.nan, np.inf]], np.float32))
    assert read_image(saved(floats, "TIFF"))[0, 0].tolist() == [0, 128, 255, 0, 255]
    integers = Image.fromarray(np.array([[100_000, 150_000, 200_000]], np.int32))
    assert read_image(saved(integers, "TIFF"))[1, 0].tolist() == [0, 128, 255]
    constant = Image.fromarray(np.full((2, 2), 7.5, np.float32))
    assert not read_image(saved(constant, "TIFF")).any()


def test_exif_orientation_is_applied_to_pixels_and_size(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was held upright: turn clockwise
    path = tmp_path / "turned.png"
    Image.fromarray(colours()).save(path, exif=exif)
    assert torch.equal(read_image(str(path)), expected(np.rot90(colours(), -1)))
    assert image_size(str(path)) == (8, 6)


def test_an_animation_gives_its_first_frame() -> None:
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
    data = saved(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert read_image(data)[:, 0, 0].tolist() == [255, 0, 0]


def test_a_large_jpeg_is_drafted_to_no_less_than_asked_for() -> None:
    data = saved(Image.new("RGB", (800, 400), (10, 200, 30)), "JPEG")
    assert read_image(data).shape == (3, 400, 800)
    assert read_image(data, draft_px=100).shape == (3, 100, 200)
    assert read_image(data, draft_px=101).shape == (3, 200, 400)
    assert read_image(data, draft_px=401).shape == (3, 400, 800)


def broken_files() -> dict[str, Callable[[], bytes]]:
    noise = np.random.default_rng(1).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    return {
        "empty": lambda: b"",
        "text": lambda: b"this is not an image at all",
        "cut jpeg": lambda: saved(Image.fromarray(noise), "JPEG")[:1500],
        "cut png": lambda: saved(Image.fromarray(noise), "PNG")[:5000],
        "cut tiff": lambda: saved(Image.fromarray(noise), "TIFF")[:5000],
        "cut gif": lambda: saved(Image.fromarray(noise), "GIF")[:1200],
        "cut webp": lambda: saved(Image.fromarray(noise), "WEBP")[:900],
        "header only": lambda: saved(Image.fromarray(noise), "PNG")[:40],
        "bomb": lambda: saved(Image.new("1", (20_000, 10_000)), "PNG"),
    }


@pytest.mark.parametrize("case", broken_files())
def test_a_broken_file_is_unreadable_with_its_path_and_reason(case: str, tmp_path: Path) -> None:
    path = tmp_path / "broken.jpg"
    path.write_bytes(broken_files()[case]())
    with pytest.raises(UnreadableImage) as error:
        read_image(str(path))
    assert error.value.name == str(path)
    assert str(path) in str(error.value)
    assert error.value.reason
    if case == "bomb":
        assert "decompression bomb" in error.value.reason
    if case in ("empty", "text"):
        assert "not an image" in error.value.reason


def test_mutated_files_are_read_or_unreadable_and_nothing_else() -> None:
    source = np.random.default_rng(2)
    for kind in ("JPEG", "PNG", "TIFF", "GIF", "BMP"):
        whole = np.frombuffer(saved(Image.fromarray(colours(24, 24)), kind), np.uint8)
        for _ in range(40):
            data = whole.copy()
            data[source.integers(0, len(data), 4)] = source.integers(0, 256, 4)
            try:
                assert read_image(data.tobytes(), max_pixels=10**6).shape[0] == 3
            except UnreadableImage:
                continue


def test_an_image_above_the_limit_is_refused_before_decoding() -> None:
    data = saved(Image.new("1", (10_000, 10_000)), "PNG")  # Pillow itself would only warn
    with pytest.raises(UnreadableImage, match=r"10000 x 10000 px exceed data\.max_pixels = 1000000"):
        read_image(data, name="big", max_pixels=1_000_000)


def test_a_missing_file_is_called_missing(tmp_path: Path) -> None:
    for function in (read_image, image_size):
        with pytest.raises(UnreadableImage, match="the file does not exist"):
            function(str(tmp_path / "absent.png"))


def test_the_error_survives_the_way_out_of_a_worker() -> None:
    error = pickle.loads(pickle.dumps(UnreadableImage("a.jpg", "cut short")))
    assert (error.name, error.reason) == ("a.jpg", "cut short")
    assert "a.jpg: cannot be read as an image: cut short" in str(error)
