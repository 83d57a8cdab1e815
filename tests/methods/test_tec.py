# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from rekindle.adapters.attach import attach
from rekindle.adapters.options import AdapterOptions
from rekindle.core.errors import RequestError
from rekindle.core.option_trees import nested
from rekindle.core.progress import Progress
from rekindle.core.rng import seeded_default
from rekindle.engine.optimizer import set_schedule
from rekindle.methods.shared.masking import draw_visible
from rekindle.methods.tec import PRESETS, Tec, TecOptions
from rekindle.networks.blocks import run_block
from rekindle.networks.checkpoints.create import create_backbone
from rekindle.networks.options import NetworkOptions
from rekindle.objectives import plain
from rekindle.pretraining.options import resolve
from rekindle.views.batch import ViewBatch
from rekindle.views.options import ViewsOptions
from tests.methods.scene import ARCH, tiny_backbone, tiny_batch

START = Progress(0, 10)
SMALL: dict[str, Any] = {"decoder_width": 16, "decoder_heads": 2, "blocks_per_group": 1, "num_selected": 3}
SMOKE = "vit:width=32,depth=6,heads=4,patch=8,img=64"
SMOKE_VIEWS = ViewsOptions(global_size_px=64, local_size_px=32, num_local=1)
ATTENTION = ("none", "cls_only", "all", "select")


def tiny_tec(train: str = "all", *, base: str = ARCH, seed: int = 0, **options: Any) -> Tec:
    backbone = tiny_backbone(train, arch=base, seed=seed)
    with seeded_default(seed, "method"):
        return Tec(TecOptions(**{**SMALL, **options}), backbone)


def pixels_of(batch: ViewBatch) -> torch.Tensor:
    return batch.global_views.pixels.flatten(0, 1)


def sharpened(method: Tec) -> Tec:
    """Give the base model an attention that is not flat, and channels of different scale."""
    draw = torch.Generator().manual_seed(5)
    for name, parameter in method.base_model.named_parameters():
        if "attn.qkv.weight" in name or "mlp.fc2.weight" in name:
            parameter.data.copy_(0.4 * torch.randn(parameter.shape, generator=draw))
    return method


# The loss, as its equations say it


@torch.no_grad()
@pytest.mark.parametrize("target_norm", ["none", "channel", "patch"])
@pytest.mark.parametrize("attention", ATTENTION)
def test_the_loss_is_that_of_the_equations_one_image_row_and_patch_at_a_time(target_norm: str, attention: str) -> None:
    """Equations 3 to 5, 4 and 5 in their plain form; the base's blocks and its attention are computed here once more."""
    method = sharpened(tiny_tec(target_norm=target_norm, attention=attention, temperature=1.8)).eval()
    batch = tiny_batch(2)
    found, pixels = method(batch, START), pixels_of(batch)
    keep, hidden = draw_visible(START, 2, 2, 16, 0.75)
    base = method.base_model.backbone
    x, _, _ = base.embed(pixels)
    outputs, before = [], x
    for block in base.vit.blocks:
        before, x = x, run_block(block, x)
        outputs.append(x)
    features = ((outputs[-2] + outputs[-1]) / 2)[:, 1:]
    last = base.vit.blocks[-1]
    q, k, _ = last.attn.qkv(last.norm1(before)).unflatten(-1, (3, 2, 16)).unbind(2)
    fused = method.conditioning.fuse(method.encode(pixels, keep))
    predictions, targets, entropies = [], [], []
    for n in range(4):
        scores = [(q[n, :, h] @ k[n, :, h].T) / 4 for h in range(2)]
        strongest = sorted(range(16), key=lambda p: -sum(float(s[0, 1 + p]) for s in scores))
        rows = {"cls_only": [], "all": list(range(16)), "select": strongest[:3]}.get(attention, [])
        index = None if attention == "none" else torch.tensor([rows], dtype=torch.long)
        predicted, logits = method.decoder(fused[n : n + 1], keep[n : n + 1], (4, 4), index)
        y = features[n]
        if target_norm != "none":
            dim = 0 if target_norm == "patch" else 1
            y = (y - y.mean(dim, keepdim=True)) / (y.var(dim, keepdim=True) + 1e-6).sqrt()
        predictions.append(predicted[0])
        targets.append(y)
        if logits is not None:
            for place, token in enumerate([0, *(p + 1 for p in rows)]):
                for h in range(2):
                    target = (scores[h][token, 1:] / 1.8).softmax(dim=-1)
                    entropies.append(plain.row_cross_entropy(logits[0, place, h], target, temperature=1.0))
    assert int(hidden.sum()) == 4 * 12
    terms = {"fea": float(plain.hidden_patch_error(torch.stack(predictions), torch.stack(targets), hidden))}
    if attention != "none":
        terms["att"] = float(torch.stack(entropies).mean())
    assert {n: float(v) for n, v in found.terms.items()} == pytest.approx(terms, rel=1e-4)
    assert float(found.total) == pytest.approx(sum(terms.values()), rel=1e-4)


