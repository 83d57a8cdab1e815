# SPDX-License-Identifier: Apache-2.0
"""A run as nested options: defaults < the method's needs < the paper's settings < run file < what was asked for. Torch-free."""

from __future__ import annotations

import copy
import difflib
import importlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args

import yaml
from pydantic import BaseModel, Field, ValidationError, create_model, model_validator

from rekindle.adapters.options import AdapterOptions
from rekindle.core.errors import RequestError, unknown_name
from rekindle.core.options import Options
from rekindle.core.text_files import read_yaml
from rekindle.data.options import DataOptions
from rekindle.engine.options import EngineOptions, OptimOptions
from rekindle.methods import METHODS
from rekindle.networks.options import NetworkOptions
from rekindle.views.options import ViewsOptions

Model = TypeVar("Model", bound=BaseModel)
Source = Literal["default", "method", "paper", "base", "recipe", "file", "asked"]


class PretrainOptions(Options):
    """Continue the self-supervised training of a backbone on your own images, by default with adapters alone."""

    images: str = ""
    """Images to learn from: a folder, a glob, a list file (txt, csv, parquet), a tar pattern, or hf:NAME."""
    backbone: str = ""
    """What to start from: a timm name, hf-hub:owner/name, a checkpoint file, a run folder, or vit:width=..,depth=..,..."""
    method: str = "glare"
    """How to learn (`rekindle list methods`); its own options stand under its name, for example --glare.num-regions."""
    out: str = ""
    """Folder of the run: new or empty, or a run to --resume."""
    train: Literal["adapters", "all", "norm"] = "adapters"
    """What moves: adapters on a frozen backbone, all weights (HPT), or the layer norms alone."""
    init: Literal["pretrained", "random"] = "pretrained"
    """Start from the backbone's weights, or from random ones (then use train=all)."""
    recipe: Literal["auto", "paper"] = "auto"
    """What nobody sets follows the number of images (auto; `rekindle config --images ...` shows what and why), or is GLARE's:
    100 epochs of 512 images. Training from scratch has the settings of its method's paper either way."""
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
    accelerator: Literal["auto", "cpu", "gpu"] = "auto"
    """Where to compute; auto takes a GPU where there is one."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Compute in bfloat16 with float32 weights and losses, or in float32 throughout; auto: bf16 on a GPU that has it."""
    probe: tuple[str, ...] = ()
    """What to measure while training: health (ranks, spread, drift; without labels), or protocols, which need --probe-data."""
    every: int | None = Field(None, ge=1)
    """Steps between probes; None: as often as keeps their cost under 8 % of the time. First and last step are always measured."""
    probe_data: str = ""
    """Labelled data of probes that are protocols."""
    probe_keep: Literal["best", "last"] = "best"
    """Where a protocol is probed, the step whose model the run leaves: the best one, or the last. The other lies beside it."""
    probe_images: int = Field(48, ge=2)
    """Images of the health figures."""
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
    """The loop: shares of a step, checkpoints, logs."""

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


def import_named(table: Mapping[str, str], kind: str, name: str) -> Any:
    """Import what a table of `module:Name` strings holds under `name`. Raises RequestError for an unknown name."""
    if name not in table:
        raise unknown_name(kind, name, table)
    module, attribute = table[name].split(":")
    return getattr(importlib.import_module(module), attribute)


def read_run_file(path: str | Path) -> dict[str, Any]:
    """Read a YAML run file into a nested dict. Raises RequestError if it is missing or not a mapping."""
    path = Path(path)
    try:
        content = read_yaml(path)
    except OSError as error:
        raise RequestError(f"--config {path}: {error.strerror}; give the path of a YAML run file") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise RequestError(f"--config {path} is not valid YAML: {str(error).splitlines()[0]}") from error
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise RequestError(f"--config {path}: a run file holds `name: value` lines, not a {type(content).__name__}")
    return content


