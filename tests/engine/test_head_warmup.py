# SPDX-License-Identifier: Apache-2.0
"""Heads first, the backbone after: only where there are fresh heads on a pretrained backbone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from rekindle.engine.watcher import StepReport
from rekindle.networks.checkpoints.tensors import write_checkpoint
from tests.engine.running import TINY, checkpoint, run, stop_after, write_images
from tests.methods.scene import tiny_backbone

GLARE = [name for name in TINY if name.startswith("glare.")]


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_images(tmp_path_factory.mktemp("images"))


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pretrained backbone without a head."""
    path = tmp_path_factory.mktemp("base") / "base.safetensors"
    write_checkpoint(tiny_backbone("all"), path)
    return path


class Messages:
    def __init__(self) -> None:
        self.texts: list[str] = []

    def message(self, text: str) -> None:
        self.texts.append(text)

    def step(self, report: StepReport) -> None: ...
    def close(self) -> None: ...


class _Both(Messages):
    """Hears what is said, and stops the run after some steps."""

    def __init__(self, heard: Messages, steps: int) -> None:
        super().__init__()
        self.texts, self._stop = heard.texts, stop_after(steps)

    def step(self, report: StepReport) -> None:
        self._stop.step(report)


def _asked(base: Path, **changes: Any) -> dict[str, Any]:
    return {"backbone": str(base), "init": "pretrained", "train": "adapters", "optim__warmup_epochs": 0.5, **changes}


@pytest.mark.parametrize("train", ["adapters", "all"])
def test_the_backbone_stands_still_until_heads_are_warm(images: Path, base: Path, tmp_path: Path, train: str) -> None:
    asked = _asked(base, train=train, optim__head_warmup=0.5)
    states = []
    for steps in (1, 3, 5):
        run(images, tmp_path / str(steps), watcher=stop_after(steps), **asked)
        states.append(checkpoint(tmp_path / str(steps))["method"])
    moved = [{n for n in states[0] if not torch.equal(states[0][n], later[n])} for later in states[1:]]
    assert not [n for n in moved[0] if n.startswith("student.backbone")]
    assert [n for n in moved[0] if n.startswith("student.head")]
    assert [n for n in moved[1] if n.startswith("student.backbone")]


def test_after_the_warm_up_the_adapters_train_and_resume_repeats_it(images: Path, base: Path, tmp_path: Path) -> None:
    whole, halves = tmp_path / "whole", tmp_path / "halves"
    run(images, whole, **_asked(base, optim__head_warmup=0.5))
    run(images, halves, watcher=stop_after(4), **_asked(base, optim__head_warmup=0.5))
    run(images, halves, resume=True, **_asked(base, optim__head_warmup=0.5))
    first, second = (load_file(f / "model.safetensors") for f in (whole, halves))
    assert all(torch.equal(first[n], second[n]) for n in first)
    assert any(bool(t.any()) for n, t in first.items() if n.endswith("up.weight"))


def test_it_is_on_by_default_told_and_off_for_random_weights(images: Path, base: Path, tmp_path: Path) -> None:
    def told(name: str, **changes: Any) -> list[str]:
        heard = Messages()
        run(images, tmp_path / name, watcher=heard, **changes)
        return [text for text in heard.texts if "heads first" in text]

    assert "the first 1 steps" in told("default", **_asked(base))[0]
    assert not told("off", **_asked(base, optim__head_warmup=0.0))
    assert not told("random")
    assert not told("headless", **_asked(base, method="paka", **dict.fromkeys(GLARE)))


@pytest.mark.parametrize("train", ["adapters", "all"])
def test_with_the_papers_recipe_the_backbone_moves_from_the_second_step_on(
    images: Path, base: Path, tmp_path: Path, train: str
) -> None:
    """Of 40 steps the paper's warm-up takes the first epoch; ours would hold the backbone still for four steps."""
    states = []
    for steps in (1, 3):
        heard = Messages()
        run(
            images,
            tmp_path / str(steps),
            watcher=_Both(heard, steps),
            **_asked(base, train=train, recipe="paper", steps=40),
        )
        assert not [text for text in heard.texts if "heads first" in text]
        states.append(checkpoint(tmp_path / str(steps))["method"])
    moved = {n for n in states[0] if not torch.equal(states[0][n], states[1][n])}
    assert [n for n in moved if n.startswith("student.backbone")]
