# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import typing
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from rekindle.adapters.attach import adapters_enabled, attach
from rekindle.adapters.options import AdapterOptions
from rekindle.adapters.uniadapter import AdaptedBlock, Position, UniAdapter
from rekindle.core.errors import RequestError
from rekindle.networks.backbone import Backbone
from rekindle.networks.blocks import BlockPass
from rekindle.networks.checkpoints.create import create_backbone
from rekindle.networks.checkpoints.tensors import write_checkpoint
from rekindle.networks.options import NetworkOptions
from rekindle.networks.sharing import copy_sharing_frozen
from rekindle.networks.stochastic_depth import BranchPath
from tests.adapters.networks import adapter_parameters

POSITIONS: tuple[Position, ...] = typing.get_args(Position)
ARCHITECTURES = [
    "vit:width=32,depth=2,heads=2,patch=8,img=32,layer_scale=true",
    "dinov3:width=32,depth=2,heads=2,patch=8",
]


def build(name: str = ARCHITECTURES[0]) -> Backbone:
    backbone, _ = create_backbone(name, NetworkOptions(), init="random", drop_path=0.0)
    torch.manual_seed(0)
    for parameter in backbone.parameters():
        nn.init.normal_(parameter, std=0.2)
    return backbone.eval()


def images(height: int = 32, width: int = 32) -> Tensor:
    return torch.randn(2, 3, height, width, generator=torch.Generator().manual_seed(1))


def options(position: Position = "after_attn", **values: Any) -> AdapterOptions:
    return AdapterOptions(position=position, **({"rank": 4} | values))


def train_up(backbone: Backbone) -> None:
    for name, parameter in adapter_parameters(backbone).items():
        if ".up." in name:
            nn.init.normal_(parameter, std=0.5)


@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.parametrize("position", POSITIONS)
@pytest.mark.parametrize("extra", [{}, {"rank": 7, "scale": 2.0, "learn_scale": True, "layernorm": True}])
def test_fresh_adapters_change_no_bit(name: str, position: Position, extra: dict[str, Any]) -> None:
    backbone = build(name)
    sizes = [(32, 32), (24, 48), (16, 16)]
    before = [backbone(images(*s), cls_attention=True) for s in sizes]
    attach(backbone, options(position, **extra), train="adapters")
    other = build(name)
    attach(other, options(position, **extra), train="adapters")
    other.load_state_dict(backbone.state_dict())
    for network in (backbone.train(), other.eval()):
        for size, expected in zip(sizes, before, strict=True):
            tokens = network(images(*size), cls_attention=True)
            assert torch.equal(tokens.sequence, expected.sequence)
            assert torch.equal(tokens.cls_attention, expected.cls_attention)


@pytest.mark.parametrize("position", POSITIONS)
def test_trained_adapters_change_the_output_and_switched_off_they_are_the_base(position: Position) -> None:
    backbone, pixels = build(), images(24, 40)
    base = backbone(pixels).sequence
    attach(backbone, options(position), train="adapters")
    train_up(backbone)
    changed = backbone(pixels).sequence
    assert not torch.allclose(changed, base)
    with adapters_enabled(backbone, False):
        assert torch.equal(backbone(pixels).sequence, base)
    assert torch.equal(backbone(pixels).sequence, changed)


def test_positions_are_the_four_equations() -> None:
    torch.manual_seed(0)
    block, x = build("vit:width=32,depth=1,heads=2,patch=8,img=32").vit.blocks[0], torch.randn(2, 5, 32)
    for position in POSITIONS:
        adapted = AdaptedBlock.wrap(block, 32, options(position))
        nn.init.normal_(adapted.adapter.up.weight)
        a = adapted.adapter
        assert isinstance(a.norm, nn.LayerNorm) == (position == "parallel_mlp")

        def branch(y: Tensor, a: UniAdapter = a) -> Tensor:
            return 0.1 * (torch.relu(a.norm(y) @ a.down.weight.T) @ a.up.weight.T)

        attended = block.attn(block.norm1(x))
        y = x + attended
        expected = {
            "after_attn": y + branch(y) + block.mlp(block.norm2(y + branch(y))),
            "after_block": block(x) + branch(block(x)),
            "parallel_mlp": y + block.mlp(block.norm2(y)) + branch(y),
            "attn_branch": y + branch(attended) + block.mlp(block.norm2(y + branch(attended))),
        }[position]
        torch.testing.assert_close(adapted(x), expected, atol=1e-4, rtol=1e-4)