def resolve(file: Mapping[str, Any], asked: Mapping[str, Any], *, file_name: str = "run file") -> Resolved:
    """Merge and check the options of a run.

    Args: file, the run file's tree; asked, the tree from the command line or the Python call; file_name for messages.
    Raises: RequestError that names the option, what it may be, and the nearest known name.
    """
    method = str(asked.get("method", file.get("method", PretrainOptions.model_fields["method"].default)))
    method_class = import_named(METHODS, "method", method)
    model = run_model(method, method_class.Config)
    init = asked.get("init", file.get("init", "pretrained"))
    paper = nested(method_class.PAPER) if init == "random" else {}
    needs = nested(method_class.NEEDS)
    layers: list[tuple[Source, Mapping[str, Any]]] = [
        ("method", needs),
        ("paper", paper),
        ("file", file),
        ("asked", asked),
    ]
    merged: dict[str, Any] = {}
    sources: dict[str, Source] = {name: "default" for name in leaves(model().model_dump())}
    for source, layer in layers:
        overlay(merged, layer)
        sources.update({name: source for name in leaves(layer) if name in sources})
    where = file_name if file else "options"
    options = checked(model, merged, where)
    assert isinstance(options, PretrainOptions)
    return Resolved(options, sources)


def run_model(method: str, method_options: type[Options]) -> type[PretrainOptions]:
    """PretrainOptions with the method's own group under the method's name."""
    field: Any = (method_options, Field(method_options(), description=f"Options of {method}."))
    model: type[PretrainOptions] = create_model("PretrainOptions", __base__=PretrainOptions, **{method: field})
    model.__doc__ = PretrainOptions.__doc__
    return model


def checked(model: type[Model], values: Mapping[str, Any], where: str) -> Model:
    """Validate a tree against its model; pydantic's errors become one RequestError."""
    try:
        return model.model_validate(values)
    except ValidationError as error:
        raise RequestError("\n".join(_explain(model, e, where) for e in error.errors())) from None


def explain_validation(model: type[BaseModel], error: ValidationError, where: str) -> RequestError:
    """Turn a pydantic error into one RequestError."""
    return RequestError("\n".join(_explain(model, e, where) for e in error.errors()))


def _explain(model: type[BaseModel], error: Any, where: str) -> str:
    path = [str(part) for part in error["loc"]]
    name = ".".join(path)
    if error["type"] == "extra_forbidden":
        if len(path) == 1 and name in METHODS:
            chosen = next(n for n in model.model_fields if n in METHODS)
            return f"{where}: {name} holds options of the method {name}, and this run's is {chosen}; leave them out"
        known = list(_model_at(model, path[:-1]).model_fields)
        if len(path) == 1:
            known += list(METHODS)
        nearest = difflib.get_close_matches(path[-1], known, n=1, cutoff=0.5)
        everywhere = [k for k in leaves(model().model_dump()) if k.split(".")[-1] == path[-1]]
        hint = f"did you mean {'.'.join([*path[:-1], nearest[0]])}?" if nearest else f"known here: {', '.join(known)}"
        if everywhere:
            hint = f"did you mean {everywhere[0]}?"
        return f"{where}: unknown option {name}; {hint}"
    message = error["msg"].removeprefix("Value error, ")
    message = message[0].lower() + message[1:]
    if isinstance(error["input"], dict | Options) and not error["msg"].startswith("Input"):
        return f"{where}: {name}: {message}" if name else f"{where}: {message}"
    return f"{where}: {name} = {error['input']!r}: {message}"


def _model_at(model: type[BaseModel], path: list[str]) -> type[BaseModel]:
    for part in path:
        annotation = model.model_fields[part].annotation if part in model.model_fields else None
        candidates = [
            a for a in (annotation, *get_args(annotation)) if isinstance(a, type) and issubclass(a, BaseModel)
        ]
        if not candidates:
            return model
        model = candidates[0]
    return model


def leaves(tree: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """Dotted names of all values of a nested mapping."""
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}"


def nested(flat: Mapping[str, object]) -> dict[str, Any]:
    """{"a.b": 1} -> {"a": {"b": 1}}."""
    tree: dict[str, Any] = {}
    for name, value in flat.items():
        *groups, last = name.split(".")
        place = tree
        for group in groups:
            place = place.setdefault(group, {})
        place[last] = value
    return tree


def overlay(into: dict[str, Any], layer: Mapping[str, Any]) -> None:
    """Lay one tree of options over another, in place; nothing of `layer` is shared afterwards."""
    for key, value in layer.items():
        if isinstance(value, Mapping) and isinstance(into.get(key), dict):
            overlay(into[key], value)
        else:
            into[key] = copy.deepcopy(value)
