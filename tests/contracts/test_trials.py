# SPDX-License-Identifier: Apache-2.0
"""How many files a newcomer takes: each trial here is one module and one entry of a table, and all commands know it.

Nothing else is changed: where a second file of the package had to know a name, its trial would fail.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import rekindle
from rekindle.adapters import ADAPTERS, AdapterEntry
from rekindle.cli import main
from rekindle.core.option_trees import nested
from rekindle.core.tables import Entry
from rekindle.evaluation import PROTOCOLS
from rekindle.exporting import FORMATS, FormatEntry
from rekindle.methods import METHODS
from tests.adapters.networks import images
from tests.contracts import test_methods
from tests.engine.running import TINY, write_images
from tests.evaluation.toy import save_tiny, write_data
from tests.exporting.making import VIT, write_base

Add = Callable[[str], str]
SMALL = {"dino__num_prototypes": 16, "dino__head_hidden": 16, "dino__head_bottleneck": 8}

METHOD = '''
from rekindle.core.options import Options
from rekindle.methods.base import LossBreakdown, Method
from rekindle.objectives.plain import row_cross_entropy


class TrialOptions(Options):
    its_option: float = 1.0
    """Weight of the only term."""


class Trial(Method):
    Config = TrialOptions

    def __init__(self, config, backbone):
        super().__init__()
        self.config, self.student = config, backbone

    def loss(self, batch, progress):
        """Return the cross-entropy of one view's mean patch to the other's; equals `objectives.plain.row_cross_entropy`."""
        patches = self.student(batch.global_views.pixels.flatten(0, 1)).patches
        first, second = patches.mean(dim=(1, 2)).chunk(2)
        apart = row_cross_entropy(first, second.float().softmax(dim=-1), temperature=1.0).mean()
        return LossBreakdown.weigh({"apart": apart}, {"apart": self.config.its_option})

    def exported(self):
        return self.student
'''

PROTOCOL = '''
import numpy as np

from rekindle.evaluation.features.shared_features import Sizing
from rekindle.evaluation.options import ProtocolOptions
from rekindle.evaluation.protocol import Outcome, Protocol
from rekindle.evaluation.scores.kinds import Means


class TrialOptions(ProtocolOptions):
    PRESETS = {"paper": {"its_option": 3.0}}

    its_option: float = 1.0
    """Factor on the result."""


class Trial(Protocol):
    Config = TrialOptions
    DATA = "segmentation"
    USES_TRAIN = False

    def check(self):
        pass

    def prepare(self):
        seen = self.features.of(self.test, Sizing("short", 16), (-1,), self.message)
        self.sizes = [float(tokens[0].patches.abs().mean()) for tokens in seen]

    def run(self, seed):
        rows = np.array([[self.config.its_option * size, 1.0] for size in self.sizes])
        return Outcome(self.test.items, rows, Means(headline="size", names=["size"]), {"images": len(rows)})
'''

ADAPTER = '''
import torch
from torch import nn

from rekindle.core.errors import RequestError
from rekindle.networks.blocks import PLAIN, ComposedBlock, run_block


class TrialBlock(ComposedBlock):
    """y = Block(x); y + scale * y D U."""

    def __init__(self, block, adapter, scale):
        super().__init__()
        self.block, self.adapter, self.scale, self.enabled = block, adapter, scale, True

    @classmethod
    def wrap(cls, block, width, options):
        adapter = nn.Sequential(nn.Linear(width, options.width, bias=False), nn.Linear(options.width, width, bias=False))
        nn.init.zeros_(adapter[1].weight)
        return cls(block, adapter, options.scale)

    @classmethod
    def require_fit(cls, block, options):
        if type(block) is not cls:
            raise RequestError(f"this backbone has adapters of another kind than {options.kind}; name theirs")

    def forward(self, x, how=PLAIN):
        y = run_block(self.block, x, how)
        return y + self.scale * self.adapter(y) if self.enabled else y
'''

FORMAT = '''
import torch

from rekindle.exporting.parity import check_parity
from rekindle.exporting.source import Exported


def write(source, folder):
    """The state as a file of torch."""
    path = folder / "trial.pt"
    torch.save(source.backbone.state_dict(), path)
    return Exported(check_parity(source.backbone, source.backbone, [(1, 32, 32)]), "torch", "import torch")
'''


@pytest.fixture
def add(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Add:
    """Write a module that Python finds, for this test alone."""
    folder = tmp_path / "newcomers"
    folder.mkdir()
    monkeypatch.syspath_prepend(folder)

    def write(source: str) -> str:
        name = f"trial_{tmp_path.name}"
        (folder / f"{name}.py").write_text(source)
        monkeypatch.setitem(sys.modules, name, None)  # so that it is gone again afterwards
        del sys.modules[name]
        return name

    return write


def arguments(images: Path, out: Path, **changes: Any) -> list[str]:
    """The command line of a run of two steps."""
    flat = {name: value for name, value in TINY.items() if not name.startswith("glare.")}
    flat |= {"images": images, "out": out, "steps": 2} | {n.replace("__", "."): v for n, v in changes.items()}
    words: list[str] = []
    for name, value in flat.items():
        flag = "--" + name.replace("_", "-")
        if isinstance(value, bool):
            group, _, last = flag.rpartition(".")
            words.append(flag if value else f"{group}.no-{last}")
        else:
            words += [flag, str(value)]
    return words


def listed(table: str, capsys: pytest.CaptureFixture[str]) -> dict[str, str]:
    capsys.readouterr()
    assert main(["list", table, "--json"]) == 0
    return {line["name"]: line["summary"] for line in json.loads(capsys.readouterr().out)[table]}


def help_of(command: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    capsys.readouterr()
    assert main([*command, "--help"]) == 0
    return capsys.readouterr().out


def test_a_method_is_a_module_and_an_entry(
    add: Add, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(METHODS, "trial", Entry(f"{add(METHOD)}:Trial", "two views of an image come together"))
    sources = write_images(tmp_path / "images", 4)
    words = arguments(sources, tmp_path / "run", method="trial", trial__its_option=0.5)
    assert main(["pretrain", *words, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["steps"] == 2
    assert "its_option: 0.5" in (tmp_path / "run" / "config.yaml").read_text()
    assert main(["pretrain", *words, "--resume", "--json"]) == 0
    flat = {n: v for n, v in TINY.items() if not n.startswith("glare.")} | {"method": "trial", "steps": 2}
    asked = nested(flat | {"images": str(sources), "out": tmp_path / "again", "trial.its_option": 0.5})
    again = rekindle.pretrain(**asked)
    assert torch.equal(rekindle.load(again)(images()).sequence, rekindle.load(tmp_path / "run")(images()).sequence)
    assert listed("methods", capsys)["trial"] == "two views of an image come together"
    assert "--trial.its-option" in help_of(["pretrain", "--method", "trial"], capsys)
    assert main(["config", "--method", "trial", "--trial.its-option", "2"]) == 0
    assert "trial.its_option" in capsys.readouterr().out
    assert main(["plan", *arguments(sources, tmp_path / "planned", method="trial")]) == 0
    test_methods.test_the_loss_names_the_plain_equations_that_it_equals("trial")
    test_methods.test_every_option_says_what_it_means("trial")
    test_methods.test_state_round_trips_bit_for_bit("trial")
    test_methods.test_batch_order_does_not_matter_to_the_loss("trial", monkeypatch)
    for train in test_methods.TRAIN:
        test_methods.test_the_loss_is_finite_and_every_trainable_tensor_gets_a_gradient_and_no_other("trial", train)
        test_methods.test_in_bfloat16_the_loss_is_close_and_gradients_are_float32("trial", train)


def test_a_protocol_is_a_module_and_an_entry(
    add: Add, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(PROTOCOLS, "trial", Entry(f"{add(PROTOCOL)}:Trial", "how large features are"))
    model, other = save_tiny(tmp_path / "a"), save_tiny(tmp_path / "b", seed=1)
    data = write_data(tmp_path / "data")
    asked = ["--protocol", "trial", "--data", str(data)]
    sizes = []
    for name, more in {"one": [], "two": ["--trial.its-option", "2"], "paper": ["--preset", "paper"]}.items():
        out = tmp_path / f"{name}.json"
        assert main(["evaluate", str(model), *asked, *more, "--out", str(out)]) == 0
        sizes.append(json.loads(out.read_text())["metrics"]["size"])
    assert sizes[1:] == [pytest.approx(factor * sizes[0]) for factor in (2.0, 3.0)]
    found = rekindle.evaluate(model, "trial", data, trial={"its_option": 2.0}, out=str(tmp_path / "python.json"))
    assert found.metrics["size"] == sizes[1]
    out = tmp_path / "comparison"
    assert main(["compare", str(model), str(other), *asked, "--seeds", "1", "--out", str(out)]) == 0
    assert json.loads((out / "comparison.json").read_text())["rows"][0]["protocol"] == "trial"
    assert listed("protocols", capsys)["trial"] == "how large features are"
    for command in ("evaluate", "compare"):
        assert "--trial.its-option" in help_of([command, "--protocol", "trial"], capsys)
    sources = write_images(tmp_path / "images", 4)
    words = arguments(sources, tmp_path / "run", method="dino", **SMALL)
    assert main(["pretrain", *words, "--probe", "trial", "--probe-data", str(data)]) == 0


def test_an_adapter_is_a_module_and_an_entry(
    add: Add, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It reads options that are there (rank, scale); only a new one would be a third file, adapters/options.py."""
    entry = AdapterEntry(f"{add(ADAPTER)}:TrialBlock", "a product of two maps", usual_rank=3, has_scale=True)
    monkeypatch.setitem(ADAPTERS, "trial", entry)
    base, sources = write_base(tmp_path, VIT), write_images(tmp_path / "images", 4)
    start = {"backbone": base, "train": "adapters", "init": "pretrained", "method": "dino", **SMALL}
    words = arguments(sources, tmp_path / "run", **start, recipe="paper")
    assert main(["pretrain", *words, "--adapter.kind", "trial"]) == 0
    trained = rekindle.load(tmp_path / "run")
    assert trained.vit.blocks[0].adapter[0].out_features == 3
    assert not torch.equal(trained(images()).sequence, rekindle.load(base)(images()).sequence)
    whole = rekindle.export(tmp_path / "run", format="safetensors", out=tmp_path / "whole")
    assert torch.equal(rekindle.load(whole)(images()).sequence, trained(images()).sequence)
    asked = ["--protocol", "dense-retrieval", "--data", str(write_data(tmp_path / "data"))]
    assert main(["evaluate", str(tmp_path / "run"), *asked, "--out", str(tmp_path / "r.json")]) == 0
    assert listed("adapters", capsys)["trial"] == "a product of two maps; usual rank 3"
    assert main(["export", str(tmp_path / "run"), "--format", "timm", "--out", str(tmp_path / "timm")]) == 2
    capsys.readouterr()
    assert main(["config", "--adapter.kind", "trial", "--images", str(sources), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["adapter.scale"]["source"] == told["adapter.rank"]["source"] == "recipe"  # as for others with a scale
    on = arguments(sources, tmp_path / "on", **start | {"backbone": tmp_path / "run"})
    assert main(["pretrain", *on]) == 0  # goes on with the adapters that it finds


def test_an_export_format_is_a_module_and_an_entry(
    add: Add, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    entry = FormatEntry(f"{add(FORMAT)}:write", "trial.pt: every model", holds_all=True)
    monkeypatch.setitem(FORMATS, "trial", entry)
    base = write_base(tmp_path, VIT)
    assert main(["export", str(base), "--format", "trial", "--out", str(tmp_path / "out")]) == 0
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["README.md", "trial.pt"]
    assert rekindle.export(base, format="trial", out=tmp_path / "python").format == "trial"
    assert listed("formats", capsys)["trial"] == "trial.pt: every model"
    assert "trial.pt: every model" in help_of(["export"], capsys)
    assert main(["export", str(base), "--format", "peft", "--out", str(tmp_path / "no")]) == 2
    assert "export it with --format hf, onnx, safetensors, trial" in capsys.readouterr().err


def test_a_trial_leaves_nothing_behind() -> None:
    assert not any("trial" in table for table in (METHODS, PROTOCOLS, ADAPTERS, FORMATS))
    assert not [name for name in sys.modules if name.startswith("trial_")]
