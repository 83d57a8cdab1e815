# SPDX-License-Identifier: Apache-2.0
"""A trunk in few bits is a trunk with nearby weights: the same paths, the same gradients, a fraction of the bytes."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

from rekindle.adapters.attach import attach
from rekindle.adapters.options import AdapterOptions
from rekindle.core.errors import RequestError
from rekindle.core.progress import Progress
from rekindle.engine.precision import ComputeCopies
from rekindle.methods.dino import Dino, DinoOptions
from rekindle.methods.shared.teacher import EmaTeacher
from rekindle.networks.backbone import Backbone
from rekindle.networks.blocks import plain_block
from rekindle.networks.packed_maps import PackedLinear, TrunkBits, dense, pack_trunk, packed
from tests.adapters.networks import PLAIN, ROTARY, adapted, adapter_parameters, build, images
from tests.methods.scene import SMALL_HEAD, tiny_batch

GATED = "dinov3:width=32,depth=2,heads=2,patch=8,swiglu=true,hidden=64,qkv_bias=true"
every_width = pytest.mark.parametrize("bits", [16, 8, 4])
every_network = pytest.mark.parametrize("name", [PLAIN, ROTARY, GATED], ids=["plain", "rotary", "gated"])
every_kind = pytest.mark.parametrize("kind", ["uniadapter", "adaptformer", "lora"])


def _maps(backbone: Backbone) -> dict[str, PackedLinear]:
    return {name: m for name, m in backbone.named_modules() if isinstance(m, PackedLinear)}


def _pair(kind: str, name: str, bits: TrunkBits) -> tuple[Backbone, Backbone]:
    """A packed backbone, and one whose dense weights are what the packed ones say."""
    found, oracle = adapted(kind, name), adapted(kind, name)
    pack_trunk(found, bits)
    with torch.no_grad():
        for place, packed_map in _maps(found).items():
            linear: Any = oracle.get_submodule(place)
            linear.weight.copy_(packed_map.weight)
    return found, oracle


@pytest.mark.parametrize("bits", [8, 4])
def test_a_number_is_off_by_half_a_step_of_its_group_at_most(bits: Any) -> None:
    weight: Any = torch.randn(48, 96, generator=torch.Generator().manual_seed(0)) * torch.logspace(-3, 1, 48)[:, None]
    weight[3, :32], weight[4] = 0.7, 0.0  # groups without a spread
    groups = weight.unflatten(1, (-1, 32))
    step = (groups.amax(-1, keepdim=True) - groups.amin(-1, keepdim=True)) / (2**bits - 1)
    error: Any = dense(packed(weight, bits), torch.float32) - weight
    error = error.unflatten(1, (-1, 32)).abs()
    assert torch.all(error <= 0.5 * step + 2e-3 * groups.abs().amax(-1, keepdim=True))
    assert float(error.max()) > 0


@every_width
def test_a_packed_map_takes_its_bits_and_those_of_its_groups(bits: TrunkBits) -> None:
    linear = nn.Linear(128, 64).requires_grad_(False)
    numbers = sum(p.nbytes for p in PackedLinear(linear, bits).packed)
    assert 8 * numbers / linear.weight.numel() == {16: 16, 8: 9, 4: 5}[bits]


@every_kind
@every_network
@every_width
def test_a_packed_trunk_computes_what_its_weights_say(kind: str, name: str, bits: TrunkBits) -> None:
    found, oracle = _pair(kind, name, bits)
    pixels = images(24, 40)
    for backbone in (found, oracle):
        backbone.recompute_blocks = backbone is found and bits == 8
        (backbone(pixels).sequence.square().mean() + backbone.class_token(pixels).square().mean()).backward()
    torch.testing.assert_close(found(pixels).sequence, oracle(pixels).sequence, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(found.class_token(pixels), oracle.class_token(pixels), atol=1e-5, rtol=1e-4)
    attention = (b(pixels, cls_attention=True).cls_attention for b in (found, oracle))
    torch.testing.assert_close(*attention, atol=1e-5, rtol=1e-4)
    theirs = adapter_parameters(oracle)
    for n, parameter in adapter_parameters(found).items():
        torch.testing.assert_close(parameter.grad, theirs[n].grad, atol=1e-6, rtol=1e-3)


@every_network
@torch.no_grad()
def test_more_bits_are_nearer(name: str) -> None:
    whole = adapted("uniadapter", name)(images()).sequence
    errors = []
    for bits in (16, 8, 4):
        backbone = adapted("uniadapter", name)
        pack_trunk(backbone, bits)
        errors.append(float((backbone(images()).sequence - whole).norm() / whole.norm()))
    assert 0 < errors[0] < 0.02 and errors[0] < errors[2] and errors[1] < 0.3 * errors[2]


def test_no_dense_weight_is_kept_for_the_way_back() -> None:
    linear = nn.Linear(256, 256).requires_grad_(False)
    x, kept = torch.randn(3, 256, requires_grad=True), []
    packed_map = PackedLinear(linear, 4)

    def keep(tensor: Tensor) -> Tensor:
        kept.append(tensor.nbytes)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
        packed_map(x)
    assert sum(kept) < linear.weight.nbytes / 5


def test_norms_biases_heads_and_adapters_stay_what_they_are() -> None:
    before = {n: p.dtype for n, p in adapted("lora").named_parameters() if "weight" not in n or ".adapter." in n}
    backbone = adapted("lora")
    pack_trunk(backbone, 4)
    after = {n: p.dtype for n, p in backbone.named_parameters()}
    assert all(after[n] == dtype for n, dtype in before.items())
    block = plain_block(backbone.vit.blocks[0])
    assert isinstance(block.norm1, nn.LayerNorm) and isinstance(backbone.vit.patch_embed.proj, nn.Conv2d)
    assert {n.rsplit(".", 2)[-2] for n in _maps(backbone)} == {"attn", "mlp"}


def test_a_teacher_shares_the_packed_weights() -> None:
    student = adapted("uniadapter")
    pack_trunk(student, 4)
    teacher = EmaTeacher(student).network
    for name, packed_map in _maps(student).items():
        theirs = teacher.get_submodule(name)
        assert all(a is b for a, b in zip(packed_map.parameters(), theirs.parameters(), strict=True))


@every_kind
@every_width
def test_bfloat16_steps_compute_with_the_packed_weights_as_they_are(kind: str, bits: TrunkBits) -> None:
    found, oracle = _pair(kind, PLAIN, bits)
    methods = [Dino(DinoOptions(**SMALL_HEAD), copy.deepcopy(b)) for b in (found, oracle)]
    methods[1].load_state_dict({n: t for n, t in methods[0].state_dict().items() if "packed" not in n}, strict=False)
    sequences = []
    for method in methods:
        copies = ComputeCopies(method, torch.bfloat16)
        backbone = method.exported()
        assert not [t for t in copies.standing if t.dtype in (torch.uint8, torch.float16)]
        sequences.append(copies.call(method, lambda b=backbone: b(images()).sequence))  # type: ignore[misc]
        loss = copies.call(method, lambda m=method: m(tiny_batch(), Progress(0, 10)).total)  # type: ignore[misc]
        loss.backward()
        assert all(p.grad is None or p.grad.dtype == torch.float32 for p in method.parameters())
    assert sequences[0].dtype == torch.bfloat16
    error = (sequences[0] - sequences[1]).float().norm() / sequences[1].float().norm()
    assert error < 0.03


def test_what_cannot_be_packed_is_refused_and_left_alone() -> None:
    training, odd = build(), build("vit:width=32,depth=2,heads=2,patch=8,img=32,hidden=40")
    attach(training, AdapterOptions(), train="all")
    odd.requires_grad_(False)
    with pytest.raises(RequestError, match=r"trunk_bits = 8: qkv of the blocks trains"):
        pack_trunk(training, 8)
    with pytest.raises(RequestError, match=r"fc2 reads 40 numbers, which groups of 32 do not divide; use 16"):
        pack_trunk(odd, 4)
    assert not _maps(training) and not _maps(odd)
    pack_trunk(odd, 16)
    assert len(_maps(odd)) == 8


def test_packed_weights_can_be_handed_in() -> None:
    backbone = adapted("uniadapter")
    pack_trunk(backbone, 8)
    expected = backbone(images()).sequence
    found = functional_call(backbone, dict(backbone.named_parameters()), (images(),)).sequence
    assert torch.equal(found, expected)
