# SPDX-License-Identifier: Apache-2.0
"""A step's loss and its gradient are the same however it is cut into micro-batches; every method, and what else they can do."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from rekindle.core.progress import Progress
from rekindle.core.rng import part_draws
from rekindle.engine.precision import ComputeCopies
from rekindle.methods import METHODS
from rekindle.methods.base import LossBreakdown, Method
from rekindle.networks.backbone import Backbone
from rekindle.views.batch import ViewBatch
from tests.contracts.test_methods import build
from tests.methods.scene import tiny_batch

MODES: dict[str, list[dict[str, Any]]] = {
    "glare": [
        {"balance": "sinkhorn", "teacher_temperature": (0.01, 0.01)},
        {"balance": "sinkhorn", "num_centres": 1, "student_input": "two_pass", "local_crops_in_loc2": True},
        {"region_target": "eq6", "region_source": "student", "min_region_patches": 2},
        {"region_target": "query_R", "region_source": "student", "student_input": "two_pass", "symmetric": False},
        {"reduction": "sum", "match_reduction": "sum", "region_start": "random", "distortion": "mask"},
        {"correspondence": "overlap", "distortion": "none", "num_centres": 2, "attention_prefix": True},
    ],
    "loca": [
        {"sinkhorn": False},
        {"cluster_level": "image_gap", "position_target": "central"},
        {"cluster_level": "image_cls", "position_target": "box"},
        {"cluster_weight": 0.0},
        {"position_mode": "single", "cluster_weight": 0.0},
        {"mask_ratio": 1.0, "shared_masks": False},
    ],
    "flsl": [{"random_windows": True}, {"norm_last_layer": False, "shift_weight": 0.0}],
    "msn": [{"sinkhorn": False}, {"head_norm": "ln", "memax_weight": 0.0}],
    "mmc": [
        {"masked_only": True, "rec_norm": "all", "replace_p": 0.0},
        {"max_negatives": 40, "cls_pairs": "same", "replace_p": 1.0},
        {"multicrop_role": "teacher", "patch_negatives": "other_images_same_position", "scale_2tau": True},
        {"pat_weight": 0.0, "head_norm": "ln"},
        {"cls_weight": 0.0, "fill": "self", "gather_patches": True},
    ],
    "sit": [{"multicrop_role": "teacher"}, {"replace_p": 1.0, "rec_norm": "all"}],
    "mcssl": [{"replace_p": 1.0}, {"rec_norm": "all", "fill": "zeros"}],
    "ibot": [{"mask_shape": "random"}, {"global_weight": 0.0}],
    "udi": [{"mixture": 1.0}],
    "leopart": [{"mask": "all", "queue_length": 0}, {"mask": "background", "queue_per_image": 3}],
    "tec": [{"attention": "all"}],
}
CASES = [(name, options) for name in METHODS for options in ({}, *MODES.get(name, []))]


def in_parts(
    method: Method, batch: ViewBatch, number: int, copies: ComputeCopies | None = None
) -> tuple[list[LossBreakdown], dict[str, Tensor]]:
    """The breakdown of each part, and the gradients of their mean, as the engine adds them up."""
    method.zero_grad()
    size = len(batch) // number
    progresses = [Progress(3, 10, seed=1, slot=slot, num_slots=number) for slot in range(number)]
    micro = [
        (batch.images(slice(slot * size, (slot + 1) * size)), progress) for slot, progress in enumerate(progresses)
    ]

    def step() -> list[LossBreakdown]:
        found = []
        for progress, part in zip(progresses, method.parts(micro), strict=True):
            with part_draws(progress, size):
                breakdown = part()
            (breakdown.total / number).backward()  # type: ignore[no-untyped-call]
            found.append(breakdown)
        return found

    found = step() if copies is None else copies.call(method, step)
    method.abandon_step()
    return found, {n: p.grad.clone() for n, p in method.named_parameters() if p.grad is not None}


def total(parts: list[LossBreakdown]) -> Tensor:
    return torch.stack([part.total.detach() for part in parts]).mean()


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float = 1e-5) -> None:
    assert found.keys() == expected.keys()
    largest = max(float(g.abs().max()) for g in expected.values())
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=tolerance, atol=tolerance * largest, msg=name)


@pytest.mark.parametrize(
    ("name", "options"), CASES, ids=lambda v: v if isinstance(v, str) else "-".join(v) or "default"
)
def test_a_step_in_parts_has_the_loss_and_the_gradient_of_the_whole(name: str, options: dict[str, Any]) -> None:
    method, batch = prepared(name, options, is_double=True), as_double(tiny_batch(8))
    whole, expected = in_parts(method, batch, 1)
    for number in (2, 8):
        parts, found = in_parts(method, batch, number)
        torch.testing.assert_close(total(parts), total(whole), rtol=1e-6, atol=0.0)
        for term, value in whole[0].terms.items():
            mean = torch.stack([part.terms[term] for part in parts]).mean()
            torch.testing.assert_close(mean, value, rtol=1e-6, atol=1e-9)
        assert_same(found, expected)


@pytest.mark.parametrize("number", [2, 4, 8, 32])
def test_glare_with_balanced_targets_in_float32_is_the_same_to_1e_5_in_any_number_of_parts(number: int) -> None:
    method, batch = build("glare", options=BALANCED), tiny_batch(32)
    whole, expected = in_parts(method, batch, 1)
    parts, found = in_parts(method, batch, number)
    torch.testing.assert_close(total(parts), total(whole), rtol=1e-5, atol=0.0)
    assert_same(found, expected)


@pytest.mark.parametrize("name", METHODS)
def test_in_low_precision_parts_differ_by_rounding_alone(name: str) -> None:
    method, batch = build(name), tiny_batch(8)
    copies = ComputeCopies(method, torch.bfloat16)
    whole, expected = in_parts(method, batch, 1, copies)
    parts, found = in_parts(method, batch, 4, copies)
    torch.testing.assert_close(total(parts), total(whole), rtol=0.03, atol=0.01)
    flat, other = (torch.cat([g[n].flatten().float() for n in expected]) for g in (found, expected))
    assert float(torch.nn.functional.cosine_similarity(flat, other, dim=0)) > 0.9


def as_double(batch: ViewBatch) -> ViewBatch:
    from dataclasses import replace

    def wide(views: Any) -> Any:
        return None if views is None else replace(views, pixels=views.pixels.double())

    return replace(batch, global_views=wide(batch.global_views), local_views=wide(batch.local_views))


TWO = """
import sys
import torch
import torch.distributed as dist
from pathlib import Path
from rekindle.core.progress import Progress
from rekindle.core.rng import part_draws
from tests.contracts.test_parts import BALANCED, CASES, as_double, prepared
from tests.methods.scene import tiny_batch