@torch.no_grad()
def test_predictions_at_visible_patches_do_not_matter_to_the_features_loss() -> None:
    """Property 7, in the method: what the decoder predicts where the encoder has seen is not read."""
    method, batch = tiny_tec(attention="none").eval(), tiny_batch(2)
    before = float(method(batch, START).total)
    _, hidden = draw_visible(START, 2, 2, 16, 0.75)
    predict = method.decoder.feature_head.predict
    hook = predict.register_forward_hook(lambda m, a, out: out + 100.0 * ~hidden[..., None])
    assert float(method(batch, START).total) == pytest.approx(before)
    hook.remove()
    predict.register_forward_hook(lambda m, a, out: out + 100.0 * hidden[..., None])
    assert float(method(batch, START).total) > before + 100


def test_ranking_by_probability_and_by_logits_may_select_different_rows() -> None:
    batch = tiny_batch(4)
    by_logits, by_prob = (sharpened(tiny_tec(rank_on=rank)) for rank in ("logits", "prob"))
    assert torch.equal(by_logits.base_model(pixels_of(batch)).features, by_prob.base_model(pixels_of(batch)).features)
    terms = [float(m(batch, START).terms["att"]) for m in (by_logits, by_prob)]
    assert terms[0] != terms[1]


@pytest.mark.parametrize(("scale", "factor"), [("full", 32**-0.5), ("head", 16**-0.5)])
def test_the_scale_of_predicted_attention_is_an_option(scale: str, factor: float) -> None:
    head = tiny_tec(attention_scale=scale).decoder.attention_head
    assert head is not None and head.scale == pytest.approx(factor)


# What is hidden, and what it saves


def test_a_quarter_of_the_patches_is_visible_and_each_draw_is_a_permutation() -> None:
    """Property 4: 147 of 196 hidden for every image; kept and hidden patches together are all patches."""
    keep, hidden = draw_visible(START, 3, 2, 196, 0.75)
    assert bool((hidden.sum(dim=1) == 147).all())
    for row, mask in zip(keep, hidden, strict=True):
        assert sorted([*row.tolist(), *mask.nonzero()[:, 0].tolist()]) == list(range(196))


@torch.no_grad()
def test_hidden_pixels_do_not_reach_the_new_encoder_and_do_reach_the_base() -> None:
    """Property 3: what the base makes of an image is the same whatever is hidden."""
    method, batch = tiny_tec().eval(), tiny_batch(2)
    pixels = pixels_of(batch)
    keep, hidden = draw_visible(START, 2, 2, 16, 0.75)
    noise = torch.randn_like(pixels) * hidden.view(4, 1, 4, 4).repeat_interleave(8, 2).repeat_interleave(8, 3)
    for ours, theirs in zip(method.encode(pixels, keep), method.encode(pixels + noise, keep), strict=True):
        torch.testing.assert_close(ours, theirs)
    assert not torch.allclose(method.base_model(pixels).features, method.base_model(pixels + noise).features)


