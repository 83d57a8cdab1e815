# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from rekindle.adapters.options import AdapterOptions
from rekindle.cli.arguments import parse_run
from rekindle.core.errors import RequestError
from rekindle.pretraining.options import resolve
from rekindle.pretraining.recipes import with_recipe


def test_options_survive_a_file() -> None:
    options = AdapterOptions(kind="lora", rank=3, lora_targets=("fc1", "qkv"), lora_alpha=2.5)
    assert AdapterOptions.model_validate(options.model_dump(mode="json")) == options


def test_command_line_and_python_ask_alike() -> None:
    asked, _ = parse_run(
        ["--adapter.kind", "lora", "--adapter.rank", "8", "--adapter.lora-targets", "qkv", "fc1"], program="config"
    )
    expected = resolve({}, {"adapter": {"kind": "lora", "rank": 8, "lora_targets": ["qkv", "fc1"]}})
    assert asked.options.adapter == expected.options.adapter
    assert parse_run(["--adapter.kind", "lora"], program="config")[0].options.adapter.width == 8
    assert resolve({}, {"adapter": {"kind": "lora"}}).options.adapter.width == 8
    with pytest.raises(RequestError, match=r"^adapter: rank = 512 is not low; name one for kind = lora"):
        parse_run(["--adapter.kind", "lora", "--adapter.rank", "512"], program="config")
    with pytest.raises(RequestError, match="adapter: rank = 512 is not low; name one for kind = lora, 256 at most"):
        resolve({}, {"adapter": {"kind": "lora", "rank": 512}})


def test_each_kind_has_its_usual_rank_unless_one_is_asked_for() -> None:
    usual = {"uniadapter": 512, "adaptformer": 64, "lora": 8, "norm": 0, "bias": 0}
    assert {kind: AdapterOptions(kind=kind).width for kind in usual} == usual
    assert AdapterOptions(kind="adaptformer", rank=7).width == 7


@pytest.mark.parametrize(
    ("kind", "few", "many"),
    [
        ("uniadapter", (1.0, 64), (1.0, None)),
        ("adaptformer", (1.0, 64), (1.0, None)),
        ("lora", (0.1, None), (0.1, None)),
        ("norm", (0.1, None), (0.1, None)),
        ("bias", (0.1, None), (0.1, None)),
    ],
)
def test_what_a_recipe_makes_of_each_kind(kind: str, few: tuple[float, int], many: tuple[float, int]) -> None:
    for num_images, expected in ((900, few), (2_000, many)):
        options = with_recipe(resolve({}, {"recipe": "full", "adapter": {"kind": kind}}), num_images).options.adapter
        assert (options.scale, options.rank) == expected
        asked = with_recipe(resolve({}, {"adapter": {"kind": kind, "scale": 0.3, "rank": 5}}), num_images)
        assert (asked.options.adapter.scale, asked.options.adapter.rank) == (0.3, 5)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"kind": "lora", "rank": 257}, "rank = 257 is not low"),
        ({"kind": "lora", "lora_targets": ()}, "lora_targets = .* must name at least one map"),
        ({"kind": "lora", "lora_targets": ("qkv", "qkv")}, "lora_targets = .* each once"),
        ({"kind": "norm", "in_full_training": True}, "in_full_training with kind = norm .* leave in_full_training out"),
        ({"kind": "lora", "lora_targets": ("query",)}, "'qkv', 'proj', 'fc1' or 'fc2'"),
        ({"kind": ["lora"]}, "valid string"),
        ({"kind": "uniadaptor"}, "unknown adapter 'uniadaptor'; did you mean 'uniadapter'"),
        ({"lora_alpha": 0.0}, "greater than 0"),
    ],
)
def test_impossible_options_are_named(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        AdapterOptions(**values)
