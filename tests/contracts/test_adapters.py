# SPDX-License-Identifier: Apache-2.0
"""What every adapter in the table promises. A newcomer is tested the moment it is listed."""

from __future__ import annotations

import copy
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.func import functional_call

from rekindle.adapters import ADAPTERS
from rekindle.adapters.attach import adapters_enabled, attach
from rekindle.adapters.options import AdapterOptions
from rekindle.adapters.replacing import ReplacingBlock
from rekindle.adapters.saved import Lineage, load_backbone, model_hash, save_model
from rekindle.core.errors import RequestError
from rekindle.core.progress import Progress
from rekindle.core.tables import import_named
from rekindle.engine.precision import ComputeCopies
from rekindle.methods.dino import Dino, DinoOptions
from rekindle.methods.shared.teacher import EmaTeacher
from rekindle.networks.backbone import Backbone
from rekindle.networks.blocks import ComposedBlock
from rekindle.networks.checkpoints.tensors import write_checkpoint
from rekindle.networks.options import NetworkOptions
from tests.adapters.networks import PLAIN, ROTARY, ROTARY_GATED, adapted, adapter_parameters, build, images, move
from tests.methods.scene import SMALL_HEAD, tiny_batch

ARCHITECTURES = (PLAIN, ROTARY)
every_adapter = pytest.mark.parametrize("kind", ADAPTERS)
on_both = pytest.mark.parametrize("name", ARCHITECTURES, ids=["plain", "rotary"])


def _loss(backbone: Backbone) -> Tensor:
    weights = torch.randn(32, generator=torch.Generator().manual_seed(5))
    loss: Tensor = (backbone(images(24, 32)).sequence.square() * weights).mean()
    return loss


@every_adapter
@on_both
@pytest.mark.parametrize("training", [False, True])
def test_a_fresh_adapter_changes_no_bit(kind: str, name: str, training: bool) -> None:
    backbone = build(name)
    sizes = [(32, 32), (24, 48), (16, 16)]
    expected = [(backbone(images(*s), cls_attention=True), backbone.class_token(images(*s))) for s in sizes]
    attach(backbone, AdapterOptions(kind=kind, rank=4), train="adapters")
    assert all(isinstance(block, ComposedBlock) for block in backbone.vit.blocks)
    backbone.train(training)
    for size, (tokens, token) in zip(sizes, expected, strict=True):
        found = backbone(images(*size), cls_attention=True)
        assert torch.equal(found.sequence, tokens.sequence)
        assert torch.equal(found.cls_attention, tokens.cls_attention)
        assert torch.equal(backbone.class_token(images(*size)), token)


@every_adapter
@on_both
def test_only_the_adapter_trains_and_all_of_it_gets_a_gradient_after_one_update(kind: str, name: str) -> None:
    backbone = adapted(kind, name, trained=False)
    base = {n: p.clone() for n, p in backbone.named_parameters() if ".adapter." not in n}
    plain = {n for n, _ in build(name).named_parameters()}
    assert base.keys() == {re.sub(r"(blocks\.\d)", r"\1.block", n) for n in plain}
    own = adapter_parameters(backbone)
    assert {n for n, p in backbone.named_parameters() if p.requires_grad} == own.keys() != set()
    optimizer = torch.optim.SGD(own.values(), lr=0.1)
    for step in range(2):
        optimizer.zero_grad()
        torch.autograd.backward(_loss(backbone))
        assert {n for n, p in backbone.named_parameters() if p.grad is not None} == own.keys()
        if step == 1:
            assert all(bool(p.grad.any()) for p in own.values() if p.grad is not None)
        optimizer.step()
    now = dict(backbone.named_parameters())
    assert all(torch.equal(now[n], p) for n, p in base.items())


