# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import math
import threading
from operator import attrgetter
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rekindle.adapters.attach import adapters_enabled, attach
from rekindle.adapters.lora import LoraBlock, LowRank
from rekindle.adapters.options import AdapterOptions
from rekindle.core.errors import RequestError
from rekindle.networks.blocks import BlockPass
from tests.adapters.networks import GATED, PLAIN, ROTARY, ROTARY_GATED, adapted, adapter_parameters, build, images

ALL = ("qkv", "proj", "fc1", "fc2")


def test_the_block_is_the_papers_equation_written_out() -> None:
    backbone = adapted("lora", "vit:width=32,depth=1,heads=2,patch=8,img=32", lora_alpha=6.0, lora_targets=ALL)
    wrapped, x = backbone.vit.blocks[0], torch.randn(2, 5, 32)
    block = wrapped.block

    def mapped(name: str, x: Tensor) -> Tensor:
        w, b = attrgetter(f"{name}.weight")(block), attrgetter(f"{name}.bias")(block)
        low = attrgetter(name)(wrapped.adapter)
        y: Tensor = x @ w.T + b + 6.0 / 4 * (x @ low.lora_A.weight.T @ low.lora_B.weight.T)  # eq. 3, alpha / r
        return y

    q, k, v = mapped("attn.qkv", block.norm1(x)).reshape(2, 5, 3, 2, 16).permute(2, 0, 3, 1, 4)
    read = (q @ k.transpose(-2, -1) / 4).softmax(dim=-1) @ v
    y = x + mapped("attn.proj", read.transpose(1, 2).reshape(2, 5, 32))
    expected = y + mapped("mlp.fc2", F.gelu(mapped("mlp.fc1", block.norm2(y))))
    torch.testing.assert_close(wrapped(x), expected, atol=2e-4, rtol=1e-4)


def test_a_starts_uniform_and_b_at_zero() -> None:
    update = LowRank(300, 40, 8, 16.0)
    a = update.lora_A.weight.detach()
    assert a.shape == (8, 300) and update.lora_B.weight.shape == (40, 8) and not update.lora_B.weight.any()
    assert 0.9 < float(a.abs().max()) * math.sqrt(300) <= 1.0  # a = sqrt(5) bounds by 1 / sqrt(inputs)
    assert update.factor == 2.0


