# SPDX-License-Identifier: Apache-2.0
"""Run options, nested: defaults < the method's needs < the paper's settings < run file < what was asked for. Torch-free."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import Field, create_model, model_validator

from rekindle.adapters.options import AdapterOptions, Train
from rekindle.core.errors import RequestError
from rekindle.core.option_trees import checked, lay_over, leaves, nested
from rekindle.core.options import Accelerator, Options
from rekindle.core.tables import import_named
from rekindle.core.text_files import read_yaml
from rekindle.data.options import DataOptions
from rekindle.engine.options import EngineOptions, OptimOptions
from rekindle.methods import METHODS
from rekindle.networks.options import NetworkOptions
from rekindle.views.options import ViewsOptions

Source = Literal["default", "method", "paper", "base", "recipe", "backbone", "machine", "file", "asked"]

USUAL_EPOCHS = 100.0
"""Passes over the images where neither steps nor epochs are known: GLARE's."""
NOT_OURS: Mapping[str, object] = {"optim.head_warmup": 0.0}
"""Settings, by dotted name, that take an idea of ours out of a run which follows a paper: with `recipe=paper`, whose other values
are the defaults (GLARE, section 5: adapters, heads and all move from the first step), and with `init=random`."""


class PretrainOptions(Options):
    """Continue the self-supervised training of a backbone on your own images, by default with adapters alone."""

    images: str = ""
    """Images to learn from: a folder, a glob, a list file (txt, csv, parquet), a tar pattern, or hf:NAME."""
    backbone: str = ""
    """What to start from: a timm name, hf-hub:owner/name, a checkpoint file, the folder of a run, of transformers, timm or
    PEFT, or vit:width=..,depth=..,..."""
    method: str = "glare"
    """How to learn (`rekindle list methods`); its own options stand under its name, for example --glare.num-regions."""
    out: str = ""
    """Folder of the run: new or empty, or a run to --resume."""
    train: Train = "adapters"
    """What moves: adapters on a frozen backbone, all weights (HPT), or the layer norms alone."""
    init: Literal["pretrained", "random"] = "pretrained"
    """Start from the backbone's weights, or from random ones (then use train=all)."""
    recipe: Literal["auto", "short", "full", "paper"] = "auto"
    """What nobody sets follows the number of images (`rekindle config --images ...` shows what and why): with small views in
    minutes (short), with large ones (full), or short for GLARE's adapters on a CPU and full otherwise (auto). Or it is GLARE's
    (paper): 100 epochs of 512 images, all that trains from the first step. Training from scratch has the settings of its
    method's paper either way (`rekindle config --explain-paper` shows both beside the papers)."""
    steps: int | None = Field(None, ge=1)
    """Optimizer steps; instead of `epochs`."""
    epochs: float | None = Field(None, gt=0)
    """Passes over the images; where neither is given the recipe decides (paper: 100)."""
    batch_size: int = Field(512, ge=1)
    """Images per optimizer step, over all devices (GLARE: 512); at most the number of images."""
    seed: int = Field(0, ge=0)
    """Seed of everything random."""
    devices: int = Field(1, ge=1)
    """Processes, one per GPU where there are GPUs."""
    accelerator: Accelerator = "auto"
    """Where to compute; auto takes a GPU where there is one."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Compute in bfloat16 with float32 weights and losses, or in float32 throughout; auto: bf16 on a GPU or a processor that
    multiplies it natively (AVX512-BF16, AMX, ARM's bf16)."""
    probe: tuple[str, ...] = ()
    """What to measure while training: health (ranks, spread, drift; without labels), unseen (the method's loss and figures on
    the images of --unseen), or protocols, which need --probe-data."""
    every: int | None = Field(None, ge=1)
    """Steps between probes; None: as often as keeps their cost under 8 % of the time. First and last step are always measured."""
    probe_data: str = ""
    """Labelled data of probes that are protocols."""
    probe_keep: Literal["best", "last"] = "best"
    """Where a protocol is probed, the step whose model the run leaves: the best one, or the last. The other lies beside it."""
    probe_share: float = Field(0.5, gt=0.0, le=1.0)
    """Share of the labelled items of a protocol, or of their groups, that choose the best step; `rekindle compare` leaves these
    out and judges on the others. 1: all choose, and a verdict on the same data flatters the run."""
    probe_group_by: str = ""
    """Which of these items belong together, by a rule of `rekindle compare --group-by` (drives, slides, patients): a group
    chooses or judges as a whole."""
    probe_images: int = Field(48, ge=2)
    """Images of the health figures, and of the figures on unseen images."""
    unseen: str = ""
    """Images that are not learnt from, given as `images` are: pictures of the run show these, and --probe unseen measures on
    them (LOCA's position accuracy, for example)."""
    data: DataOptions = DataOptions()
    """Reading images."""
    views: ViewsOptions = ViewsOptions()
    """Crops and their augmentation."""
    network: NetworkOptions = NetworkOptions()
    """Details of the backbone and its checkpoint."""
    adapter: AdapterOptions = AdapterOptions()
    """The adapter, where train=adapters."""
    optim: OptimOptions = OptimOptions()
    """Optimizer and its schedule."""
    engine: EngineOptions = EngineOptions()
    """The loop: micro-batches, checkpoints, logs."""

    @model_validator(mode="after")
    def _consistent(self) -> PretrainOptions:
        if self.steps is not None and self.epochs is not None:
            raise ValueError("steps and epochs are both given; keep one of them")
        return self