def test_first_gradient_reaches_only_the_up_projection() -> None:
    backbone = build()
    attach(backbone, options(), train="adapters")
    parameters = adapter_parameters(backbone)
    optimizer = torch.optim.SGD(parameters.values(), lr=0.1)
    for step in range(2):
        optimizer.zero_grad()
        backbone(images()).patches.square().mean().backward()
        for name, parameter in parameters.items():
            assert parameter.grad is not None
            assert bool(parameter.grad.any()) == (".up." in name or step == 1), (step, name)
        optimizer.step()


@pytest.mark.parametrize("train", ["adapters", "all", "norm"])
def test_exactly_the_named_parameters_receive_gradients(train: Any) -> None:
    backbone = build()
    attachment = attach(backbone, options(learn_scale=True), train=train, with_adapters=True)
    train_up(backbone)
    tokens = backbone(images(24, 32))
    (tokens.sequence.square() * torch.randn(32)).mean().backward()
    touched = {n for n, p in backbone.named_parameters() if p.grad is not None}
    assert touched == set(attachment.trained)
    assert set(attachment.trained) | set(attachment.frozen) == {n for n, _ in backbone.named_parameters()}
    base = {n for n in attachment.trained if ".adapter." not in n}
    if train == "norm":
        assert base == {n for n, _ in backbone.named_parameters() if "norm" in n}
    assert bool(base) == (train != "adapters")
    assert {n for n in attachment.trained if n.endswith("adapter.scale")} == {
        f"vit.blocks.{i}.adapter.scale" for i in (0, 1)
    }


def test_training_everything_adds_no_adapter_unless_told() -> None:
    backbone = build()
    attachment = attach(backbone, options(), train="all")
    assert not adapter_parameters(backbone) and not attachment.frozen
    fixed = build()
    fixed.fixed_positions = True
    assert attach(fixed, options(), train="all").frozen == ("vit.pos_embed",)


def test_further_parameters_train_by_pattern() -> None:
    backbone = build()
    attachment = attach(backbone, options(), train="adapters", also_trainable=["vit.cls_*"])
    assert "vit.cls_token" in attachment.trained and "vit.pos_embed" in attachment.frozen


def test_wrong_requests_are_named() -> None:
    with pytest.raises(
        ValueError, match=r"also_trainable pattern 'vit\.register' hits no parameter; known are vit\.cls_"
    ):
        attach(build(), options(), train="adapters", also_trainable=["vit.register"])
    with pytest.raises(ValueError, match="would train nothing"):
        attach(build(), options(), train="adapters", with_adapters=False)
    twice = build()
    attach(twice, options(), train="adapters")
    with pytest.raises(RequestError, match="position = after_attn, not after_block"):
        attach(twice, options(position="after_block"), train="adapters")
    with pytest.raises(RequestError, match="would leave them behind"):
        attach(twice, options(), train="norm")
    stray = build()
    stray.decoder = nn.Linear(2, 2)
    with pytest.raises(ValueError, match=r"neither base nor adapters: decoder\.weight, decoder\.bias"):
        attach(stray, options(), train="all")


@pytest.mark.parametrize("rank", [64, 128, 256, 384, 512, 768])
def test_counts_of_the_paper(rank: int) -> None:
    counted = 12 * sum(p.numel() for p in UniAdapter(384, rank).parameters())
    table = {64: 595_200, 128: 1_185_792, 256: 2_366_976, 384: 3_548_160, 512: 4_729_344, 768: 7_091_712}
    assert counted == table[rank] == 12 * (2 * 384 * rank + rank + 384)


def test_teacher_copy_shares_the_frozen_backbone() -> None:
    backbone = build()
    attachment = attach(backbone, options(), train="adapters")
    teacher = copy_sharing_frozen(backbone)
    ours, theirs = dict(backbone.named_parameters()), dict(teacher.named_parameters())
    assert all(theirs[n] is ours[n] for n in attachment.frozen)
    assert all(theirs[n].data_ptr() != ours[n].data_ptr() for n in attachment.trained)
    train_up(backbone)
    assert torch.equal(teacher(images()).sequence, build()(images()).sequence)


def test_plain_checkpoint_of_an_adapted_backbone_is_refused(tmp_path: Path) -> None:
    backbone = build()
    attach(backbone, options(), train="adapters")
    with pytest.raises(ValueError, match="a plain checkpoint cannot hold them, save the run instead"):
        write_checkpoint(backbone, tmp_path / "adapted.safetensors")