@pytest.mark.parametrize(
    ("name", "maps"),
    [
        (PLAIN, {"attn.qkv": (32, 96), "attn.proj": (32, 32), "mlp.fc1": (32, 128), "mlp.fc2": (128, 32)}),
        (GATED, {"attn.qkv": (32, 96), "attn.proj": (32, 32), "mlp.fc1": (32, 80), "mlp.fc2": (40, 32)}),
        (
            ROTARY_GATED,
            {
                "attn.qkv": (32, 96),
                "attn.proj": (32, 32),
                "mlp.fc1_g": (32, 40),
                "mlp.fc1_x": (32, 40),
                "mlp.fc2": (40, 32),
            },
        ),
    ],
)
def test_names_and_shapes_of_all_targets(name: str, maps: dict[str, tuple[int, int]]) -> None:
    backbone = adapted("lora", name, lora_targets=ALL)
    found = {n: tuple(p.shape) for n, p in adapter_parameters(backbone).items() if "blocks.1." in n}
    expected = {}
    for part, (inputs, outputs) in maps.items():
        expected[f"vit.blocks.1.adapter.{part}.lora_A.weight"] = (4, inputs)
        expected[f"vit.blocks.1.adapter.{part}.lora_B.weight"] = (outputs, 4)
    assert found == expected
    pixels = images(24, 40)
    torch.testing.assert_close(backbone.class_token(pixels), backbone(pixels).class_token, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("attn_type", ["eva", "rope"])
def test_three_maps_in_place_of_one_get_one_update_each(attn_type: str) -> None:
    from timm.models.eva import EvaBlock

    block = EvaBlock(
        32, 2, qkv_fused=False, attn_type=attn_type, num_prefix_tokens=1, init_values=0.5, norm_layer=nn.LayerNorm
    )
    for parameter in block.parameters():
        nn.init.normal_(parameter, std=0.2)
    options = AdapterOptions(kind="lora", rank=4)
    wrapped, x = LoraBlock.wrap(block, 32, options), torch.randn(2, 5, 32)
    assert list(wrapped.updates()) == ["attn.q_proj", "attn.k_proj", "attn.v_proj", "attn.proj"]
    plain = block(x)
    assert torch.equal(wrapped(x), plain)
    for parameter in wrapped.adapter.parameters():
        nn.init.normal_(parameter, std=0.2)
    changed = wrapped(x)
    assert not torch.allclose(changed, plain, atol=1e-3)
    torch.testing.assert_close(wrapped(x, BlockPass(rows=1)), changed[:, :1], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(wrapped.fold()(x), changed, atol=1e-5, rtol=1e-4)


def test_the_branch_needs_no_gradient_of_the_frozen_maps_and_no_second_weight() -> None:
    block, x = adapted("lora").vit.blocks[0], torch.randn(2, 5, 32)
    kept: list[Tensor] = []

    def pack(tensor: Tensor) -> Tensor:
        kept.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        out = block(x.requires_grad_())
    own = {p.data_ptr() for p in block.parameters()}
    weights = [t for t in kept if set(t.shape) in ({96, 32}, {32})]
    assert {t.data_ptr() for t in weights if t.ndim == 2} <= own and len(weights) > 1
    torch.autograd.backward(out.sum())
    assert all(p.grad is None for p in block.block.parameters())


def test_an_error_inside_leaves_the_base_as_it_was() -> None:
    backbone = adapted("lora")
    before = dict(backbone.vit.blocks[0].block.attn.named_modules())
    with pytest.raises(RuntimeError):
        backbone.vit.blocks[0](torch.randn(2, 5, 31))
    assert dict(backbone.vit.blocks[0].block.attn.named_modules()) == before


@pytest.mark.parametrize("kind", ["lora", "bias"])
def test_threads_that_share_a_network_do_not_disturb_each_other(kind: str) -> None:
    backbone, pixels = adapted(kind), images()
    wanted = backbone(pixels).sequence
    found: list[bool] = []

    def ask() -> None:
        with torch.no_grad():
            found.extend(torch.equal(backbone(pixels).sequence, wanted) for _ in range(20))

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [True] * 80
    with adapters_enabled(backbone, False):
        assert torch.equal(backbone(pixels).sequence, build()(pixels).sequence)


def test_wrong_requests_are_named() -> None:
    with pytest.raises(
        RequestError, match=r"adapter\.rank = 32 is not a low rank for attn\.qkv \(96 x 32\); use less than 32"
    ):
        attach(build(), AdapterOptions(kind="lora", rank=32), train="adapters")
    convolved = build()
    convolved.vit.blocks[0].mlp.fc1 = nn.Conv2d(32, 128, 1)
    with pytest.raises(RequestError, match=r"adapter\.lora_targets names fc1"):
        attach(convolved, AdapterOptions(kind="lora", rank=4, lora_targets=("fc1",)), train="adapters")


@pytest.mark.parametrize("wrong", [{"rank": 5}, {"lora_alpha": 2.0}, {"lora_targets": ("qkv",)}])
def test_going_on_needs_the_same_adapter(wrong: dict[str, Any]) -> None:
    backbone = adapted("lora", ROTARY)
    attach(backbone, AdapterOptions(kind="lora", rank=4, lora_targets=("proj", "qkv")), train="adapters")
    with pytest.raises(RequestError, match=f"adapters with {next(iter(wrong))} = .*; go on with the same"):
        attach(backbone, AdapterOptions(kind="lora", **({"rank": 4} | wrong)), train="adapters")
