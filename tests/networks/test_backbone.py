# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest
import timm
import torch
from timm.models.vision_transformer import ParallelScalingBlock, VisionTransformer
from torch import Tensor, nn

from rekindle.adapters.attach import attach
from rekindle.adapters.options import AdapterOptions
from rekindle.core.errors import RequestError
from rekindle.networks.backbone import Backbone
from rekindle.networks.blocks import BlockPass, run_block
from rekindle.networks.checkpoints.create import create_backbone
from rekindle.networks.identity import BackboneIdentity
from rekindle.networks.options import NetworkOptions

TINY = "vit:width=32,depth=2,heads=2,patch=8,img=32"
DINOV2 = "vit:width=32,depth=2,heads=2,patch=14,img=56,layer_scale=true"
ARCHITECTURES = {
    "dino": TINY,
    "register with position": TINY + ",registers=1",
    "dinov2": DINOV2,
    "dinov2 with registers": DINOV2 + ",registers=4,no_embed_class=true",
    "swiglu": TINY + ",hidden=48,swiglu=true",
    "no class token": TINY + ",class_token=false",
    "dinov3": "dinov3:width=32,depth=2,heads=2,patch=8,img=32",
    "dinov3 with biases": "dinov3:width=32,depth=2,heads=2,patch=8,img=32,qkv_bias=true",
    "dinov3 gated": "dinov3:width=32,depth=2,heads=2,patch=8,img=32,swiglu=true,hidden=40",
}


def build(name: str = TINY, options: NetworkOptions | None = None) -> Backbone:
    backbone, _ = create_backbone(name, options or NetworkOptions(), init="random", drop_path=0.0)
    torch.manual_seed(0)
    for parameter in backbone.parameters():  # zero biases and tokens near zero would hide mistakes
        nn.init.normal_(parameter, std=0.2)
    return backbone.eval()