@torch.no_grad()
def test_the_encoder_computes_the_visible_share_of_the_tokens() -> None:
    """FLOPs as torch counts them: the blocks run 1 + 16 of 1 + 64 tokens; every patch is embedded."""
    method = tiny_tec(base=SMOKE).eval()
    method.student.attend_plainly()  # products, which the counter knows on every device
    pixels = torch.randn(2, 3, 64, 64)
    counted = []
    for visible in (16, 64):
        keep = torch.arange(visible).expand(2, -1)
        with FlopCounterMode(display=False) as counter:
            method.encode(pixels, keep)
        counted.append(counter.get_total_flops())
    width, depth = 32, 6
    embedding, class_mlp = 2 * 2 * 64 * 3 * 8 * 8 * width, 2 * 2 * 4 * width**2
    blocks = [flops - embedding - class_mlp for flops in counted]
    for flops, tokens in zip(blocks, (17, 65), strict=True):
        assert flops == 2 * depth * (2 * tokens * 12 * width**2 + 4 * tokens**2 * width)
    assert blocks[0] / blocks[1] < 17 / 65


def test_one_visible_patch_is_enough() -> None:
    found = tiny_tec(mask_ratio=0.93)(tiny_batch(2), START)
    assert bool(found.total.isfinite()) and float(found.stats["visible"]) == pytest.approx(1 / 16)
    assert float(found.stats["feature_variance"]) == 0


def test_registers_stay_behind_and_rotary_positions_follow_the_visible_patches() -> None:
    for arch in (f"{ARCH},registers=2", "dinov3:width=32,depth=2,heads=2,patch=8,img=32"):
        method = tiny_tec(base=arch)
        keep, _ = draw_visible(START, 2, 2, 16, 0.75)
        assert {x.shape for x in method.encode(pixels_of(tiny_batch(2)), keep)} == {(4, 5, 32)}
        found = method(tiny_batch(2), START)
        found.total.backward()
        assert all(p.grad is not None for p in method.parameters() if p.requires_grad)


# The base model


def test_the_base_is_bit_identical_after_five_steps_and_gets_no_gradient() -> None:
    """Property 3."""
    method, batch = tiny_tec(), tiny_batch(2)
    before = {n: t.clone() for n, t in method.base_model.state_dict().items()}
    optimizer = torch.optim.AdamW([p for p in method.parameters() if p.requires_grad], lr=1e-2)
    for step in range(5):
        optimizer.zero_grad()
        method.train()(batch, Progress(step, 10)).total.backward()
        assert all(p.grad is None for p in method.base_model.parameters())
        optimizer.step()
    assert all(torch.equal(t, before[n]) for n, t in method.base_model.state_dict().items())
    assert not method.base_model.backbone.training


def test_a_checkpoint_need_not_hold_the_base() -> None:
    method = tiny_tec()
    assert {f"base_model.{n}" for n, _ in method.base_model.named_parameters()} <= method.frozen_names()
    assert not any(n.startswith(("conditioning.", "decoder.")) for n in method.frozen_names())


def test_a_larger_base_and_a_smaller_new_encoder() -> None:
    """Property 15: heads predict the width and the attention heads of the base."""
    with seeded_default(0, "method"):
        base = tiny_backbone("all", arch="vit:width=64,depth=3,heads=4,patch=8,img=32")
        method = Tec(TecOptions(**SMALL, arch="vit:width=32,depth=2,heads=2"), base)
    seen: list[Any] = []
    method.decoder.register_forward_hook(lambda module, arguments, output: seen.append(output))
    found = method(tiny_batch(2), START)
    assert seen[0][0].shape == (4, 16, 64) and seen[0][1].shape == (4, 4, 4, 16)
    found.total.backward()
    assert method.exported().width == 32 and method.base_model.backbone is base


def test_a_base_with_folded_updates_shows_the_attention_that_it_has() -> None:
    """LoRA changes queries and keys; the copy that is learnt from holds them in its weights, the one that trains beside them."""
    backbone, _ = create_backbone(ARCH, NetworkOptions(drop_path=0.0), init="random")
    attach(backbone, AdapterOptions(kind="lora", rank=4), train="adapters")
    for name, parameter in backbone.named_parameters():
        if "lora" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    wanted = backbone.eval()(pixels_of(tiny_batch(2)), cls_attention=True).cls_attention
    method = Tec(TecOptions(**SMALL, start="base", input_adapter=False), backbone)
    row = method.base_model(pixels_of(tiny_batch(2))).attention.class_logits.softmax(dim=-1)[..., 1:]
    torch.testing.assert_close(row, wanted.flatten(2), atol=1e-5, rtol=1e-4)
    assert all("lora" in n for n, p in method.student.named_parameters() if p.requires_grad)


