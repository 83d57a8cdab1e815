# SPDX-License-Identifier: Apache-2.0
"""Requests to measure models: evaluate, compare, extract. Torch-free."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypeVar

import tyro
from pydantic import Field, create_model

from rekindle.core.errors import RequestError
from rekindle.core.option_trees import checked, lay_over
from rekindle.core.options import Accelerator, Options
from rekindle.core.tables import import_options
from rekindle.evaluation import PROTOCOLS
from rekindle.evaluation.options import ProtocolOptions
from rekindle.networks.options import NetworkOptions

Request = TypeVar("Request", bound=Options)
SMALL = "small"  # the preset of the defaults


class ComputeOptions(Options):
    """Where the backbone computes, and how."""

    device: Accelerator = "auto"
    """Where to compute; auto takes a GPU where there is one."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Of the backbone; heads and metrics always compute in float32."""


class ModelOptions(ComputeOptions):
    """How models are read and where they compute."""

    init: Literal["pretrained", "random"] = "pretrained"
    """Random: models named as vit:... (or by timm) get random weights, as a baseline."""
    network: NetworkOptions = NetworkOptions()
    """Details of the backbone and its checkpoint."""


class MeasuringOptions(Options):
    """What evaluations, comparisons, grids and studies all have. A new one is a field here and a line in what reads it."""

    split: str = "val"
    """Split that the metrics are of."""
    train_split: str = "train"
    """Split that heads learn from and memories hold."""
    train_shots: int = Field(0, ge=0)
    """Images of each class to learn from, where images have a class: each seed draws its own, and fewer are part of more; 0:
    all. Instead of --train-fraction and --train-list."""
    preset: str = "small"
    """Settings of the protocols to start from: small (the defaults), paper, or a name that a protocol knows."""
    group_by: str = ""
    """Items that belong together, so that the interval draws groups and not items: folder (of the item's name; folder:1, the
    first of its path), name:REGEX (its first group in brackets, or all it matches), FILE.csv:COLUMN (video, slide, patient,
    scene; another column names the items), every:N (neighbours by name: pieces of a film). `rekindle check` proposes one."""
    allow_shared_groups: bool = False
    """Let groups through that also have items in the split that is learnt from."""
    worst_images: int = Field(4, ge=0)
    """Where classes are mapped: so many of the worst images and of the best are drawn (of the first seed); 0 draws nothing."""


class FractionOptions(Options):
    """Fractions of the labels."""

    train_fraction: float = Field(1.0, gt=0.0, le=1.0)
    """Fraction of the training split to learn from: each seed draws its own, and a smaller one is part of a larger one."""


class IntervalOptions(Options):
    """The interval of a difference."""

    resamples: int = Field(2000, ge=100)
    """Draws of the bootstrap."""
    level: float = Field(0.95, gt=0.5, lt=1.0)
    """Coverage of the interval; of several, of all together."""
    margin: float | None = Field(None, gt=0.0)
    """Points within which two models count as equivalent where the whole interval is, of metrics in percent; without it that word
    is not used."""


class LabelledOptions(MeasuringOptions, FractionOptions, ModelOptions):
    """Models on labelled data."""

    data: str = ""
    """Folder of labelled data, or NAME:ROOT of a published data set (`rekindle list datasets`)."""
    train_list: str = ""
    """File that names the images to learn from instead, one stem per line; the same for every seed."""


class EvaluateOptions(LabelledOptions):
    """Measure one model with one protocol on labelled images; writes one result file."""

    model: tyro.conf.Positional[str] = ""
    """Folder of a run, of transformers, timm or PEFT, timm name, hf-hub:owner/name, checkpoint file, or vit:width=..,... with
    --init random."""
    protocol: str = "linear-seg"
    """How to measure (`rekindle list protocols`); its options stand under its name, as --linear-seg.steps."""
    seed: int = Field(0, ge=0)
    """Seed of everything random in the protocol."""
    out: str = ""
    """Result file (.json); without it results/<protocol>-<model>-s<seed>.json."""
    save_model: str = ""
    """New or empty folder for the backbone that the protocol fine-tuned (finetune, fpn, upernet, ...), a MODEL like any other;
    its head is not kept."""


class CompareOptions(IntervalOptions, LabelledOptions):
    """Is a model better than its base? Same images and seeds, a paired bootstrap, and a verdict in words."""

    base: tyro.conf.Positional[str] = ""
    """The model to compare with."""
    models: tyro.conf.Positional[tuple[str, ...]] = ()
    """One or more models; none with --recipe."""
    pool: bool = False
    """The models are trainings of one recipe with different seeds: one verdict about the recipe, whose interval covers what other
    training seeds would change."""
    recipe: str = ""
    """Run file (YAML) of `rekindle pretrain`: train it from BASE with seeds 0, 1, ... into OUT/runs/seed-K, then as --pool."""
    training_seeds: int = Field(3, ge=1)
    """How many trainings of --recipe."""
    protocol: tuple[str, ...] = ("linear-seg", "dense-retrieval")
    """Protocols that read this data; the options of each stand under its name, as --linear-seg.steps."""
    seeds: int = Field(3, ge=1)
    """Number of seeds: 0, 1, ..."""
    out: str = ""
    """Folder for comparison.json and every single result; without it results/compare-<base>-<model>."""
    fail_if_worse: bool = False
    """Exit with code 1 if a model is "worse" in something, with intervals widened for their number."""


