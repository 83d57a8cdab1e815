# SPDX-License-Identifier: Apache-2.0
"""What every method in the table promises. A newcomer is tested the moment it is listed."""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

import rekindle.methods
from rekindle.core.option_trees import nested
from rekindle.core.options import Options
from rekindle.core.progress import Progress
from rekindle.core.rng import seeded_default
from rekindle.core.tables import import_named
from rekindle.engine.precision import ComputeCopies
from rekindle.methods import METHODS
from rekindle.methods.base import Method
from rekindle.methods.shared.class_contrast import ContrastOptions
from rekindle.methods.shared.corruption import CorruptionOptions
from rekindle.methods.shared.distillation_options import CentredOptions
from rekindle.objectives import plain
from rekindle.pretraining.options import resolve
from tests.methods.scene import ARCH, SMALL_HEAD, SMALL_REGIONS, tiny_backbone, tiny_batch

TRAIN = ("adapters", "all", "norm")
SMALL: dict[str, dict[str, object]] = {
    "fd": {"drop_path": 0.0},
    "leopart": {"queue_length": 24, "queue_per_image": 4, "cells": 3},
    "loca": {"reference_grid": 4},
    "mae": {"decoder_width": 16, "decoder_depth": 1, "decoder_heads": 2},
    "mocov3": {"projector_hidden": 32, "projector_out": 16},
    **{name: {"pixel_hidden": 32, "head_out": 16, "max_block": 0.6} for name in ("mcssl", "mmc", "sit")},
    "msn": {"head_out": 16},
    "paka": {"sample_grid": 3},
    "tec": {"decoder_width": 16, "decoder_heads": 2, "blocks_per_group": 1},
    "udi": {"window": 2, "local_window": 1},
    "flsl": {"window": 2, "local_window": 1},
}
FITTING: dict[str, dict[str, dict[str, object]]] = {
    "tec": {"adapters": {"start": "base", "input_adapter": False}, "norm": {"start": "base"}}
}
"""Options without which a method cannot train this way: TEC draws its encoder, which adapters or norms alone would leave so."""
ARCHES = {"udi": f"{ARCH},registers=1"}
SHARED_OPTIONS: dict[str, type[Options]] = {
    "rekindle.methods.shared.class_contrast": ContrastOptions,
    "rekindle.methods.shared.corruption": CorruptionOptions,
    "rekindle.methods.shared.distillation": CentredOptions,
}
"""Options that several methods inherit, and the module that reads them."""


def build(
    name: str,
    train: str | None = None,
    *,
    options: Mapping[str, object] | None = None,
    blocks: int | None = None,
) -> Method:
    """Args: train, what moves; None is what the method needs, else adapters; blocks, the last ones that get adapters."""
    method = import_named(METHODS, "method", name)
    train = train or str(method.NEEDS.get("train", "adapters"))
    fitting = FITTING.get(name, {}).get(train, {})
    wanted = {**SMALL_HEAD, **SMALL_REGIONS, **SMALL.get(name, {}), **fitting, **(options or {})}
    small = {k: v for k, v in wanted.items() if k in method.Config.model_fields}
    backbone = tiny_backbone(train, arch=ARCHES.get(name, ARCH), blocks=blocks)
    with seeded_default(0, "method"):
        built: Method = method(method.Config(**small), backbone)
    return built


@pytest.mark.parametrize("name", METHODS)
def test_a_method_is_final_has_a_summary_and_a_docstring(name: str) -> None:
    method = import_named(METHODS, "method", name)
    assert method.__bases__ == (Method,)
    assert method.__doc__ and method.Config.__doc__
    assert METHODS[name].summary


@pytest.mark.parametrize("name", METHODS)
def test_the_loss_names_the_plain_equations_that_it_equals(name: str) -> None:
    named = _plain_names(name)
    assert named, f"the docstring of {name}'s loss names no function of objectives.plain"
    for function in named:
        assert inspect.isfunction(getattr(plain, function, None)), f"objectives.plain has no {function}"


def test_every_plain_equation_is_that_of_some_method() -> None:
    own = {n for n, f in inspect.getmembers(plain, inspect.isfunction) if f.__module__ == plain.__name__}
    assert {n for n in own if not n.startswith("_")} == set().union(*map(_plain_names, METHODS))


def _plain_names(name: str) -> set[str]:
    return set(re.findall(r"`objectives\.plain\.(\w+)`", import_named(METHODS, "method", name).loss.__doc__ or ""))


@pytest.mark.parametrize("name", METHODS)
def test_every_option_says_what_it_means(name: str) -> None:
    for option, field in import_named(METHODS, "method", name).Config.model_fields.items():
        assert field.description and len(field.description) > 15, option


@pytest.mark.parametrize("name", METHODS)
def test_every_option_is_read_by_the_methods_code(name: str) -> None:
    own = _modules_of(name)
    bodies = {module: _body(module) for module in (*own, *SHARED_OPTIONS)}
    for option in import_named(METHODS, "method", name).Config.model_fields:
        readers = [m for m, shared in SHARED_OPTIONS.items() if option in shared.model_fields] + own
        assert any(f"config.{option}" in bodies[m] for m in readers), f"{option} is an option that nothing reads"