# The new encoder


def test_the_new_encoder_is_drawn_or_is_the_base() -> None:
    drawn, loaded = tiny_tec(), tiny_tec(start="base")
    theirs = drawn.base_model.backbone.state_dict()
    assert all(not torch.equal(t, theirs[n]) for n, t in drawn.student.state_dict().items() if t.ndim > 1)
    same = loaded.base_model.backbone.state_dict()
    assert all(torch.equal(t, same[n]) for n, t in loaded.student.state_dict().items())
    shared = {id(p) for p in loaded.student.parameters()} & {id(p) for p in loaded.base_model.parameters()}
    assert not any(id(p) in shared for p in loaded.student.parameters() if p.requires_grad)


@torch.no_grad()
def test_what_is_exported_is_a_plain_network_that_encodes_as_the_conditioned_one() -> None:
    """Property 1, through the method."""
    method, pixels = tiny_tec().eval(), pixels_of(tiny_batch(2))
    everything = torch.arange(16).expand(4, -1)
    exported = method.exported()
    torch.testing.assert_close(
        exported.forward_features(pixels), method.encode(pixels, everything)[-1], atol=1e-6, rtol=1e-6
    )
    assert exported.state_dict().keys() == method.base_model.backbone.state_dict().keys()


@torch.no_grad()
def test_encoder_adapters_only_read() -> None:
    """Property 14: with or without them the encoder computes the same, and what is exported is the same."""
    pixels, keep = pixels_of(tiny_batch(2)), draw_visible(START, 2, 2, 16, 0.75)[0]
    attached, detached = tiny_tec(base=SMOKE, blocks_per_group=3), tiny_tec(base=SMOKE, encoder_adapter=False)
    attached.conditioning.input = detached.conditioning.input
    for ours, theirs in zip(attached.encode(pixels, keep), detached.encode(pixels, keep), strict=True):
        assert torch.equal(ours, theirs)
    plain = detached.encode(pixels, keep)
    assert torch.equal(detached.conditioning.fuse(plain), plain[-1])
    assert not torch.allclose(attached.conditioning.fuse(plain), plain[-1])


@pytest.mark.parametrize("attention", ATTENTION)
@pytest.mark.parametrize(("input_adapter", "encoder_adapter"), [(False, False), (True, False), (False, True)])
def test_every_component_may_be_left_out(attention: str, input_adapter: bool, encoder_adapter: bool) -> None:
    method = tiny_tec(attention=attention, input_adapter=input_adapter, encoder_adapter=encoder_adapter)
    found = method(tiny_batch(2), START)
    found.total.backward()
    assert (method.conditioning.input is None) != input_adapter
    assert (method.conditioning.encoder is None) != encoder_adapter
    assert set(found.terms) == ({"fea"} if attention == "none" else {"fea", "att"})
    for name, parameter in method.named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad, name


@pytest.mark.parametrize(
    ("options", "groups", "blocks"), [({}, 2, 2), ({"blocks_per_group": 3, "decoder_depth": 8}, 2, 8)]
)
def test_groups_and_depth_of_the_decoder_are_options(options: dict[str, Any], groups: int, blocks: int) -> None:
    method = tiny_tec(base=SMOKE if options else ARCH, **options)
    assert method.conditioning.encoder is not None
    assert len(method.conditioning.encoder.linear) == groups and len(method.decoder.blocks) == blocks


@pytest.mark.parametrize(("width", "wanted"), [(768, 512), (1024, 768)])
def test_the_decoder_follows_the_encoder_where_nobody_sets_its_width(width: int, wanted: int) -> None:
    base = tiny_backbone("all", arch=f"vit:width={width},depth=1,heads=16,patch=16,img=32")
    method = Tec(TecOptions(blocks_per_group=1, last_layers=1), base)
    assert method.decoder.feature_stem.embed.out_features == wanted
    assert method.conditioning.encoder is not None
    hidden = method.conditioning.encoder.state_dict()["mlp.0.fc1.weight"].shape[0]
    assert hidden == 4 * wanted


