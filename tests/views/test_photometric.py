# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import torch

from rekindle.views.crops import UniformStream
from rekindle.views.options import ViewsOptions
from rekindle.views.photometric import draw_photometric


def test_draws_follow_the_options_of_each_kind_of_view() -> None:
    options = ViewsOptions()
    uniform = UniformStream(torch.Generator().manual_seed(0))
    chains = [[draw_photometric(options, index, uniform) for _ in range(2000)] for index in (0, 1, 5)]

    def share(kind: int, name: str) -> float:
        return sum(bool(getattr(c, name)) for c in chains[kind]) / 2000

    assert [round(share(kind, "blur_sigma"), 1) for kind in range(3)] == [1.0, 0.1, 0.5]
    assert [round(share(kind, "is_solarized"), 1) for kind in range(3)] == [0.0, 0.2, 0.0]
    assert abs(share(0, "is_grey") - 0.2) < 0.03
    assert abs(share(1, "jitter") - 0.8) < 0.03
    values: dict[str, list[float]] = {}
    orders = set()
    for chain in chains[0]:
        orders.add(tuple(name for name, _ in chain.jitter))
        for name, value in chain.jitter:
            values.setdefault(name, []).append(value)
    assert len(orders) == 25  # every order of four, and no jitter
    spans = {"brightness": (0.6, 1.4), "contrast": (0.6, 1.4), "saturation": (0.8, 1.2), "hue": (-0.1, 0.1)}
    for step, (low, high) in spans.items():
        assert low <= min(values[step]) < low + 0.02
        assert high - 0.02 < max(values[step]) <= high
    sigmas = [c.blur_sigma for c in chains[0]]
    assert 0.1 <= min(sigmas) < 0.12
    assert 1.95 < max(sigmas) <= 2.0


def test_a_strength_of_zero_leaves_its_step_out() -> None:
    options = ViewsOptions(jitter_p=1, brightness=0, hue=0)
    chain = draw_photometric(options, 0, UniformStream(torch.Generator().manual_seed(0)))
    assert sorted(name for name, _ in chain.jitter) == ["contrast", "saturation"]