@dataclass(frozen=True)
class Resolved:
    """Checked options of one run, and what set each value.

    Attributes:
        options: a PretrainOptions that also has the group of its method under the method's name.
        sources: dotted name of every value -> what set it.
        reasons: dotted name -> why, for what a recipe set.
    """

    options: PretrainOptions
    sources: dict[str, Source]
    reasons: dict[str, str] = field(default_factory=dict)

    def method_options(self) -> Options:
        """The options of the method."""
        group = getattr(self.options, self.options.method)
        assert isinstance(group, Options)
        return group

    def to_yaml(self) -> str:
        """The whole tree, to be read back with --config."""
        return yaml.safe_dump(self.options.model_dump(mode="json"), sort_keys=False)


def read_run_file(path: str | Path, option: str = "--config") -> dict[str, Any]:
    """Read a YAML run file into a nested dict. Raises RequestError, naming the option, if it is missing or not a mapping."""
    path = Path(path)
    try:
        content = read_yaml(path)
    except OSError as error:
        raise RequestError(f"{option} {path}: {error.strerror}; give the path of a YAML run file") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise RequestError(f"{option} {path} is not valid YAML: {str(error).splitlines()[0]}") from error
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise RequestError(f"{option} {path}: a run file holds `name: value` lines, not a {type(content).__name__}")
    return content


def resolve(file: Mapping[str, Any], asked: Mapping[str, Any], *, file_name: str = "run file") -> Resolved:
    """Merge and check the options of a run.

    Args: file, the run file's tree; asked, the tree from the command line or the Python call; file_name for messages.
    Raises: RequestError that names the option, what it may be, and the nearest known name.
    """
    method = str(asked.get("method", file.get("method", PretrainOptions.model_fields["method"].default)))
    method_class = import_named(METHODS, "method", method)
    model = run_model(method, method_class.Config)
    needs = nested(method_class.NEEDS)
    init, recipe = (
        asked.get(name, file.get(name, needs.get(name, PretrainOptions.model_fields[name].default)))
        for name in ("init", "recipe")
    )
    paper = nested(NOT_OURS) if init == "random" or recipe == "paper" else {}
    if init == "random":
        lay_over(paper, nested(method_class.PAPER))
    layers: list[tuple[Source, Mapping[str, Any]]] = [
        ("method", needs),
        ("paper", paper),
        ("file", file),
        ("asked", asked),
    ]
    merged: dict[str, Any] = {}
    sources: dict[str, Source] = {name: "default" for name in leaves(model().model_dump())}
    for source, layer in layers:
        lay_over(merged, layer)
        sources.update({name: source for name in leaves(layer) if name in sources})
    where = file_name if file else "options"
    options = checked(model, merged, where, groups=METHODS)
    assert isinstance(options, PretrainOptions)
    return Resolved(options, sources)


@cache
def run_model(method: str, method_options: type[Options]) -> type[PretrainOptions]:
    """PretrainOptions with the method's own group under the method's name."""
    field: Any = (method_options, Field(method_options(), description=f"Options of {method}."))
    model: type[PretrainOptions] = create_model("PretrainOptions", __base__=PretrainOptions, **{method: field})
    model.__doc__ = PretrainOptions.__doc__
    return model
