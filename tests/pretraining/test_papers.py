# SPDX-License-Identifier: Apache-2.0
"""What a run claims of a paper stands in that paper: every setting, of every method, under both claims."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import pytest

from rekindle.cli import main
from rekindle.core.option_trees import leaves
from rekindle.core.tables import Entry, import_named
from rekindle.methods import METHODS
from rekindle.methods.base import Method
from rekindle.methods.dino import Dino, DinoOptions
from rekindle.methods.shared.stated import Statements, at
from rekindle.pretraining.options import NOT_OURS, resolve
from rekindle.pretraining.papers import CLAIMS, Setting, explain

CHOICES = {"train", "recipe", *NOT_OURS}
"""What `NEEDS` may hold without a place: how a method is run here, not a number of its paper."""


def _explained(method: str, **asked: Any) -> dict[str, dict[str, Setting]]:
    claims = explain({}, {"method": method, **asked})
    return {claim: {s.name: s for s in settings} for claim, settings in claims.items()}


def _unexplained(method: str) -> set[str]:
    return {name for found in _explained(method).values() for name, s in found.items() if s.is_unexplained}


def _without_place(method: str) -> set[str]:
    cls = import_named(METHODS, "method", method)
    return {n for n in (*cls.PAPER, *cls.NEEDS) if n not in CHOICES and not (n in cls.STATED and cls.STATED[n].place)}


@pytest.mark.parametrize("method", METHODS)
def test_what_differs_from_the_paper_says_why(method: str) -> None:
    assert not _unexplained(method)


@pytest.mark.parametrize("method", METHODS)
def test_every_setting_that_a_method_takes_from_its_paper_has_a_place_there(method: str) -> None:
    assert not _without_place(method)


@pytest.mark.parametrize("method", METHODS)
def test_a_deviation_is_one_and_every_statement_is_of_an_option(method: str) -> None:
    stated: Statements = import_named(METHODS, "method", method).STATED
    found = _explained(method)
    for name, entry in stated.items():
        shown = [settings[name] for settings in found.values() if name in settings]
        assert shown or name == "train", f"{name} is no setting of {method}"
        if entry.differs:
            assert any(s.verdict == "differs" for s in shown), f"{name} differs no longer; take the reason out"


@pytest.mark.parametrize("method", METHODS)
def test_all_of_a_papers_training_is_shown_under_both_claims(method: str) -> None:
    for claim, found in _explained(method).items():
        options = resolve({}, {"method": method, **CLAIMS[claim]}).options
        shared = {f"{group}.{n}" for group in ("optim", "views") for n in leaves(getattr(options, group).model_dump())}
        own = {f"{method}.{name}" for name in leaves(getattr(options, method).model_dump())}
        assert (shared | own) - {"views.executor"} <= set(found)
        assert all(s.stated is not None for s in found.values() if s.verdict != "not stated")


def test_glares_own_recipe_is_the_papers_word_for_word() -> None:
    """Section 5 and appendix B.1, typed again."""
    found = _explained("glare")["recipe=paper"]
    paper = {
        "train": "adapters",
        "epochs": 100,
        "batch_size": 512,
        "optim.lr_per_256": 1.5e-4,
        "optim.warmup_epochs": 1.0,
        "optim.head_warmup": 0.0,
        "optim.weight_decay": 0.1,
        "glare.num_prototypes": 8192,
        "views.global_size_px": 224,
        "views.local_size_px": 96,
        "views.num_local": 10,
        "views.global_scale": [0.25, 1.0],
        "views.local_scale": [0.05, 0.25],
        "views.jitter_p": 0.8,
        "views.brightness": 0.4,
        "views.contrast": 0.4,
        "views.saturation": 0.2,
        "views.hue": 0.1,
        "views.grey_p": 0.2,
        "views.blur_p": [1.0, 0.1, 0.5],
        "views.solarize_p": [0.0, 0.2, 0.0],
        "adapter.kind": "uniadapter",
    }
    assert {name: found[name].value for name in paper} == paper
    assert {found[name].verdict for name in paper} == {"same"}


def test_baselines_train_as_glare_does_and_keep_what_is_theirs() -> None:
    flsl = _explained("flsl")
    assert flsl["recipe=paper"]["optim.lr_per_256"].value == 1.5e-4
    assert flsl["recipe=paper"]["views.num_local"].stated == flsl["init=random"]["views.num_local"].stated
    assert flsl["init=random"]["optim.lr_per_256"].value == 5e-4


class Boaster(Method):
    """Says that it trains as its paper, and does not."""

    Config = DinoOptions
    PAPER: ClassVar[Mapping[str, object]] = {"optim.lr_per_256": 1e-3, "optim.final_lr": 1e-6}
    STATED = at("its table 1", {"optim.lr_per_256": 2e-3})
    __init__, loss = Dino.__init__, Dino.loss


def test_a_method_that_claims_more_than_it_does_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(METHODS, "boaster", Entry(f"{__name__}:Boaster", "boasts"))
    assert _unexplained("boaster") == {"optim.lr_per_256"}
    assert _without_place("boaster") == {"optim.final_lr"}


def test_the_command_shows_value_place_and_reason(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["config", "--method", "loca", "--explain-paper"]) == 0
    shown = capsys.readouterr().out
    assert "loca with --recipe paper" in shown and "loca with --init random" in shown
    assert "same: LOCA, section 3, implementation" in shown and "not stated" in shown
    (tmp_path / "run.yaml").write_text("method: dino\nbatch_size: 64\n")
    assert main(["config", str(tmp_path / "run.yaml"), "--optim.lr-per-256", "1e-3", "--explain-paper", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)["init=random"]
    assert told["optim.lr_per_256"] == {
        "value": 1e-3,
        "verdict": "differs",
        "stated": 5e-4,
        "place": "DINO, main_dino.py",
        "why": "asked for",
    }
    assert (told["batch_size"]["value"], told["batch_size"]["why"]) == (64, "asked for")
    assert told["optim.eps"] == {"value": 1e-8, "verdict": "not stated"}


def test_two_things_at_once_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["config", "--yaml", "--explain-paper"]) == 2
    assert "give one of them" in capsys.readouterr().err