def test_drop_path_runs_around_adapted_branches() -> None:
    backbone, _ = create_backbone(ARCHITECTURES[0], NetworkOptions(), init="random", drop_path=0.9)
    x = torch.randn(64, 3, 32, generator=torch.Generator().manual_seed(0))
    for parameter in backbone.parameters():
        nn.init.normal_(parameter)
    for position in POSITIONS:
        block = AdaptedBlock.wrap(backbone.vit.blocks[1], 32, options(position)).train()
        assert block.block.drop_path1.drop_prob == pytest.approx(0.9)
        path = BranchPath(torch.where(torch.arange(64) % 2 == 0, 0.0, 10.0)[:, None, None])
        found = block(x, BlockPass(paths=(path, path)))  # the adapter itself still adds nothing
        assert torch.equal(found[::2], x[::2]), position
        assert not bool((found[1::2] == x[1::2]).flatten(1).all(1).any()), position


@pytest.mark.parametrize("frozen", [(), ("up.weight", "up.bias"), ("down.weight", "down.bias", "up.weight", "up.bias")])
def test_an_adapter_onto_its_own_stream_has_the_gradients_of_the_plain_sum(frozen: tuple[str, ...]) -> None:
    torch.manual_seed(0)
    adapter = UniAdapter(6, rank=4, scale=0.3).double()
    for name, parameter in adapter.named_parameters():
        nn.init.normal_(parameter)
        parameter.requires_grad_(name not in frozen)
    x, pull = torch.randn(2, 3, 6).double().requires_grad_(), torch.randn(2, 3, 6).double()
    inputs = [x, *(p for p in adapter.parameters() if p.requires_grad)]
    ours, plain = adapter(x, onto=x), x + adapter(x)
    torch.testing.assert_close(ours, plain)
    torch.testing.assert_close(torch.autograd.grad(ours, inputs, pull), torch.autograd.grad(plain, inputs, pull))


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_adapters_in_the_last_blocks_leave_a_stem_that_keeps_nothing_for_the_way_back(name: str) -> None:
    backbone = build(name.replace("depth=2", "depth=4"))
    before = backbone(images()).sequence
    trained = attach(backbone, options(blocks=2), train="adapters").trained
    assert {n.split(".")[2] for n in trained} == {"2", "3"}
    assert backbone.stem_depth == 2
    train_up(backbone)
    stem = backbone.stem(images())
    assert stem.tokens.grad_fn is None
    tokens = backbone(stem)
    assert torch.equal(tokens.sequence, backbone(images()).sequence)
    assert not torch.equal(tokens.sequence, before)
    assert torch.equal(backbone.class_token(stem), backbone.class_token(images()))
    tokens.sequence.sum().backward()
    assert all(p.grad is not None for n, p in backbone.named_parameters() if n in trained)


def test_nothing_is_drawn_in_the_stem() -> None:
    backbone = build(ARCHITECTURES[0].replace("depth=2", "depth=4"))
    backbone.set_drop_path(0.9)
    attach(backbone, options(blocks=1), train="adapters")
    backbone.train()
    first, second = backbone.stem(images()).tokens, backbone.stem(images()).tokens
    assert torch.equal(first, second)
    assert not torch.equal(backbone(images()).sequence, backbone(images()).sequence)


@pytest.mark.parametrize(
    "train, also, depth",
    [("adapters", (), 2), ("adapters", ("vit.cls_token",), 0), ("all", (), 0), ("norm", (), 0)],
)
def test_a_stem_ends_where_something_trains(train: Any, also: tuple[str, ...], depth: int) -> None:
    backbone = build(ARCHITECTURES[0].replace("depth=2", "depth=4"))
    attach(backbone, options(blocks=2), train=train, also_trainable=also)
    assert backbone.stem_depth == depth


def test_blocks_that_are_not_there_or_not_those_of_before_are_refused() -> None:
    with pytest.raises(RequestError, match=r"--adapter\.blocks 3: this backbone has 2 blocks; give 1 to 2"):
        attach(build(), options(blocks=3), train="adapters")
    backbone = build()
    attach(backbone, options(blocks=1), train="adapters")
    with pytest.raises(RequestError, match=r"adapters in 1 of its 2 blocks, not in all of them; .*--adapter\.blocks 1"):
        attach(backbone, options(), train="adapters")
    attach(backbone, options(blocks=1), train="adapters")  # the advice
    attach(whole := build(), options(blocks=2), train="adapters")
    attach(whole, options(), train="adapters")  # all blocks, either way
