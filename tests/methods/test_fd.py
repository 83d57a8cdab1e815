# SPDX-License-Identifier: Apache-2.0
"""FD against its equation written by hand, and through a run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.functional import layer_norm

import rekindle
from rekindle.core.errors import RequestError
from rekindle.core.option_trees import nested
from rekindle.core.progress import Progress
from rekindle.core.rng import seeded_default
from rekindle.methods.fd import Fd, FdOptions
from rekindle.networks.checkpoints.tensors import write_checkpoint
from rekindle.objectives import plain
from rekindle.objectives.reconstruction import smooth_feature_error
from rekindle.pretraining.options import resolve
from tests.engine.running import TINY, checkpoint, write_images
from tests.methods.scene import ARCH, tiny_backbone, tiny_batch

START = Progress(0, 10)


def tiny_fd(arch: str = ARCH, **options: Any) -> Fd:
    """A base whose final norm is no identity."""
    base = tiny_backbone("all", arch=arch)
    with torch.no_grad():
        base.vit.norm.weight.mul_(torch.linspace(0.5, 3, base.width))
        base.vit.norm.bias.add_(0.7)
    with seeded_default(0, "method"):
        return Fd(FdOptions(**{"drop_path": 0.0, **options}), base)


@pytest.mark.parametrize("after_norm", [True, False])
@pytest.mark.parametrize("beta", [2.0, 0.3])
def test_the_loss_is_the_equation_one_number_at_a_time(after_norm: bool, beta: float) -> None:
    method, batch = tiny_fd(after_norm=after_norm, beta=beta), tiny_batch(2)
    pixels = batch.global_views.pixels.flatten(0, 1)
    with torch.no_grad():
        found = method(batch, START)
        base, _, _ = method.base_model.backbone.embed(pixels)
        for block in method.base_model.backbone.vit.blocks:
            base = block(base)
        if after_norm:
            base = method.base_model.backbone.vit.norm(base)
        predicted = method.project(method.student.vit.norm(_through(method, pixels)))
    total = 0.0
    for token, wanted in zip(predicted.flatten(0, 1).tolist(), base.flatten(0, 1).tolist(), strict=True):
        mean = sum(wanted) / 32
        deviation = (sum((value - mean) ** 2 for value in wanted) / 32 + 1e-5) ** 0.5
        for mine, theirs in zip(token, wanted, strict=True):
            error = abs(mine - (theirs - mean) / deviation)
            total += error**2 / (2 * beta) if error < beta else error - beta / 2
    assert predicted.shape == (4, 17, 32)  # the class token is predicted as well
    assert float(found.total) == pytest.approx(total / predicted.numel(), rel=1e-5)
    rows = plain.whitened_feature_error(predicted.flatten(0, 1), base.flatten(0, 1), beta=beta)
    assert float(found.total) == pytest.approx(float(rows), rel=1e-6)


def _through(method: Fd, pixels: torch.Tensor) -> torch.Tensor:
    tokens, _, _ = method.student.embed(pixels)
    for block in method.student.vit.blocks:
        tokens = block(tokens)
    return tokens


def test_the_scale_of_the_bases_channels_and_its_offset_per_token_do_not_matter() -> None:
    draw = torch.Generator().manual_seed(0)
    predicted, features = torch.randn(2, 5, 8, generator=draw), 10 * torch.randn(2, 5, 8, generator=draw)
    first = smooth_feature_error(predicted, features, beta=2.0)
    shifted = smooth_feature_error(predicted, 3 * features + torch.randn(2, 5, 1, generator=draw), beta=2.0)
    torch.testing.assert_close(first, shifted, rtol=1e-4, atol=0.0)
    perfect = layer_norm(features, (8,))
    assert float(smooth_feature_error(perfect, features, beta=2.0)) == 0.0


def test_only_the_new_encoder_and_the_map_train_and_the_base_stays_in_evaluation() -> None:
    method = tiny_fd(drop_path=0.5).train()
    assert not method.base_model.backbone.training and method.student.training
    method(tiny_batch(2), START).total.backward()
    trained = {name.split(".")[0] for name, p in method.named_parameters() if p.grad is not None}
    assert trained == {"student", "project"}
    rates = [block.drop_path1 for block in method.student.vit.blocks]
    assert rates[-1].drop_prob == 0.5
    assert method.exported() is method.student


def test_the_new_encoder_may_have_another_width_and_no_class_token() -> None:
    wide = _fd_with("vit:width=64,depth=1,heads=2")
    assert wide.student.width == 64 and wide.project.weight.shape == (32, 64)
    assert bool(wide(tiny_batch(2), START).total.isfinite())
    patches = _fd_with("vit:width=32,depth=1,heads=2,class_token=false")
    assert not patches.has_class_token and bool(patches(tiny_batch(2), START).total.isfinite())
    with pytest.raises(RequestError, match=r"--fd\.arch vit:width=32,depth=1,heads=2,patch=4"):
        _fd_with("vit:width=32,depth=1,heads=2,patch=4")


def _fd_with(arch: str) -> Fd:
    with seeded_default(0, "method"):
        return Fd(FdOptions(arch=arch), tiny_backbone("all"))


def test_registers_stay_behind() -> None:
    method = tiny_fd(f"{ARCH},registers=2")
    assert bool(method(tiny_batch(2), START).total.isfinite())


def test_a_run_trains_a_new_encoder_with_the_papers_settings_and_leaves_a_plain_model(tmp_path: Path) -> None:
    options = resolve({}, {"method": "fd"}).options
    assert (options.train, options.recipe, options.optim.head_warmup, options.network.drop_path) == (
        "all",
        "paper",
        0.0,
        0.0,
    )
    assert (options.optim.lr_per_256, options.views.global_scale, options.views.num_local) == (1.5e-4, (0.08, 1.0), 0)
    write_checkpoint(tiny_backbone("all"), tmp_path / "base.safetensors")
    kept = {
        n: v for n, v in TINY.items() if not n.startswith("glare.") and n not in ("train", "init", "views.num_local")
    }
    asked = kept | {"method": "fd", "images": str(write_images(tmp_path / "images")), "out": str(tmp_path / "run")}
    run = rekindle.pretrain(**nested(asked | {"backbone": str(tmp_path / "base.safetensors"), "steps": 2}))
    assert not [name for name in checkpoint(tmp_path / "run")["method"] if name.startswith("base_model")]
    tokens = rekindle.load(run)(torch.randn(1, 3, 32, 32))
    assert tokens.patches.shape == (1, 4, 4, 32)