def test_presets_follow_the_base_and_options_override_them() -> None:
    assert (tiny_tec(num_selected=None).num_selected, tiny_tec().temperature) == (9, 1.0)
    named = tiny_tec(preset="mae-l", num_selected=None)
    assert (named.num_selected, named.temperature) == (15, 1.4)
    assert (tiny_tec(preset="mae-b", num_selected=4, temperature=3.0).temperature) == 3.0
    assert PRESETS["mae-b"].temperature == 1.8
    mae = tiny_backbone("all", arch="vit:width=768,depth=1,heads=12,patch=16,img=32")
    mae.identity = replace(mae.identity, name="vit_base_patch16_224.mae")
    method = Tec(TecOptions(decoder_width=16, decoder_heads=2, blocks_per_group=1, last_layers=1), mae)
    assert (method.num_selected, method.temperature) == (15, 1.8)
    second = Tec(TecOptions(decoder_width=16, decoder_heads=2, blocks_per_group=1, last_layers=1), method.exported())
    assert second.temperature == 1.8  # a later round is of its first base's family


def test_a_file_of_mae_is_known_whatever_its_name_and_what_was_drawn_beside_another_is_not() -> None:
    small = TecOptions(decoder_width=16, decoder_heads=2, blocks_per_group=1, last_layers=1)
    other = tiny_backbone("all", arch="vit:width=768,depth=1,heads=12,patch=16,img=32")
    first = Tec(small, other)
    assert (first.num_selected, first.temperature) == (9, 1.0)
    assert Tec(small, first.exported()).temperature == 1.0  # it has MAE's positions
    mae = tiny_backbone("all", arch="vit:width=768,depth=1,heads=12,patch=16,img=32", seed=1)
    mae.vit.pos_embed.data.copy_(first.student.vit.pos_embed)
    mae.identity = replace(mae.identity, name="pretrained.pth", source="file")
    found = Tec(small, mae)
    assert (found.num_selected, found.temperature) == (15, 1.8)
    assert Tec(small, found.exported()).temperature == 1.8


# What cannot be


@pytest.mark.parametrize(
    ("train", "base", "options", "message"),
    [
        ("adapters", ARCH, {"start": "base"}, r"--tec\.input-adapter false, or --train all"),
        ("all", ARCH, {"start": "base", "arch": "vit:width=32"}, r"leave one of them out"),
        ("all", f"{ARCH},class_token=false", {}, r"has none; use --tec\.attention none --tec\.input-adapter false"),
        (
            "all",
            f"{ARCH},class_token=false",
            {"attention": "none"},
            r"no class token to adapt; use --tec\.input-adapter false",
        ),
        (
            "all",
            ARCH,
            {"blocks_per_group": 3},
            r"blocks-per-group 3 does not divide the encoder's 2 blocks; use one of 1, 2",
        ),
        ("all", ARCH, {"last_layers": 3}, r"last-layers 3: the base model has 2 blocks"),
        ("all", ARCH, {"arch": "vit:width=32,depth=2,heads=2,patch=16,img=32"}, r"--tec\.arch .* use patch=8"),
    ],
)
def test_what_cannot_be_trained_is_refused_with_a_way_out(
    train: str, base: str, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(RequestError, match=message):
        tiny_tec(train, base=base, **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_selected": 17}, r"--tec\.num-selected 17: the views have 16 patches"),
        ({"mask_ratio": 0.95}, r"--tec\.mask-ratio 0\.95 leaves none of 16 patches visible; use at most 0\.938"),
    ],
)
def test_a_grid_that_is_too_small_is_refused_before_training_and_in_it(options: dict[str, Any], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        Tec.fitted(TecOptions(**options), (4, 4))
    with pytest.raises(RequestError, match=message):
        tiny_tec(**options)(tiny_batch(1), START)
    with pytest.raises(RequestError, match="num-selected 9: the views have 4 patches"):
        Tec.fitted(TecOptions(), (2, 2))


def test_without_class_token_features_alone_can_be_predicted() -> None:
    method = tiny_tec(base=f"{ARCH},class_token=false", attention="none", input_adapter=False)
    found = method(tiny_batch(2), START)
    found.total.backward()
    assert set(found.terms) == {"fea"}


# The run


def test_a_run_trains_all_weights_from_scratch_unless_asked_otherwise() -> None:
    resolved = resolve({}, {"method": "tec"})
    options = resolved.options
    assert (options.train, options.recipe, options.optim.head_warmup) == ("all", "paper", 0.0)
    assert (options.views.num_local, options.network.drop_path) == (0, 0.0)
    assert resolve({}, {"method": "tec", "train": "adapters"}).options.train == "adapters"


def test_the_papers_schedule_rises_for_forty_epochs_and_falls_by_a_cosine() -> None:
    """Property 16: at 4096 images a step the rate is 0, 1.2e-3, 2.4e-3, 1.2e-3, 0."""
    optim = resolve({}, nested({"method": "tec"})).options.optim
    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))])
    for group in optimizer.param_groups:
        group.update(decay=True, waits=False)
    for epoch, wanted in ((0, 0.0), (20, 1.2e-3), (40, 2.4e-3), (170, 1.2e-3), (300, 0.0)):
        progress = Progress(epoch * 1000, 300_000, steps_per_epoch=1000)
        found, decay = set_schedule(optimizer, optim, progress, 4096)
        assert found == pytest.approx(wanted, rel=1e-4, abs=1e-12) and decay == 0.05
    assert (optim.beta1, optim.beta2, optim.clip_norm) == (0.9, 0.95, 0.0)