class ExtractOptions(ModelOptions):
    """Write patch features and image descriptors of any images."""

    model: tyro.conf.Positional[str] = ""
    """Folder of a run, of transformers, timm or PEFT, timm name, hf-hub:owner/name, checkpoint file, or vit:width=..,... with
    --init random."""
    images: str = ""
    """A folder, a glob, a list file (txt, csv, parquet), a tar pattern, hf:NAME, or a video file (its frames are written out)."""
    out: str = ""
    """New or empty folder."""
    size_px: int = Field(224, ge=1)
    """Short side of the resized image, rounded like the long one to a multiple of the patch."""
    pictures: tuple[Literal["pca", "clusters", "attention", "film"], ...] = ()
    """Pictures of the first 200 images beside the features: pca (one projection for all), clusters (k-means of each), attention
    (every head, their mean, the strongest), film (the mean attention over frames of one size, as GIF)."""
    clusters: int = Field(3, ge=2)
    """Clusters of each picture of --pictures clusters."""


def with_protocols(model: type[Request], protocols: Sequence[str], preset: str = SMALL) -> type[Request]:
    """Put the options of each protocol under its name. Raises RequestError for an unknown protocol or preset."""
    fields: dict[str, Any] = {}
    for name, values in preset_values(protocols, preset).items():
        options = import_options(PROTOCOLS, "protocol", name)
        fields[group_name(name)] = (options, Field(options(**values), description=f"Options of {name}."))
    combined: type[Request] = create_model(model.__name__, __base__=model, **fields)
    combined.__doc__ = model.__doc__
    return combined


def preset_values(protocols: Sequence[str], preset: str) -> dict[str, Mapping[str, object]]:
    """Return what a preset sets of each protocol: nothing of one that does not know it, but one of them must."""
    known = {name: import_options(PROTOCOLS, "protocol", name).PRESETS for name in protocols}
    if preset != SMALL and protocols and not any(preset in presets for presets in known.values()):
        names = sorted({SMALL, *(p for presets in known.values() for p in presets)})
        raise RequestError(f"--preset {preset}: {', '.join(protocols)} know {', '.join(names)}")
    return {name: presets.get(preset, {}) for name, presets in known.items()}


def with_preset(values: Mapping[str, Any], protocols: Sequence[str]) -> dict[str, Any]:
    """Return a tree of options with the values of its preset under those that were given."""
    preset = str(values.get("preset", SMALL))
    found = {group_name(name): dict(own) for name, own in preset_values(protocols, preset).items() if own}
    lay_over(found, values)
    return found


def fitted_to_patch(group: ProtocolOptions, preset: Mapping[str, object], patch: int) -> ProtocolOptions:
    """Return a protocol's options with the sides that nobody set as the nearest multiples of the patch.

    Args: preset, what it sets; a side that differs from it and from the default was asked for, and stays.
    """
    usual, changed = type(group)(**preset), {}
    for name in group.WHOLE_PATCHES:
        side = int(getattr(group, name))
        if side % patch and side == getattr(usual, name):
            changed[name] = max(1, (2 * side + patch) // (2 * patch)) * patch
    return group.model_copy(update=changed)


def group_name(protocol: str) -> str:
    """Return the name of a protocol's group of options: `linear-seg` -> `linear_seg`."""
    return protocol.replace("-", "_")


def evaluate_options(values: Mapping[str, object]) -> EvaluateOptions:
    """Check the tree of an evaluation (the names are the command line's)."""
    protocol = str(values.get("protocol", EvaluateOptions.model_fields["protocol"].default))
    return checked(with_protocols(EvaluateOptions, [protocol]), with_preset(values, [protocol]), "evaluate")


def compare_options(values: Mapping[str, object]) -> CompareOptions:
    """Check the tree of a comparison (the names are the command line's)."""
    protocols = values.get("protocol", CompareOptions.model_fields["protocol"].default)
    if isinstance(protocols, str) or not isinstance(protocols, Sequence):
        raise RequestError(f"compare: protocol = {protocols!r} must be a list of names")
    names = list(map(str, protocols))
    return checked(with_protocols(CompareOptions, names), with_preset(values, names), "compare")


def protocol_options(request: Options, protocol: str) -> ProtocolOptions:
    """Return the options of one protocol inside a request that `with_protocols` made."""
    group = getattr(request, group_name(protocol))
    assert isinstance(group, ProtocolOptions)
    return group


def require(command: str, **values: object) -> None:
    """Refuse a request that leaves out what it needs. Raises RequestError that names it."""
    for name, value in values.items():
        if not value:
            shown = name if name.isupper() else f"--{name}"
            raise RequestError(f"{shown} is missing; `rekindle {command} --help` says what it may be")