torch.set_num_threads(1)
dist.init_process_group("gloo")
rank, found = dist.get_rank(), {}
cases = [(name, options, 8, True) for name, options in CASES] + [("glare", BALANCED, 32, False)]
for number, (name, options, size, is_double) in enumerate(cases):
    method = prepared(name, options, is_double)
    batch = as_double(tiny_batch(size)) if is_double else tiny_batch(size)
    micro = []
    for part in range(2):  # two micro-batches in each of two processes
        slot, share = 2 * part + rank, size // 4
        rows = slice(slot * share, (slot + 1) * share)
        micro.append((batch.images(rows), Progress(3, 10, seed=1, slot=slot, num_slots=4)))
    total = torch.zeros((), dtype=torch.float64)
    for (_, progress), part in zip(micro, method.parts(micro), strict=True):
        with part_draws(progress, size // 4):
            breakdown = part()
        (breakdown.total / 4).backward()
        total += breakdown.total.detach().double() / 4
    dist.all_reduce(total)
    gradients = {}
    for label, parameter in method.named_parameters():
        if parameter.grad is not None:
            dist.all_reduce(parameter.grad)
            gradients[label] = parameter.grad
    found[number] = (float(total), gradients)
if rank == 0:
    torch.save(found, Path(sys.argv[1]))
dist.destroy_process_group()
"""
BALANCED: dict[str, Any] = {
    "balance": "sinkhorn",
    "teacher_temperature": (0.01, 0.01),
    "norm_last_layer": True,
}


def prepared(name: str, options: dict[str, Any], is_double: bool) -> Method:
    """A tiny method; stochastic depth is on where it is the student's own."""
    method = build(name, options=options)
    if is_double:
        method = method.double()
    if name not in ("tec", "fd"):  # which build their encoder anew
        next(m for m in method.modules() if isinstance(m, Backbone)).set_drop_path(0.4)
    return method


@pytest.mark.slow
def test_two_processes_of_two_parts_have_the_loss_and_the_gradient_of_the_whole(tmp_path: Path) -> None:
    script = tmp_path / "two.py"
    script.write_text(TWO)
    root = Path(__file__).resolve().parents[2]
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--local-addr=127.0.0.1"]
    result = subprocess.run(
        [*launcher, "--nproc-per-node=2", str(script), str(tmp_path / "found.pt")],
        env={**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert result.returncode == 0, result.stderr[-3000:]
    stored = torch.load(tmp_path / "found.pt", weights_only=True)
    cases = [(name, options, 8, True) for name, options in CASES] + [("glare", BALANCED, 32, False)]
    for number, (name, options, size, is_double) in enumerate(cases):
        if options.get("gather_patches") is False:
            continue
        batch = tiny_batch(size)
        whole, expected = in_parts(prepared(name, options, is_double), as_double(batch) if is_double else batch, 1)
        value, gradients = stored[number]
        assert value == pytest.approx(float(total(whole)), rel=1e-5), (name, options)
        assert_same(gradients, expected)
