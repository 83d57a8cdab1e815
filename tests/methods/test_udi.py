# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from rekindle.core.errors import RequestError
from rekindle.core.progress import Progress
from rekindle.core.rng import seeded_default
from rekindle.methods.udi import LEVELS, Udi, UdiOptions
from rekindle.networks.checkpoints.create import create_backbone
from rekindle.networks.options import NetworkOptions
from rekindle.networks.parts.sparse_read import SparseRead, one_hot_rows
from rekindle.objectives import plain
from rekindle.views.geometry import bilinear_rows, patch_centres, places_in
from rekindle.views.windows import sample_windows
from tests.methods.scene import ARCH, SMALL_HEAD, tiny_backbone, tiny_batch

START = Progress(0, 10)


def tiny_udi(train: str = "adapters", **options: Any) -> Udi:
    backbone = tiny_backbone(train, arch=f"{ARCH},registers=1")
    with seeded_default(0, "method"):
        method = Udi(UdiOptions(**{**SMALL_HEAD, "window": 2, "local_window": 1, **options}), backbone)
        for centre in method.centres.values():
            torch.nn.init.normal_(centre.value, std=0.05)  # type: ignore[arg-type]
    return method.eval()


@torch.no_grad()
def test_the_three_terms_are_means_of_the_plain_equation() -> None:
    """Section 8.3 of the GLARE specification: one teacher's view, one student's view, one image at a time."""
    method, batch = tiny_udi(), tiny_batch(3)
    assert batch.local_views is not None
    found = method(batch, START)
    student, teacher = method.student, method.teacher.network
    groups = [(batch.global_views, (4, 4), 2, "windows"), (batch.local_views, (2, 2), 1, "small windows")]
    views = []  # (raw tokens of the student, crops, sampled patches [B, n], grid)
    for group, grid, window, purpose in groups:
        (index,) = sample_windows(START, 3, 1, grid, window, purpose=purpose)  # one draw for all views of a size
        for number, pixels in enumerate(group.pixels):
            views.append((student.backbone(pixels, norm=False), group.crops[number], index, grid))

    def probs(logits: Tensor, level: str) -> Tensor:
        return plain.centred_softmax(logits, method.upkeep.centre(level).value, temperature=0.04)

    def entropy(tokens: Tensor, target: Tensor) -> float:
        return float(plain.row_cross_entropy(student.head(tokens), target, temperature=0.1))

    sums: dict[str, list[float]] = {name: [] for name in LEVELS}
    before, observed = method.upkeep.centre("patch").value.clone(), []
    norm = student.backbone.vit.norm
    for t in range(2):
        raw = teacher.backbone(batch.global_views.pixels[t], norm=False)
        for s, (tokens, crops, index, grid) in enumerate(views):
            for image in range(3):
                if s == t:
                    continue
                t_cls = teacher.head(norm(raw.class_token[image]))
                points = patch_centres(crops, grid)[image : image + 1, index[image]]
                maps = bilinear_rows(places_in(batch.global_views.crops[t][image : image + 1], points), (4, 4))
                inside = (maps[0].sum(dim=-1) > 0).nonzero()[:, 0].tolist()
                read = teacher.head(teacher.read(raw.patches[image : image + 1].flatten(1, 2), maps)[0])
                mixed = 0.5 * read[inside].mean(dim=0) + 0.5 * t_cls if inside else t_cls
                observed.append(read[inside])
                sums["cls"].append(entropy(norm(tokens.class_token[image]), probs(t_cls, "cls")))
                sums["cls+"].append(entropy(norm(tokens.registers[image, 0]), probs(mixed, "cls+")))
                if s < 2:
                    own = student.read(
                        tokens.patches[image : image + 1].flatten(1, 2),
                        one_hot_rows(index[image : image + 1], 16, torch.float32),
                    )[0]
                    sums["patch"].extend(entropy(own[i], probs(read[i], "patch")) for i in inside)
    assert len(sums["cls"]) == 18 and 0 < len(sums["patch"]) < 2 * 3 * 4
    for name in LEVELS:
        assert float(found.terms[name]) == pytest.approx(sum(sums[name]) / len(sums[name]), rel=1e-4), name
    assert float(found.total) == pytest.approx(sum(sum(v) / len(v) for v in sums.values()) / 3, rel=1e-4)
    method.after_step(START)  # the centre saw every place that was read, of small views as well
    expected = 0.9 * before + 0.1 * torch.cat(observed).mean(dim=0)
    torch.testing.assert_close(method.upkeep.centre("patch").value, expected)


@torch.no_grad()
def test_without_mixture_the_second_class_token_has_the_targets_of_the_first() -> None:
    """S32: alpha = 0 and equal centres."""
    method, batch = tiny_udi(mixture=0.0), tiny_batch()
    method.centres["cls+"].load_state_dict(method.centres["cls"].state_dict())
    vit = method.student.backbone.vit
    vit.reg_token.copy_(vit.cls_token)
    vit.pos_embed[:, 1] = vit.pos_embed[:, 0]
    found = method(batch, START)  # both tokens are now the same, and so are their losses
    torch.testing.assert_close(found.terms["cls+"], found.terms["cls"])


def test_the_reading_module_has_the_papers_size_and_is_attention_with_a_skip() -> None:
    assert sum(p.numel() for p in SparseRead(384, 6).parameters()) == 592_896
    torch.manual_seed(0)
    read, patches = SparseRead(8, 2).double(), torch.randn(1, 6, 8, dtype=torch.float64)
    maps = torch.rand(1, 3, 6, dtype=torch.float64)
    z = read.norm_in(patches[0])
    q, k, v = (z @ w.T + b for w, b in zip(read.qkv.weight.chunk(3), read.qkv.bias.chunk(3), strict=True))
    heads = []
    for head in (slice(0, 4), slice(4, 8)):
        scores = (maps[0] @ q)[:, head] @ k[:, head].T / 2.0
        heads.append(scores.softmax(dim=-1) @ v[:, head])
    expected = read.norm_out(maps[0] @ z + read.proj(torch.cat(heads, dim=-1)))
    torch.testing.assert_close(read(patches, maps)[0], expected)


def test_a_backbone_without_a_second_class_token_is_refused_with_the_way_out() -> None:
    with pytest.raises(RequestError, match=r"no second class token; .*--network\.add-register true$"):
        Udi(UdiOptions(**SMALL_HEAD), tiny_backbone())
    with pytest.raises(RequestError, match="no class token"):
        Udi(UdiOptions(**SMALL_HEAD), tiny_backbone(arch=f"{ARCH},class_token=false"))
    backbone, _ = create_backbone(ARCH, NetworkOptions(add_register=True, drop_path=0.0), init="random")
    found = Udi(UdiOptions(**{**SMALL_HEAD, "window": 2, "local_window": 1}), backbone)(tiny_batch(), START)
    assert bool(found.total.isfinite())


def test_the_norm_that_a_checkpoint_brought_for_its_patches_starts_the_reading_module() -> None:
    backbone = tiny_backbone(arch=f"{ARCH},registers=1")
    backbone.patch_norm = torch.nn.LayerNorm(32)
    torch.nn.init.normal_(backbone.patch_norm.weight)
    method = Udi(UdiOptions(**SMALL_HEAD), backbone)
    assert torch.equal(method.student.read.norm_in.weight, backbone.patch_norm.weight)
