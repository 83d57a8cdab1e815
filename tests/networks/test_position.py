# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from timm.layers.pos_embed import resample_abs_pos_embed

from rekindle.networks.position import PositionMode, interpolate_positions
from tests.networks.reference import dino_positions

MODES: tuple[PositionMode, ...] = ("dino", "size", "antialias")


def _table(prefix: int = 2, side: int = 14) -> torch.Tensor:
    return torch.randn(1, prefix + side * side, 5, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("mode", MODES)
def test_native_grid_returns_the_table_itself(mode: PositionMode) -> None:
    table = _table()
    assert interpolate_positions(table, (14, 14), (14, 14), num_prefix=2, mode=mode) is table


@pytest.mark.parametrize("grid", [(6, 6), (32, 32), (7, 14), (14, 20), (1, 3)])
def test_dino_mode_matches_its_closed_form_and_keeps_prefix_rows(grid: tuple[int, int]) -> None:
    table = _table()
    result = interpolate_positions(table, grid, (14, 14), num_prefix=2, mode="dino")
    assert torch.equal(result[:, :2], table[:, :2])
    torch.testing.assert_close(result[:, 2:], dino_positions(table[:, 2:], 14, grid), rtol=1e-4, atol=1e-5)


def test_dino_mode_is_interpolate_with_scale_factors() -> None:
    table = _table(prefix=0)
    image = table.reshape(1, 14, 14, 5).permute(0, 3, 1, 2)
    expected = F.interpolate(image, scale_factor=(6.1 / 14, 9.1 / 14), mode="bicubic").permute(0, 2, 3, 1)
    result = interpolate_positions(table, (6, 9), (14, 14), num_prefix=0, mode="dino")
    torch.testing.assert_close(result, expected.reshape(1, 54, 5))


@pytest.mark.parametrize("side", [*range(1, 14), *range(15, 80)])
def test_dino_mode_yields_the_asked_grid_for_every_side(side: int) -> None:
    for native in (14, 16, 37):
        result = interpolate_positions(_table(0, native), (side, side), (native, native), num_prefix=0, mode="dino")
        assert result.shape[1] == side * side


def test_antialias_mode_is_timms_default() -> None:
    table = _table()
    expected = resample_abs_pos_embed(table, [6, 6], [14, 14], num_prefix_tokens=2)
    result = interpolate_positions(table, (6, 6), (14, 14), num_prefix=2, mode="antialias")
    torch.testing.assert_close(result, expected)


def test_modes_are_not_interchangeable_on_white_noise() -> None:
    dino, size, antialias = (interpolate_positions(_table(0), (6, 6), (14, 14), num_prefix=0, mode=m) for m in MODES)
    level = _table(0).abs().mean()
    assert 0.15 < (dino - size).abs().mean() / level < 0.35
    assert 0.5 < (dino - antialias).abs().mean() / level < 0.9


def test_bfloat16_table_is_resampled_in_float32() -> None:
    table = _table().bfloat16()
    result = interpolate_positions(table, (6, 6), (14, 14), num_prefix=2, mode="dino")
    wide = interpolate_positions(table.float(), (6, 6), (14, 14), num_prefix=2, mode="dino")
    assert torch.equal(result, wide.bfloat16())


def test_wrong_row_count_is_named() -> None:
    with pytest.raises(ValueError, match=r"198 rows; expected 1 prefix rows .* = 197"):
        interpolate_positions(_table(), (6, 6), (14, 14), num_prefix=1, mode="dino")


def test_480_px_have_900_patches_and_224_px_the_table_as_it_is() -> None:
    """MMC, property 23; the class token's row never changes."""
    table = torch.randn(1, 197, 8, generator=torch.Generator().manual_seed(0))
    assert torch.equal(interpolate_positions(table, (14, 14), (14, 14), num_prefix=1, mode="size"), table)
    large = interpolate_positions(table, (480 // 16, 480 // 16), (14, 14), num_prefix=1, mode="size")
    assert large.shape == (1, 1 + 900, 8)
    assert torch.equal(large[:, 0], table[:, 0])
