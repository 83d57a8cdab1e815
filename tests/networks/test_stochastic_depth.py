# SPDX-License-Identifier: Apache-2.0
"""Stochastic depth that skips what is dropped, against computing everything and multiplying by zero."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from rekindle.adapters.attach import attach
from rekindle.adapters.options import AdapterOptions
from rekindle.networks import stochastic_depth
from rekindle.networks.backbone import Backbone
from rekindle.networks.blocks import BlockPass, run_block
from rekindle.networks.checkpoints.create import create_backbone
from rekindle.networks.options import NetworkOptions
from rekindle.networks.stochastic_depth import BranchPath, draw_paths

PLAIN = "vit:width=32,depth=3,heads=2,patch=8,img=32"
ROTARY = "dinov3:width=32,depth=3,heads=2,patch=8,img=32"


def _backbone(arch: str = PLAIN, drop_path: float = 0.6) -> Backbone:
    backbone, _ = create_backbone(arch, NetworkOptions(), init="random", drop_path=drop_path)
    torch.manual_seed(0)
    for parameter in backbone.parameters():  # zero biases and tokens near zero would hide mistakes
        nn.init.normal_(parameter, std=0.2)
    return backbone.double().train()


def test_it_drops_whole_branches_of_images_and_scales_what_it_keeps() -> None:
    """As timm's modules do: factor 0 or 1 / p per image and branch, independent, and 1 on average."""
    torch.manual_seed(0)
    keep = torch.tensor([1.0, 0.8, 0.5, 0.9])
    paths = [path for pair in draw_paths(keep, 4000, skip=True) for path in pair]
    drawn = torch.stack([path.factor for path in paths])[..., 0, 0]  # [4, N]
    for row, p in zip(drawn, keep.tolist(), strict=True):
        torch.testing.assert_close(row.unique(), torch.tensor([0.0, 1 / p])[0 if p < 1 else 1 :])
        assert float((row > 0).float().mean()) == pytest.approx(p, abs=0.03)
    together = ((drawn[1] > 0) & (drawn[2] > 0)).float().mean()
    assert float(together) == pytest.approx(0.4, abs=0.04)
    assert paths[0].kept is None  # nothing is dropped
    for path, p in zip(paths[1:], keep[1:].tolist(), strict=True):
        assert path.kept is not None and torch.equal(path.kept, path.factor.flatten().nonzero()[:, 0])
        assert path.scale == pytest.approx(1 / p)
    assert all(path.kept is None for pair in draw_paths(keep, 4000) for path in pair)


def test_a_branch_that_every_image_drops_is_computed_for_its_zero_gradient() -> None:
    paths = draw_paths(torch.tensor([1e-9, 1.0]), 3, skip=True)
    assert paths[0][0].kept is None and not paths[0][0].factor.any()


@pytest.mark.parametrize("kept", [None, torch.tensor([1])])
def test_a_block_adds_what_is_kept_and_leaves_the_others_alone(kept: Tensor | None) -> None:
    block = _backbone().vit.blocks[0]
    x = torch.randn(2, 17, 32).double()
    first = BranchPath(torch.tensor([0.0, 2.0]).double()[:, None, None], kept, 2.0)
    found = run_block(block, x, BlockPass(paths=(first, BranchPath(torch.zeros(2, 1, 1).double()))))
    assert torch.equal(found[0], x[0])
    torch.testing.assert_close(found[1], x[1] + 2 * block.attn(block.norm1(x))[1])


RUNS: dict[str, Callable[[Backbone, Tensor], Tensor]] = {
    "forward": lambda b, x: b(x).sequence,
    "class token": lambda b, x: b.class_token(x),
    "unread": lambda b, x: b(x, unread=torch.arange(16).view(4, 4).expand(len(x), 4, 4) % 3 == 0).sequence,
    "visible": lambda b, x: b.visible_tokens(x, torch.stack([torch.randperm(16)[:5] for _ in x])),
}
ADAPTERS: dict[str, dict[str, Any] | None] = {
    "all": None,
    "after_attn": {"position": "after_attn"},
    "attn_branch": {"position": "attn_branch"},
    "parallel_mlp": {"position": "parallel_mlp"},
    "lora": {"kind": "lora"},
    "adaptformer": {"kind": "adaptformer"},
}


@pytest.mark.parametrize("adapter", ADAPTERS.values(), ids=ADAPTERS)
@pytest.mark.parametrize("arch", [PLAIN, ROTARY])
@pytest.mark.parametrize("run", RUNS.values(), ids=RUNS)
def test_skipping_changes_neither_the_result_nor_any_gradient(
    run: Callable[[Backbone, Tensor], Tensor],
    arch: str,
    adapter: dict[str, Any] | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    backbone = _backbone(arch)
    if adapter is not None:
        attach(backbone, AdapterOptions.model_validate({"rank": 8} | adapter), train="adapters")
        for parameter in backbone.parameters():
            if parameter.requires_grad:
                nn.init.normal_(parameter, std=0.2)
    trained = [p for p in backbone.parameters() if p.requires_grad]
    pixels = torch.randn(8, 3, 32, 32).double()

    def found(skip: bool) -> tuple[Tensor, ...]:
        skipped: list[bool] = []

        def draw(keep: Tensor, images: int, **_: bool) -> list[stochastic_depth.Paths]:
            paths = draw_paths(keep, images, skip=skip)
            skipped.extend(path.kept is not None for pair in paths for path in pair)
            return paths

        monkeypatch.setattr("rekindle.networks.backbone.draw_paths", draw)
        torch.manual_seed(1)
        out = run(backbone, pixels)
        assert any(skipped) == skip
        pull = torch.randn(out.shape, generator=torch.Generator().manual_seed(2)).double()
        return out, *torch.autograd.grad(out, trained, pull, allow_unused=True)

    for ours, plain in zip(found(True), found(False), strict=True):
        if ours is None or plain is None:
            assert ours is plain
        else:
            torch.testing.assert_close(ours, plain, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_cpu_computes_what_is_kept_in_full_precision_alone(dtype: torch.dtype) -> None:
    backbone = _backbone().to(dtype)
    seen: list[int] = []
    for block in backbone.vit.blocks:
        block.mlp.register_forward_pre_hook(lambda _, inputs: seen.append(len(inputs[0])))
    torch.manual_seed(0)
    backbone(torch.randn(16, 3, 32, 32, dtype=dtype))
    assert seen[0] == 16  # the first block drops nothing
    assert (min(seen[1:]) < 16) == (dtype == torch.float32)