def images(height: int, width: int | None = None, n: int = 2) -> Tensor:
    return torch.randn(n, 3, height, width or height, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", ARCHITECTURES.values(), ids=ARCHITECTURES)
def test_forward_equals_timm_at_the_native_size(name: str) -> None:
    backbone = build(name)
    pixels = images(backbone.vit.patch_embed.img_size[0])
    tokens, expected = backbone(pixels), backbone.vit.forward_features(pixels)
    assert torch.equal(tokens.sequence, expected)
    assert torch.equal(backbone.forward_features(pixels), expected)
    assert tokens.registers.shape == (2, backbone.num_registers, 32)
    assert (tokens.cls is None) == ("class_token=false" in name)


@pytest.mark.parametrize("name", ARCHITECTURES.values(), ids=ARCHITECTURES)
def test_forward_equals_timm_at_other_sizes_in_antialias_mode(name: str) -> None:
    backbone = build(name, NetworkOptions(pos_interp="antialias"))
    pixels = images(5 * backbone.patch_size, 3 * backbone.patch_size)
    assert torch.allclose(backbone(pixels).sequence, backbone.vit.forward_features(pixels), atol=1e-5)
    assert backbone(pixels).grid == (5, 3)


@pytest.mark.parametrize("name", ["dino", "dinov2 with registers", "dinov3"])
@pytest.mark.parametrize("indices", [None, 1, [0], [1, 0]])
def test_forward_intermediates_is_timms(name: str, indices: int | list[int] | None) -> None:
    backbone = build(ARCHITECTURES[name])
    pixels = images(backbone.vit.patch_embed.img_size[0])
    for options in (
        {},
        {"norm": True, "output_fmt": "NLC"},
        {"return_prefix_tokens": True, "stop_early": True},
    ):
        final, ours = backbone.forward_intermediates(pixels, indices, **options)
        expected_final, expected = backbone.vit.forward_intermediates(pixels, indices, **options)
        assert torch.equal(final, expected_final)
        torch.testing.assert_close(ours, expected, rtol=0, atol=0)
    only = backbone.forward_intermediates(pixels, indices, intermediates_only=True)
    torch.testing.assert_close(only, backbone.vit.forward_intermediates(pixels, indices, intermediates_only=True))


def test_intermediate_keeps_the_order_asked_for_and_counts_from_the_end() -> None:
    backbone, pixels = build(), images(32)
    last, first = backbone.intermediate(pixels, [-1, 0])
    assert torch.equal(last.sequence, backbone(pixels).sequence)
    raw = backbone.intermediate(pixels, [0], norm=False)[0]
    assert torch.equal(backbone.vit.norm(raw.sequence), first.sequence)
    with pytest.raises(ValueError, match="block 2 does not exist; the network has blocks 0 to 1"):
        backbone.intermediate(pixels, [2])


def test_size_that_the_patch_does_not_divide_is_named_with_one_that_fits() -> None:
    with pytest.raises(ValueError, match="33 x 40 px do not divide into patches of 8 px; use 32 x 40"):
        build()(images(33, 40))


@pytest.mark.parametrize("name", ["dino", "dinov3", "dinov2 with registers"])
def test_masked_patches_pixels_change_no_output(name: str) -> None:
    backbone = build(ARCHITECTURES[name])
    p = backbone.patch_size
    pixels = images(4 * p, 3 * p)
    mask = torch.rand(2, 4, 3, generator=torch.Generator().manual_seed(2)) < 0.4
    token = torch.randn(32)
    hidden = mask.repeat_interleave(p, 1).repeat_interleave(p, 2)[:, None]
    painted = torch.where(hidden, torch.full_like(pixels, 9.0), pixels)
    first, second = (backbone(x, patch_mask=mask, mask_token=token) for x in (pixels, painted))
    assert torch.equal(first.sequence, second.sequence)
    assert not torch.allclose(backbone(pixels).sequence, backbone(painted).sequence)
    assert not torch.equal(first.sequence, backbone(pixels, patch_mask=mask, mask_token=token + 1).sequence)


def test_mask_token_receives_a_gradient_and_an_empty_mask_changes_nothing() -> None:
    backbone, pixels = build(), images(32)
    token = torch.zeros(32, requires_grad=True)
    none = torch.zeros(2, 4, 4, dtype=torch.bool)
    assert torch.equal(backbone(pixels, patch_mask=none, mask_token=token).sequence, backbone(pixels).sequence)
    one = none.clone()
    one[0, 1, 2] = True
    backbone(pixels, patch_mask=one, mask_token=token).patches.square().mean().backward()
    assert token.grad is not None and token.grad.abs().sum() > 0


def test_mask_without_token_is_refused() -> None:
    with pytest.raises(ValueError, match="needs a mask_token"):
        build()(images(32), patch_mask=torch.zeros(2, 4, 4, dtype=torch.bool))


def _attention_by_hand(backbone: Backbone, pixels: Tensor) -> Tensor:
    """The last block's full attention matrix, from timm's own unfused path with an identity as values."""
    seen: list[Tensor] = []
    attention = backbone.vit.blocks[-1].attn
    attention.fused_attn = False
    handle = attention.attn_drop.register_forward_hook(lambda _, __, out: seen.append(out))
    backbone.vit.forward_features(pixels)
    handle.remove()
    attention.fused_attn = True
    return seen[0]


@pytest.mark.parametrize("name", [n for n in ARCHITECTURES if n != "no class token"])
def test_cls_attention_is_the_class_row_of_the_unfused_softmax(name: str) -> None:
    backbone = build(ARCHITECTURES[name])
    p = backbone.patch_size
    side = backbone.vit.patch_embed.img_size[0] // p
    pixels = images(side * p)
    plain, tokens = backbone(pixels), backbone(pixels, cls_attention=True)
    row = _attention_by_hand(backbone, pixels)[:, :, 0, backbone.num_prefix :]
    assert tokens.cls_attention is not None and not tokens.cls_attention.requires_grad
    torch.testing.assert_close(tokens.cls_attention, row.reshape(2, 2, side, side))
    assert torch.equal(plain.sequence, tokens.sequence) and plain.cls_attention is None


def test_cls_attention_with_separate_projections_and_head_norms() -> None:
    vit = timm.models.eva.Eva(
        img_size=32,
        patch_size=8,
        num_classes=0,
        global_pool="",
        embed_dim=32,
        depth=2,
        num_heads=2,
        qkv_fused=False,
        qk_norm=True,
        use_rot_pos_emb=True,
        dynamic_img_size=True,
        use_fc_norm=False,
    )
    for parameter in vit.parameters():
        nn.init.normal_(parameter, std=0.2)
    identity = BackboneIdentity("eva", "random", "")
    backbone = Backbone(vit, mean=(0.5,) * 3, std=(0.5,) * 3, identity=identity).eval()
    pixels = images(32)
    assert torch.equal(backbone(pixels).sequence, vit.forward_features(pixels))
    row = _attention_by_hand(backbone, pixels)[:, :, 0, 1:].reshape(2, 2, 4, 4)
    torch.testing.assert_close(backbone(pixels, cls_attention=True).cls_attention, row)


def test_cls_attention_without_class_token_is_refused() -> None:
    with pytest.raises(ValueError, match="needs a network with a class token"):
        build(ARCHITECTURES["no class token"])(images(32), cls_attention=True)


@pytest.mark.parametrize("name", ["dinov2", "dinov3"])
def test_branches_put_together_are_timms_block_bit_for_bit(name: str) -> None:
    backbone = build(ARCHITECTURES[name])
    x, ropes, _ = backbone.embed(images(4 * backbone.patch_size))
    block, rope = backbone.vit.blocks[0], ropes[0]
    expected = block(x) if rope is None else block(x, rope=rope)
    assert torch.equal(run_block(block, x, BlockPass(rope)), expected)


def test_unknown_block_type_is_named() -> None:
    with pytest.raises(RequestError, match="blocks of type Linear are not supported"):
        run_block(nn.Linear(4, 4), torch.zeros(1, 2, 4))
    vit = VisionTransformer(
        img_size=16,
        patch_size=8,
        embed_dim=32,
        depth=1,
        num_heads=2,
        num_classes=0,
        block_fn=ParallelScalingBlock,
    )
    with pytest.raises(RequestError, match="ParallelScalingBlock"):
        Backbone(vit, mean=(0.0,) * 3, std=(1.0,) * 3, identity=BackboneIdentity("x", "random", ""))


def test_drop_path_rises_linearly_and_is_off_in_evaluation() -> None:
    backbone, _ = create_backbone(TINY.replace("depth=2", "depth=3"), NetworkOptions(), init="random", drop_path=0.2)
    rates = [getattr(block.drop_path1, "drop_prob", 0.0) for block in backbone.vit.blocks]
    assert rates == pytest.approx([0.0, 0.1, 0.2])
    pixels = images(32)
    assert not torch.equal(backbone.train()(pixels).sequence, backbone(pixels).sequence)
    backbone.eval()
    assert torch.equal(backbone(pixels).sequence, backbone(pixels).sequence)


def test_bfloat16_autocast_stays_close_to_float32() -> None:
    backbone, pixels = build(), images(32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        low = backbone(pixels, cls_attention=True)
    assert torch.allclose(low.patches.float(), backbone(pixels).patches, atol=0.15)
    assert low.cls_attention is not None and low.cls_attention.dtype == torch.float32


@pytest.mark.parametrize("name", ARCHITECTURES.values(), ids=ARCHITECTURES)
def test_visible_tokens_equal_those_that_read_only_each_other(name: str) -> None:
    """The oracle leaves every token in its place and forbids the attention to read the hidden ones."""
    backbone = build(name)
    size = 4 * backbone.patch_size
    pixels, first = images(size), backbone.num_prefix
    keep = torch.tensor([[0, 3, 5, 10], [15, 2, 7, 8]])  # in any order
    allowed = torch.zeros(2, first + 16, dtype=torch.bool)
    allowed[:, :first] = True
    allowed.scatter_(1, keep + first, True)

    def attend(q: Tensor, k: Tensor, v: Tensor, *args: object, **kwargs: object) -> Tensor:
        scores = (q @ k.transpose(-2, -1)) / q.shape[-1] ** 0.5
        weights: Tensor = scores.masked_fill(~allowed[:, None, None], float("-inf")).softmax(dim=-1)
        return weights @ v

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(nn.functional, "scaled_dot_product_attention", attend)
        full = backbone.forward_features(pixels)
    expected = torch.cat([full[:, :first], full[:, first:][torch.arange(2)[:, None], keep]], dim=1)
    torch.testing.assert_close(backbone.visible_tokens(pixels, keep), expected, atol=1e-4, rtol=1e-4)


def test_all_patches_visible_is_the_plain_forward_pass() -> None:
    backbone, pixels = build(), images(32)
    keep = torch.arange(16).expand(2, -1)
    torch.testing.assert_close(backbone.visible_tokens(pixels, keep), backbone(pixels).sequence)


def test_without_the_final_norm_the_tokens_are_those_before_it() -> None:
    backbone, pixels = build(), images(32)
    raw = backbone(pixels, norm=False)
    torch.testing.assert_close(backbone.vit.norm(raw.sequence), backbone(pixels).sequence)


@pytest.mark.parametrize("name", [TINY, DINOV2 + ",no_embed_class=true", ARCHITECTURES["dinov3"] + ",registers=0"])
def test_an_added_register_trains_and_the_rest_keeps_its_weights(name: str) -> None:
    plain = build(name)
    options = NetworkOptions(add_register=True)
    backbone, _ = create_backbone(name, options, init="random", drop_path=0.0)
    assert backbone.num_registers == 1 and backbone.fresh == ("vit.reg_token",)
    same, _ = create_backbone(name, NetworkOptions(), init="random", drop_path=0.0)
    ours, theirs = backbone.vit.state_dict(), same.vit.state_dict()
    changed = {n for n in ours if n not in theirs or not torch.equal(ours[n], theirs[n])}
    assert changed == {"reg_token"} | ({"pos_embed"} if "pos_embed" in ours and not plain.vit.no_embed_class else set())
    if "pos_embed" in changed:
        assert torch.equal(ours["pos_embed"][:, [0, *range(2, 18)]], theirs["pos_embed"])
        assert not ours["pos_embed"][:, 1].any()
    attachment = attach(backbone, AdapterOptions(rank=4), train="adapters")
    assert "vit.reg_token" in attachment.trained and "vit.cls_token" in attachment.frozen
    with pytest.raises(RequestError, match=r"--network\.add-register: .* has 2 register"):
        create_backbone(TINY + ",registers=2", options, init="random")


@pytest.mark.parametrize("name", ARCHITECTURES.values(), ids=ARCHITECTURES)
@pytest.mark.parametrize("plain", [False, True])
def test_tokens_that_read_only_the_readable_ones_equal_those_encoded_without_the_others(name: str, plain: bool) -> None:
    backbone = build(name)
    if plain:
        backbone.attend_plainly()
    pixels, keep = images(4 * backbone.patch_size), torch.tensor([[0, 3, 5, 10], [2, 7, 8, 15]])
    unread = torch.ones(2, 16, dtype=torch.bool).scatter_(1, keep, False)
    full = backbone(pixels, unread=unread.view(2, 4, 4)).sequence
    first = backbone.num_prefix
    expected = torch.cat([full[:, :first], full[:, first:][torch.arange(2)[:, None], keep]], dim=1)
    torch.testing.assert_close(backbone.visible_tokens(pixels, keep), expected, atol=1e-4, rtol=1e-4)
