# SPDX-License-Identifier: Apache-2.0
"""Stage of a benchmark: what its sides share, the case, one fixed batch of views, the work of a call."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import torch
from torch.utils.flop_counter import FlopCounterMode

from rekindle.bench.counting import FLOP_FORMULAS
from rekindle.core.rng import generator
from rekindle.networks.checkpoints.architecture import Architecture, is_grammar, parse_arch
from rekindle.views.batch import Crops, ViewBatch, Views
from rekindle.views.crops import UniformStream, sample_boxes
from rekindle.views.options import ViewsOptions

T = TypeVar("T")


def taken(case: Mapping[str, object], name: str, kind: type[T]) -> T:
    """The value of the case under `name`, which must be of type `kind`."""
    value: Any = case[name]
    assert isinstance(value, kind), f"case[{name!r}] = {value!r} is not of type {kind.__name__}"
    return value


def case_device(case: Mapping[str, object]) -> torch.device:
    """The device that the case names: "cpu" or "cuda"."""
    return torch.device(taken(case, "device", str))


def settle(device: torch.device) -> None:
    """Wait until the device has done what it was asked to, so that a clock sees it."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def architecture_of(case: Mapping[str, object]) -> Architecture:
    """The case's backbone as sizes, for a peer that builds its own. Raises ValueError if it is not vit:width=..."""
    name = taken(case, "backbone", str)
    if not is_grammar(name) or not name.startswith("vit:"):
        raise ValueError(f"peers build a plain ViT of their own, so --backbone must be vit:width=...; got '{name}'")
    return parse_arch(name)


def fixed_views(case: Mapping[str, object]) -> ViewBatch:
    """One batch of views: normalised pixels drawn at random, cut where training would cut them. On the case's device.

    All sides of a case see the same numbers: they depend on its seed, batch size, image size and views alone.
    """
    seed, batch = taken(case, "seed", int), taken(case, "batch_size", int)
    options = ViewsOptions.model_validate(case["views"])
    size = (taken(case, "height", int), taken(case, "width", int))
    uniform = UniformStream(generator(seed, "bench crops"))
    boxes = [sample_boxes(size, options, uniform) for _ in range(batch)]
    edges = torch.tensor(
        [[(b.top / size[0], b.left / size[1], b.height / size[0], b.width / size[1]) for b in row] for row in boxes]
    ).transpose(0, 1)  # [V, B, 4]
    mirrored = torch.rand(edges.shape[:2], generator=generator(seed, "bench flips")) < options.hflip_p
    top, left, extent_y, extent_x = edges.unbind(-1)
    crops = Crops(
        top, left, extent_y, extent_x, mirrored, torch.zeros_like(mirrored), *[torch.full_like(top, 512.0)] * 2
    )
    source = generator(seed, "bench pixels")

    def views(first: int, last: int, side: int) -> Views:
        return Views(torch.randn(last - first, batch, 3, side, side, generator=source), crops[first:last])

    large = views(0, 2, options.global_size_px)
    small = views(2, 2 + options.num_local, options.local_size_px) if options.num_local else None
    return ViewBatch(large, small, torch.arange(batch)).to(case_device(case))


def view_list(batch: ViewBatch) -> list[torch.Tensor]:
    """The views as the peers take them: [B, 3, S, S] each, large ones first."""
    groups = [batch.global_views] if batch.local_views is None else [batch.global_views, batch.local_views]
    return [view for group in groups for view in group.pixels]


def count_flops(call: Callable[[], object]) -> int:
    """Floating point operations of one call, 2 for a multiply-add: matrix products, convolutions, attention."""
    with FlopCounterMode(display=False, custom_mapping=FLOP_FORMULAS) as counter:
        call()
    return int(counter.get_total_flops())


def device_facts(device: torch.device) -> dict[str, object]:
    """Name and peak memory of a GPU; nothing for a CPU, whose memory the bench watches from outside."""
    if device.type != "cuda":
        return {}
    return {"gpu": torch.cuda.get_device_name(device), "gpu_peak_bytes": torch.cuda.max_memory_allocated(device)}
