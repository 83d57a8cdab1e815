# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from rekindle.core.errors import RequestError
from rekindle.core.rng import seeded_default
from rekindle.networks.backbone import Backbone
from rekindle.networks.block_outputs import walk_blocks
from rekindle.networks.checkpoints.architecture import build_vit, parse_arch
from rekindle.networks.checkpoints.create import create_backbone
from rekindle.networks.checkpoints.tensors import write_checkpoint
from rekindle.networks.options import NetworkOptions
from rekindle.networks.parts.conditioning import Conditioning, EncoderAdapters, InputAdapter, read_conditioning
from rekindle.objectives.contributions import contributions

ARCHES = [
    "vit:width=32,depth=6,heads=4,patch=8,img=32",
    "vit:width=32,depth=2,heads=4,patch=8,img=32,no_embed_class=true,registers=2,layer_scale=true,pre_norm=true",
    "dinov3:width=32,depth=2,heads=4,patch=8,img=32",
]


def _backbone(arch: str = ARCHES[0]) -> Backbone:
    return create_backbone(arch, NetworkOptions(drop_path=0.0), init="random")[0].eval()


def _input_adapter(width: int = 32) -> InputAdapter:
    with seeded_default(0, "input adapter"):
        return InputAdapter(width)


def _outputs(depth: int = 6) -> list[torch.Tensor]:
    draw = torch.Generator().manual_seed(0)
    return [torch.randn(2, 5, 8, generator=draw, requires_grad=True) for _ in range(depth)]


def _count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


@torch.no_grad()
@pytest.mark.parametrize("arch", ARCHES)
def test_the_merged_class_token_does_what_its_mlp_did(arch: str, tmp_path: Path) -> None:
    """Property 1: equal outputs, no adapter among the tensors, and a plain network loads them strictly."""
    backbone = _backbone(arch)
    nn.init.normal_(backbone.vit.cls_token)
    before = backbone.vit.cls_token.clone()
    conditioning = Conditioning(_input_adapter(), None)
    pixels = torch.randn(2, 3, 32, 48, generator=torch.Generator().manual_seed(0))
    token = conditioning.class_token(backbone)
    conditioned = backbone.vit.norm([s.after for s in walk_blocks(backbone, pixels, class_token=token)][-1])
    merged = conditioning.merged(backbone)
    torch.testing.assert_close(merged.forward_features(pixels), conditioned, atol=1e-6, rtol=1e-6)
    assert not torch.allclose(backbone.forward_features(pixels), conditioned, atol=1e-3)
    assert torch.equal(backbone.vit.cls_token, before)  # training may go on
    build_vit(parse_arch(arch)).load_state_dict(merged.vit.state_dict(), strict=True)
    write_checkpoint(merged, tmp_path / "merged.safetensors")
    loaded = create_backbone(str(tmp_path / "merged.safetensors"), NetworkOptions(drop_path=0.0))[0].eval()
    torch.testing.assert_close(loaded.forward_features(pixels), conditioned, atol=1e-6, rtol=1e-6)


def test_merging_copies_the_class_token_alone() -> None:
    backbone = _backbone()
    merged = Conditioning(_input_adapter(), None).merged(backbone)
    ours = {id(p) for p in merged.parameters()} - {id(p) for p in backbone.parameters()}
    assert ours == {id(merged.vit.cls_token)}
    assert Conditioning(None, None).merged(backbone) is backbone


def test_numbers_of_parameters_at_vit_base() -> None:
    """Property 2: input adapter, encoder adapters, and the encoder without its fixed position table."""
    with torch.device("meta"):
        assert _count(InputAdapter(768)) == 4_722_432
        assert _count(EncoderAdapters(768, 12, blocks_per_group=3, hidden=2048)) == 19_695_104
        vit = build_vit(parse_arch("vit:width=768,depth=12,heads=12,patch=16,img=224"))
    assert _count(vit) - vit.pos_embed.numel() == 85_647_360


def test_a_group_depends_on_its_own_blocks_alone() -> None:
    """Property 13, without the norm over all channels, which every group sees."""
    for group in range(2):
        adapters = EncoderAdapters(8, 6, blocks_per_group=3, hidden=16)
        adapters.norm_blocks = nn.Identity()  # type: ignore[assignment]
        for other in range(2):
            if other != group:
                for parameter in (*adapters.linear[other].parameters(), *adapters.mlp[other].parameters()):
                    nn.init.zeros_(parameter)
        outputs = _outputs()
        (adapters(outputs) * torch.randn(2, 5, 8)).sum().backward()
        seen = [bool(x.grad.abs().max() > 0) for x in outputs if x.grad is not None]
        assert seen == [block // 3 == group for block in range(6)]


@torch.no_grad()
def test_the_fusion_is_the_specified_sum_group_by_group() -> None:
    """Z_e = LN(sum of Z_n + MLP_n(Z_n)) with Z_n = FC_n of the blocks 3n-2, 3n-1, 3n, one token at a time."""
    adapters, outputs = EncoderAdapters(8, 6, blocks_per_group=3, hidden=16), _outputs()
    nn.init.normal_(adapters.norm_blocks.weight)
    fused = adapters(outputs)
    for image in range(2):
        for token in range(5):
            stacked = torch.cat([x[image, token] for x in outputs])
            normed = (
                (stacked - stacked.mean()) / (stacked.var(unbiased=False) + 1e-6).sqrt() * adapters.norm_blocks.weight
            )
            total = torch.zeros(8)
            for group in range(2):
                linear, mlp = adapters.linear[group], adapters.mlp[group]
                assert isinstance(linear, nn.Linear)
                z = linear.weight @ normed[24 * group : 24 * (group + 1)] + linear.bias
                total += z + mlp(z)
            wanted = (total - total.mean()) / (total.var(unbiased=False) + 1e-6).sqrt()
            torch.testing.assert_close(fused[image, token], wanted, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_a_silenced_group_contributes_nothing() -> None:
    """Property 20, on the adapters themselves."""
    adapters, outputs = EncoderAdapters(8, 6, blocks_per_group=2, hidden=16), _outputs()
    for parameter in (*adapters.linear[1].parameters(), *adapters.mlp[1].parameters()):
        nn.init.zeros_(parameter)
    found = contributions(torch.stack(adapters.groups(outputs)))
    assert float(found.norm[1]) == 0 and float(found.norm.sum()) == pytest.approx(1)


def test_groups_that_do_not_divide_the_depth_are_refused() -> None:
    with pytest.raises(
        RequestError, match=r"blocks-per-group 4 does not divide the encoder's 6 blocks; use one of 1, 2, 3, 6"
    ):
        EncoderAdapters(8, 6, blocks_per_group=4, hidden=16)


def test_a_file_without_adapters_is_refused(tmp_path: Path) -> None:
    torch.save({"method": {"student.vit.cls_token": torch.zeros(1, 1, 4)}}, tmp_path / "last.ckpt")
    with pytest.raises(RequestError, match="holds no adapters of a trained encoder"):
        read_conditioning(tmp_path / "last.ckpt")
    with pytest.raises(RequestError, match="is no checkpoint of a run"):
        read_conditioning(tmp_path / "absent.ckpt")
    (tmp_path / "other.ckpt").write_text("no checkpoint")
    with pytest.raises(RequestError, match="is no checkpoint of a run"):
        read_conditioning(tmp_path / "other.ckpt")