@every_adapter
@on_both
def test_switched_off_after_training_it_is_the_base_bit_for_bit(kind: str, name: str) -> None:
    base, backbone, pixels = build(name), adapted(kind, name), images(24, 40)
    before, changed = base(pixels, cls_attention=True), backbone(pixels, cls_attention=True)
    assert not torch.allclose(changed.sequence, before.sequence, atol=1e-3)
    with adapters_enabled(backbone, False):
        off = backbone(pixels, cls_attention=True)
        assert torch.equal(off.sequence, before.sequence)
        assert torch.equal(off.cls_attention, before.cls_attention)
        assert torch.equal(backbone.class_token(pixels), base.class_token(pixels))
    again = backbone(pixels, cls_attention=True)
    assert torch.equal(again.sequence, changed.sequence)
    assert torch.equal(again.cls_attention, changed.cls_attention)


@every_adapter
@pytest.mark.parametrize("name", [*ARCHITECTURES, ROTARY_GATED])
def test_the_class_token_alone_is_that_of_all_tokens(kind: str, name: str) -> None:
    backbone, pixels = adapted(kind, name), images(24, 40)
    full = backbone(pixels)
    torch.testing.assert_close(backbone.class_token(pixels), full.class_token, atol=2e-5, rtol=1e-4)


@every_adapter
@on_both
def test_the_class_tokens_attention_is_the_adapted_networks_own(kind: str, name: str) -> None:
    backbone, pixels = adapted(kind, name), images()
    backbone.attend_plainly()
    last = backbone.vit.blocks[-1].block.attn
    seen: list[Tensor] = []
    last.attn_drop.register_forward_hook(lambda module, inputs, output: seen.append(output))
    found = backbone(pixels, cls_attention=True).cls_attention
    assert found is not None
    row = seen[-1][:, :, 0, backbone.num_prefix :]
    torch.testing.assert_close(found.flatten(2), row, atol=1e-5, rtol=1e-4)


@every_adapter
@on_both
def test_recomputed_blocks_give_the_same_gradients(kind: str, name: str) -> None:
    plain, again = adapted(kind, name), adapted(kind, name)
    again.recompute_blocks = True
    for backbone in (plain, again):
        torch.autograd.backward(_loss(backbone))
    theirs = adapter_parameters(again)
    for n, parameter in adapter_parameters(plain).items():
        torch.testing.assert_close(parameter.grad, theirs[n].grad)


_TRACE = """
import sys, torch
from rekindle.networks.blocks import BlockPass, run_block
from tests.adapters.networks import adapted

for kind in sys.argv[1:]:
    torch._dynamo.reset()
    block, x = adapted(kind).vit.blocks[0], torch.randn(2, 17, 32)
    traced = torch.compile(run_block, backend="aot_eager", fullgraph=True)
    for rows in (None, 1, None):
        torch.testing.assert_close(traced(block, x, BlockPass(rows=rows)), run_block(block, x, BlockPass(rows=rows)))
        with torch.no_grad():
            for parameter in block.adapter.parameters():
                parameter += 0.1
"""


@pytest.mark.slow
def test_torch_compile_takes_a_block_of_any_kind_as_one_graph() -> None:
    # in a process of its own: the compiler cannot look through the shape checks of these tests
    subprocess.run([sys.executable, "-c", _TRACE, *ADAPTERS], check=True, cwd=Path(__file__).parents[2])


@every_adapter
@on_both
def test_weights_handed_in_from_outside_are_the_ones_that_count(kind: str, name: str) -> None:
    backbone, other, pixels = adapted(kind, name), adapted(kind, name), images()
    move(other)
    handed = functional_call(backbone, dict(other.named_parameters()), (pixels,))
    assert torch.equal(handed.sequence, other(pixels).sequence)
    assert not torch.allclose(handed.sequence, backbone(pixels).sequence)


@every_adapter
@on_both
def test_states_and_copies_carry_everything(kind: str, name: str) -> None:
    backbone, other, pixels = adapted(kind, name), adapted(kind, name, trained=False), images()
    assert not torch.allclose(other(pixels).sequence, backbone(pixels).sequence)
    other.load_state_dict(backbone.state_dict(), strict=True)
    assert torch.equal(other(pixels).sequence, backbone(pixels).sequence)
    copied = copy.deepcopy(backbone)
    move(backbone)
    assert torch.equal(copied(pixels).sequence, other(pixels).sequence)


