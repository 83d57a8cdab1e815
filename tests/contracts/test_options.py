# SPDX-License-Identifier: Apache-2.0
"""No option that nothing reads, and none without a word of explanation."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from pydantic import BaseModel

from rekindle.bench.gain.options import GainOptions
from rekindle.core.tables import import_options
from rekindle.evaluation import PROTOCOLS
from rekindle.matrix.grid import Grid
from rekindle.measuring.options import CompareOptions, EvaluateOptions, ExtractOptions
from rekindle.pretraining.options import PretrainOptions
from rekindle.prompting.options import AppOptions, PromptOptions

SOURCE = Path(__file__).parents[2] / "src" / "rekindle"


def _groups() -> dict[str, type[BaseModel]]:
    groups: dict[str, type[BaseModel]] = {"run": PretrainOptions}
    for name, field in PretrainOptions.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            groups[name] = field.annotation
    requests: dict[str, type[BaseModel]] = {
        "evaluate": EvaluateOptions,
        "compare": CompareOptions,
        "extract": ExtractOptions,
        "grid": Grid,
        "prompt": PromptOptions,
        "app": AppOptions,
        "bench gain": GainOptions,
    }
    protocols: dict[str, type[BaseModel]] = {name: import_options(PROTOCOLS, "protocol", name) for name in PROTOCOLS}
    return groups | requests | protocols


@pytest.mark.parametrize("group", _groups())
def test_every_option_is_read_somewhere(group: str) -> None:
    text = "\n".join(p.read_text() for p in SOURCE.rglob("*.py") if not p.name.endswith("options.py"))
    for name in _groups()[group].model_fields:
        assert re.search(rf"\.{name}\b|\"{name}\"", text), f"nothing reads {group}.{name}"


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_every_preset_is_one_that_the_options_allow(protocol: str) -> None:
    options = import_options(PROTOCOLS, "protocol", protocol)
    for values in options.PRESETS.values():
        assert options(**values) != options()


@pytest.mark.parametrize("group", _groups())
def test_every_option_says_what_it_means(group: str) -> None:
    for name, field in _groups()[group].model_fields.items():
        assert field.description and len(field.description) > 8, f"{group}.{name}"