def test_the_same_seed_gives_the_same_masks_and_losses() -> None:
    """Property 24."""

    def losses(seed: int) -> list[float]:
        method, batch = tiny_tec(seed=seed), tiny_batch(2)
        optimizer = torch.optim.AdamW([p for p in method.parameters() if p.requires_grad], lr=1e-3)
        found = []
        for step in range(3):
            optimizer.zero_grad()
            total = method(batch, Progress(step, 3, seed=seed)).total
            total.backward()
            optimizer.step()
            found.append(float(total.detach()))
        return found

    assert losses(0) == losses(0)
    assert losses(0) != losses(1)


def test_the_stats_say_what_is_worth_watching() -> None:
    found = sharpened(tiny_tec())(tiny_batch(2), START)
    assert float(found.stats["visible"]) == pytest.approx(0.25)
    assert 0 < float(found.stats["target_entropy"]) < math.log(16)
    assert float(found.terms["att"]) >= float(found.stats["target_entropy"])
    assert float(found.stats["feature_variance"]) > 0


@pytest.mark.slow
def test_a_few_images_are_learnt_by_heart() -> None:
    """Property 23: features' loss, and that of attention above the entropy of its target, fall by half and more."""
    method = tiny_tec(base=SMOKE, blocks_per_group=3, decoder_width=32, decoder_heads=4)
    maps = method.base_model.backbone.vit.blocks[-1].attn.qkv.weight  # queries and keys that tell patches apart
    torch.nn.init.normal_(maps[:64], std=0.3, generator=torch.Generator().manual_seed(5))
    batch = tiny_batch(8, views=SMOKE_VIEWS)
    optimizer = torch.optim.AdamW([p for p in method.parameters() if p.requires_grad], lr=5e-3, betas=(0.9, 0.95))
    curve: list[tuple[float, float]] = []
    for step in range(300):
        optimizer.zero_grad()
        found = method(batch, Progress(step, 300))
        found.total.backward()
        optimizer.step()
        curve.append((float(found.terms["fea"]), float(found.terms["att"] - found.stats["target_entropy"])))
    for place in range(2):
        last = sum(point[place] for point in curve[-10:]) / 10
        assert last < 0.5 * curve[0][place], (place, curve[0], last)


def test_the_share_of_every_group_is_logged() -> None:
    """Figure 5: shares of the groups of blocks in what the decoder reads."""
    method, batch = tiny_tec(), tiny_batch()
    found = method.loss(batch, Progress(step=0, total=4))
    shares = [float(value) for name, value in found.stats.items() if name.startswith("adapter_share_")]
    assert len(shares) == 2
    assert sum(shares) == pytest.approx(1.0, abs=1e-5)
    assert min(shares) > 0
    without = tiny_tec(encoder_adapter=False).loss(batch, Progress(step=0, total=4))
    assert not any(name.startswith("adapter_share_") for name in without.stats)
