# SPDX-License-Identifier: Apache-2.0
"""What a step costs, counted: FLOPs against the model, bytes kept for the way back, operations, nothing as wide as K."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch

from rekindle.adapters.attach import attach
from rekindle.adapters.options import AdapterOptions, Train
from rekindle.bench.counting import Counted, counting
from rekindle.bench.stage import fixed_views
from rekindle.bench.step import FIRST_STEP, build_stepper
from rekindle.methods.base import LossBreakdown
from rekindle.methods.shared.distillation import HeadPair
from rekindle.networks import stochastic_depth
from rekindle.networks.backbone import Backbone
from rekindle.networks.checkpoints.create import create_backbone
from rekindle.networks.options import NetworkOptions
from rekindle.networks.stochastic_depth import BranchPath
from rekindle.objectives.prototypes import BLOCK_ROWS, Compared
from rekindle.pretraining.costs import Head, Rows, Trunk, fitting_micro_batch, kept_besides, kept_per_image
from tests.bench.cases import step_case
from tests.bench.step_flops import FUSED_BACKWARD, PLAIN_BACKWARD, HeadFlops, TrunkFlops, dino_step, glare_step
from tests.bench.uncomputed import Uncomputed, Widened

PROTOTYPES = 8192


@dataclass
class Step:
    """A counted step, per image."""

    counted: Counted
    rows: Rows
    images: int
    kept_bytes: int


def _step(
    monkeypatch: pytest.MonkeyPatch,
    method: str,
    *,
    images: int,
    precision: str = "fp32",
    train: str = "adapters",
    rank: int = 64,
    width: int = 192,
    depth: int = 3,
    is_computed: bool = False,
) -> Step:
    """Count the second step (the first also makes the optimizer's state) on views of the default sizes."""
    case = step_case(images=images, rank=rank, precision=precision, train=train, width=width, depth=depth)
    stepper, _, plan = build_stepper(case, method)
    for backbone in (m for m in stepper.method.modules() if isinstance(m, Backbone)):
        backbone.skip_dropped = False  # as on a GPU; how much a CPU skips is drawn anew for every step
    batch = fixed_views(case)
    sizes: dict[str, tuple[int, int]] = {}
    original = HeadPair.losses
    running, kept = [Counted()], []

    def losses(self: HeadPair, comparisons: list[Compared]) -> LossBreakdown:
        sizes.update({"+".join(sorted(c.terms)): (len(c.tokens), len(c.targets)) for c in comparisons})
        found = original(self, comparisons)
        kept.append(running[-1].kept_now)
        return found

    monkeypatch.setattr(HeadPair, "losses", losses)
    with Widened() if is_computed else Uncomputed():
        stepper.step(FIRST_STEP, plan, lambda: batch)
        with counting(stepper.standing) as counted:
            running.append(counted)
            stepper.step(FIRST_STEP + 1, plan, lambda: batch)
    patch, region = sizes.get("loc1+loc2", (0, 0)), sizes.get("reg", (0, 0))
    slots = 2.0 * (width // 64) * 49 if method == "glare" else 0.0
    numbers = [n / images for n in (*patch, *region)]
    waiting = sum(
        p.numel() * (2 if precision == "bf16" and "parametrizations" not in name else 4)
        for name, p in stepper.method.named_parameters()
        if p.requires_grad and ".attention." not in name  # the cross-attention has no part in that share
    )
    small, large = kept[-2:]  # of each share when its loss is known; the first one's gradient waits for the second
    rows = Rows(numbers[0], numbers[1], numbers[2], numbers[3], slots)
    return Step(counted, rows, images, max(small, large + waiting))


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("method", ["dino", "glare"])
def test_a_step_counts_the_same_whether_its_products_are_computed_or_not(
    method: str, precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    computed, uncomputed = (
        _step(monkeypatch, method, images=1, precision=precision, width=64, depth=2, is_computed=given)
        for given in (True, False)
    )
    if method == "dino":
        assert computed == uncomputed
    else:  # which patches make a region follows from features, so their number differs, and what hangs on it
        assert computed.counted.kernels == pytest.approx(uncomputed.counted.kernels, abs=5)
        assert computed.counted.flops == pytest.approx(uncomputed.counted.flops, rel=0.1)
        assert computed.kept_bytes == pytest.approx(uncomputed.kept_bytes, rel=0.02)
        patch_rows = [(step.rows.student_patch, step.rows.teacher_patch) for step in (computed, uncomputed)]
        assert patch_rows[0] == patch_rows[1]


def _trunk(rank: int, width: int = 192, depth: int = 3) -> Trunk:
    return Trunk(width, depth, width // 64, 4 * width, 16, rank=rank)


def _as_many_rows_as_are_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """Round no numbers of rows up."""
    monkeypatch.setattr("rekindle.methods.shared.distillation.HEAD_STEP", 1)
    monkeypatch.setattr("rekindle.objectives.row_blocks.WINDOW_STEP", 1)


@pytest.mark.parametrize("train", ["adapters", "all"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("method", ["dino", "glare"])
def test_counted_flops_are_those_of_the_model(
    method: str, precision: str, train: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    _as_many_rows_as_are_used(monkeypatch)
    rank = 96 if train == "adapters" else 0
    step = _step(monkeypatch, method, images=1, precision=precision, train=train, rank=rank or 8)
    attention = FUSED_BACKWARD if precision == "fp32" else PLAIN_BACKWARD  # what a CPU does
    head = HeadFlops(Head(192, prototypes=PROTOTYPES))
    trunk = TrunkFlops(_trunk(rank))
    if method == "dino":
        model = dino_step(trunk, head, sizes=(224, 96), num_local=10, train=train, attention=attention)
    else:
        assert step.rows.student_patch > 20 and step.rows.teacher_region > 20
        model = glare_step(trunk, head, step.rows, sizes=(224, 96), num_local=10, train=train, attention=attention)
    assert step.counted.flops / step.images == pytest.approx(model.total, rel=0.05)


@pytest.mark.parametrize("train", ["adapters", "all"])
def test_what_stochastic_depth_drops_is_not_computed(train: Train, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rates 0, 0.25 and 0.5 of three blocks; exactly that many of eight images are dropped."""

    def draw(keep: torch.Tensor, images: int, *, skip: bool) -> list[stochastic_depth.Paths]:
        assert skip
        kept = [torch.arange(images)[: round(float(p) * images)] for p in keep]
        factor = torch.ones(images, 1, 1)  # not read where some images are left out
        paths = [BranchPath(factor, index if len(index) < images else None) for index in kept]
        return list(zip(paths[::2], paths[1::2], strict=True))

    monkeypatch.setattr("rekindle.networks.backbone.draw_paths", draw)
    backbone, _ = create_backbone(
        "vit:width=192,depth=3,heads=3,patch=16,img=96", NetworkOptions(), init="random", drop_path=0.5
    )
    attach(backbone, AdapterOptions(rank=16), train=train)
    trunk = TrunkFlops(_trunk(16 if train == "adapters" else 0), skipped=0.5)
    pixels = torch.randn(8, 3, 96, 96)
    for class_only in (False, True):
        with counting() as counted:
            out = backbone.train().class_token(pixels) if class_only else backbone.train()(pixels).sequence
            out.sum().backward()
        model = trunk.forward(96, class_only=class_only) + trunk.backward(96, train, class_only=class_only)
        assert counted.flops / 8 == pytest.approx(model, rel=0.02)


def test_rounded_rows_cost_little(monkeypatch: pytest.MonkeyPatch) -> None:
    """3.1 % of a share of two images of a ViT-S/16, when this was written."""
    rounded = _step(monkeypatch, "glare", images=2, precision="bf16", width=384, depth=12).counted.flops
    _as_many_rows_as_are_used(monkeypatch)
    exact = _step(monkeypatch, "glare", images=2, precision="bf16", width=384, depth=12).counted.flops
    assert exact < rounded <= 1.035 * exact


def test_the_model_gives_the_published_figures_of_the_trunk() -> None:
    """ViT-Ti, S and B at 224 and 96 px, GFLOP (shared measurements; 2 per multiply-add)."""
    for width, expected in ((192, (2.5, 0.43)), (384, (9.25, 1.66)), (768, (35.3, 6.55))):
        trunk = TrunkFlops(Trunk(width, 12, width // 64, 4 * width, 16))
        for size, value in zip((224, 96), expected, strict=True):
            assert trunk.forward(size) / 1e9 == pytest.approx(value, rel=0.04)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("method", ["dino", "glare"])
def test_bytes_kept_follow_the_model(method: str, precision: str, monkeypatch: pytest.MonkeyPatch) -> None:
    one, two = (_step(monkeypatch, method, images=n, precision=precision) for n in (1, 2))
    each = 2 if precision == "bf16" else 4
    trunk, head = _trunk(64), Head(192, prototypes=PROTOTYPES)
    besides = kept_besides(trunk, head, train="adapters", bytes_each=each)
    for step in (one, two):
        model = kept_per_image(trunk, head, step.rows, sizes=(224, 96), num_local=10, train="adapters", bytes_each=each)
        assert step.kept_bytes == pytest.approx(besides + step.images * model, rel=0.15)


def test_a_micro_batch_is_the_largest_half_of_a_half_that_fits_and_never_less_than_one() -> None:
    free = 16e9
    assert fitting_micro_batch(free, 1e8, 0.0, at_most=64) == 64
    assert fitting_micro_batch(free, 2e8, 0.0, at_most=64) == 32
    assert fitting_micro_batch(free, 2e8, 5e9, at_most=64) == 8
    assert fitting_micro_batch(free, 1e11, 0.0, at_most=64) == 1


def test_a_glare_step_of_a_small_vit_stays_within_its_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    """ViT-S/16, 2 x 224 + 10 x 96, K = 8192, adapters of rank 512, bfloat16: the figures of docs/performance.md."""
    step = _step(monkeypatch, "glare", images=2, precision="bf16", rank=512, width=384, depth=12)
    assert step.kept_bytes / step.images <= 90e6
    assert not [shape for shape in step.counted.kept_shapes if shape and shape[-1] == PROTOTYPES]
    assert any(shape[-1] == 384 for shape in step.counted.kept_shapes)


def test_a_glare_step_does_not_grow_in_operations(monkeypatch: pytest.MonkeyPatch) -> None:
    """1,492 when this was written, as a GPU does it: nothing skipped, large blocks; docs/performance.md has the list."""
    monkeypatch.setitem(BLOCK_ROWS, ("cpu", torch.float32), BLOCK_ROWS["cuda", torch.float32])
    assert _step(monkeypatch, "glare", images=1, rank=512, width=384, depth=12).counted.kernels <= 1500


def test_counting_sees_what_is_kept_and_when_it_goes() -> None:
    weight = torch.randn(64, 64, requires_grad=True)
    x = torch.randn(100, 64)
    with counting([weight, x]) as counted:
        hidden = torch.relu(x @ weight)
        (hidden * hidden).sum().backward()  # type: ignore[no-untyped-call]
    assert counted.kept_peak == 100 * 64 * 4  # the hidden layer, kept twice, counts once
    assert counted.flops == 2 * 2 * 100 * 64 * 64
    assert counted.by_name["mm"] == 2
    with counting() as views:
        x.view(64, 100).transpose(0, 1).expand(2, -1, -1)
    assert views.kernels == 0