def _modules_of(name: str) -> list[str]:
    """The method's module, and those beside it that hold a concept of its own; its options read nothing."""
    module = METHODS[name].code.split(":")[0]
    beside = sorted(Path(rekindle.methods.__path__[0]).glob(f"{module.split('.')[-1]}_*.py"))
    return [module, *(f"rekindle.methods.{path.stem}" for path in beside if not path.stem.endswith("_options"))]


def _body(module: str) -> str:
    """The source after the first class of options, if there is one."""
    path = Path(__file__).parents[2] / "src" / Path(*module.split(".")).with_suffix(".py")
    source = path.read_text()
    after = source.find("Options(") + 1
    return source[min(at for word in ("\nclass ", "\ndef ") if (at := source.find(word, after)) > 0) :]


@pytest.mark.parametrize("name", METHODS)
def test_the_papers_settings_name_options_that_exist(name: str) -> None:
    method = import_named(METHODS, "method", name)
    for settings in (method.PAPER, method.NEEDS):
        assert resolve({}, {**nested(settings), "method": name}).options.method == name


@pytest.mark.parametrize("train", TRAIN)
@pytest.mark.parametrize("name", METHODS)
def test_the_loss_is_finite_and_every_trainable_tensor_gets_a_gradient_and_no_other(name: str, train: str) -> None:
    method = build(name, train)
    found = method(tiny_batch(), Progress(0, 10))
    assert bool(found.total.isfinite())
    assert all(not v.requires_grad for v in [*found.terms.values(), *found.stats.values()])
    found.total.backward()
    for label, parameter in method.named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad, label


@pytest.mark.parametrize("train", TRAIN)
@pytest.mark.parametrize("name", METHODS)
def test_thirty_steps_on_one_batch_lower_the_loss_while_the_teacher_stands_still(name: str, train: str) -> None:
    method, batch = build(name, train), tiny_batch(4)
    optimizer = torch.optim.AdamW([p for p in method.parameters() if p.requires_grad], lr=3e-3)
    progress = Progress(3, 100)
    first = float(method(batch, progress).total.detach())
    for _ in range(30):
        optimizer.zero_grad()
        method(batch, progress).total.backward()
        optimizer.step()
    assert float(method(batch, progress).total.detach()) < first


@pytest.mark.parametrize("name", METHODS)
def test_state_round_trips_bit_for_bit(name: str) -> None:
    first, second = build(name), build(name)
    batch: Any = tiny_batch()
    optimizer = torch.optim.AdamW([p for p in first.parameters() if p.requires_grad], lr=1e-2)
    for step in range(2):
        optimizer.zero_grad()
        first(batch, Progress(step, 10)).total.backward()
        optimizer.step()
        first.after_step(Progress(step, 10))
    second.load_state_dict(first.state_dict())
    assert torch.equal(first(batch, Progress(2, 10)).total, second(batch, Progress(2, 10)).total)


@pytest.mark.parametrize("name", METHODS)
def test_batch_order_does_not_matter_to_the_loss(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Draws belong to rows of the batch, not to images; so let all rows draw the same."""
    from rekindle.views.batch import Crops, ViewBatch, Views

    method, batch = (
        build(name, options={"regional_weight": 0.0, "replace_p": 0.0, "fill": "zeros"}).eval(),
        tiny_batch(4),
    )
    for module in [
        m for label, m in sys.modules.items() if label.startswith("rekindle.") and hasattr(m, "row_uniform")
    ]:
        monkeypatch.setattr(module, "row_uniform", _same_for_all_rows)
    order = torch.tensor([2, 0, 3, 1])
    assert batch.local_views is not None
    views = [
        Views(v.pixels[:, order], Crops(*(getattr(v.crops, n)[:, order] for n in Crops.__dataclass_fields__)))
        for v in (batch.global_views, batch.local_views)
    ]
    permuted = ViewBatch(views[0], views[1], batch.image_index[order])
    torch.testing.assert_close(method(batch, Progress(0, 10)).total, method(permuted, Progress(0, 10)).total)


@pytest.mark.parametrize("train", TRAIN)
@pytest.mark.parametrize("name", METHODS)
def test_in_bfloat16_the_loss_is_close_and_gradients_are_float32(name: str, train: str) -> None:
    method, batch = build(name, train).eval(), tiny_batch()
    found = ComputeCopies(method, torch.bfloat16).call(method, lambda: method(batch, Progress(0, 10)))
    found.total.backward()
    assert found.total.dtype == torch.float32
    torch.testing.assert_close(found.total, method(batch, Progress(0, 10)).total, atol=0.05, rtol=0.05)
    for label, parameter in method.named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad, label


def _same_for_all_rows(purpose: str, progress: Progress, rows: int, *shape: int) -> torch.Tensor:
    return torch.rand(1, *shape, generator=torch.Generator().manual_seed(len(purpose))).expand(rows, *shape).clone()


@pytest.mark.parametrize("name", METHODS)
def test_the_exported_backbone_sees_images_of_any_size_that_the_patch_divides(name: str) -> None:
    exported = build(name).exported()
    with torch.no_grad():
        tokens = exported(torch.randn(1, 3, 40, 64))
    assert tokens.patches.shape == (1, 5, 8, 32)