@every_adapter
@on_both
def test_the_saved_file_holds_the_adapter_alone_and_gives_equal_features(kind: str, name: str, tmp_path: Path) -> None:
    write_checkpoint(build(name), tmp_path / "base.safetensors")
    backbone, _ = load_backbone(tmp_path / "base.safetensors")
    options, base_hash = AdapterOptions(kind=kind, rank=4), model_hash(backbone)
    attachment = attach(backbone, options, train="adapters")
    move(backbone)
    lineage = Lineage(
        base=str(tmp_path / "base.safetensors"),
        base_hash=base_hash,
        base_licence=None,
        train="adapters",
        adapter=options,
        network=NetworkOptions(),
        method="dino",
        steps=1,
    )
    save_model(tmp_path / "run", backbone, attachment.trained, lineage)
    loaded, _ = load_backbone(tmp_path / "run")
    assert torch.equal(loaded.eval()(images()).sequence, backbone.eval()(images()).sequence)
    small, whole = ((tmp_path / n).stat().st_size for n in ("run/model.safetensors", "base.safetensors"))
    assert small < whole / 4
    going_on = attach(loaded, options, train="adapters")
    assert going_on == attachment


@every_adapter
def test_another_kind_on_top_is_refused(kind: str) -> None:
    for other in ADAPTERS:
        if other != kind:
            with pytest.raises(RequestError, match=f"adapters of another kind than {other}"):
                attach(adapted(kind), AdapterOptions(kind=other, rank=4), train="adapters")


@every_adapter
@on_both
def test_a_teacher_shares_the_base_and_averages_the_adapter_alone(kind: str, name: str) -> None:
    backbone = adapted(kind, name, trained=False)
    teacher = EmaTeacher(backbone)
    own, theirs = dict(backbone.named_parameters()), dict(teacher.network.named_parameters())
    start = {n: p.detach().clone() for n, p in adapter_parameters(backbone).items()}
    assert all((theirs[n] is own[n]) == (n not in start) for n in own)
    move(backbone)
    assert torch.equal(teacher.network(images()).sequence, build(name)(images()).sequence)
    teacher.update(backbone, 0.75)
    for n, before in start.items():
        torch.testing.assert_close(theirs[n].detach(), 0.75 * before + 0.25 * own[n].detach())
    teacher.update(backbone, 0.0)
    assert torch.equal(teacher.network(images()).sequence, backbone(images()).sequence)


@every_adapter
@on_both
def test_a_step_on_bfloat16_copies_runs_and_gives_nearly_the_same_gradients(kind: str, name: str) -> None:
    def method() -> Any:
        torch.manual_seed(2)
        return Dino(DinoOptions(**SMALL_HEAD), adapted(kind, name))

    exact, low, batch, start = method(), method(), tiny_batch(4), Progress(0, 10)
    exact(batch, start).total.backward()
    loss = ComputeCopies(low, torch.bfloat16).call(low, lambda: low(batch, start)).total
    torch.autograd.backward(loss)
    named = dict(exact.named_parameters())
    pairs = [(p.grad, named[n].grad) for n, p in low.named_parameters() if ".adapter." in n and p.requires_grad]
    assert pairs and all(g is not None and g.dtype == torch.float32 for g, _ in pairs)
    flat, other = (torch.cat([p[i].flatten() for p in pairs]) for i in (0, 1))
    assert float(torch.nn.functional.cosine_similarity(flat, other, dim=0)) > 0.9


@every_adapter
def test_the_table_says_of_a_kind_what_its_code_does(kind: str) -> None:
    entry = ADAPTERS[kind]
    assert issubclass(import_named(ADAPTERS, "adapter", kind), ReplacingBlock) == entry.folds
    small, wide = (sum(p.numel() for p in adapter_parameters(adapted(kind, rank=r)).values()) for r in (2, 4))
    assert (small == wide) == (entry.usual_rank is None)
    low, high = (adapted(kind, scale=s)(images()).sequence for s in (0.1, 0.2))
    assert torch.equal(low, high) != entry.has_scale
    if entry.moves_base:
        assert adapter_parameters(adapted(kind)).keys() <= {
            n.replace(".block.", ".adapter.") for n, _ in adapted(kind).named_parameters()
        }
