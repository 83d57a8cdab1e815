# SPDX-License-Identifier: Apache-2.0
"""Probes of `rekindle pretrain`: health figures of the features on a few images, or any protocol on labelled data."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from rekindle.core.errors import RequestError
from rekindle.core.tables import import_named
from rekindle.data.images import ImageSource
from rekindle.engine.probe import Reading
from rekindle.evaluation import PROTOCOLS
from rekindle.evaluation.features.extractors import FeatureExtractor
from rekindle.evaluation.features.health import FeatureSample, health, sample_features
from rekindle.evaluation.features.shared_features import SharedFeatures
from rekindle.evaluation.protocol import Outcome
from rekindle.evaluation.verdict.groups import group_items, read_rule
from rekindle.measuring.choosing import Choosing, choosing_part
from rekindle.measuring.measurement import LabelledData, build_protocol
from rekindle.measuring.models import LoadedModel
from rekindle.measuring.options import EvaluateOptions, evaluate_options
from rekindle.networks.backbone import Backbone
from rekindle.pretraining.feeding import few_views
from rekindle.pretraining.options import PretrainOptions
from rekindle.pretraining.unseen import UNSEEN, UnseenLoss

HEALTH = "health"
RANKS = ("RankMe image (dimensions)", "RankMe patch (dimensions)")
RANK_LOST, EVEN_ATTENTION = 0.5, 0.99


def check_probes(options: PretrainOptions) -> None:
    """Raise RequestError for an unknown probe, and for a protocol without data."""
    for name in _protocols(options):
        import_named(PROTOCOLS, "probe", name)
    if UNSEEN in options.probe and not options.unseen:
        raise RequestError(f"--probe {UNSEEN} needs images that are not learnt from: give --unseen SRC")
    if UNSEEN in options.probe and options.devices > 1:
        raise RequestError(f"--probe {UNSEEN} computes the loss in one process; use --devices 1, or leave it out")
    if _protocols(options) and not options.probe_data:
        raise RequestError(
            f"--probe {_protocols(options)[0]} needs labelled data: give --probe-data DIR, or use --probe {HEALTH}"
        )
    for name in _protocols(options)[:1]:
        if options.probe_share < 1 and import_named(PROTOCOLS, "probe", name).UNGROUPED:
            raise RequestError(
                f"--probe {name} draws its episodes from all labelled images, so that no part of them could judge later what "
                "the others chose; use --probe-share 1.0, or name another protocol first"
            )


class ModelProbe:
    """Measures a backbone as the options ask.

    Args:
        options: of the run; `probe` is not empty.
        images: of the run; health figures are of a few of them.
        base: before training.
        device: where it computes.
        bf16: compute in bfloat16.
        unseen: the loss on images that are not learnt from, if it is asked for.

    Attributes:
        choosing: the items that choose the step; None without a protocol.

    Raises: RequestError for what `check_probes` and the data refuse.
    """

    def __init__(
        self,
        options: PretrainOptions,
        images: ImageSource,
        base: Backbone,
        device: torch.device,
        *,
        bf16: bool,
        unseen: UnseenLoss | None = None,
    ) -> None:
        check_probes(options)
        self._device, self._bf16, self._unseen = device, bf16, unseen
        self._requests: list[tuple[str, EvaluateOptions]] = []
        for name in _protocols(options):
            asked = {"protocol": name, "data": options.probe_data, "model": options.backbone}
            self._requests.append((name, evaluate_options(asked)))
        self._data, self.choosing = None, None
        if self._requests:
            first = self._requests[0][1]
            names = [name for name, _ in self._requests]
            self._data = LabelledData(options.probe_data, first.train_split, first.split, names)
            model = self._loaded(base)
            for name, request in self._requests:
                build_protocol(name, request, model, self._data).check()
            self.choosing = _choosing(options, names[0], self._data.test(names[0]).items, first.split)
        self._views = None
        if HEALTH in options.probe:
            batch = few_views(options, images, count=options.probe_images)
            self._views = list(batch.global_views.pixels)
        self._first: FeatureSample | None = None

    def measure(self, backbone: Backbone) -> Reading:
        """Measure a backbone; its mode, its device and what trains stay as they are."""
        modes = [(module, module.training) for module in backbone.modules()]
        try:
            return self._measured(self._loaded(backbone))
        finally:
            for module, mode in modes:
                module.training = mode

    def _loaded(self, backbone: Backbone) -> LoadedModel:
        extractor = FeatureExtractor(backbone, device=self._device, bf16=self._bf16)
        return LoadedModel("probe", "", extractor, SharedFeatures(extractor))

    def _measured(self, model: LoadedModel) -> Reading:
        values: dict[str, float] = {}
        alarms: list[str] = []
        headline: float | None = None
        for name, request in self._requests:
            assert self._data is not None
            protocol = build_protocol(name, request, model, self._data)
            protocol.prepare()
            outcome = protocol.run(seed=0)
            values |= {f"{name}/{metric}": v for metric, v in outcome.metrics.items() if "/" not in metric}
            if name == self._requests[0][0]:
                own = self._of_those_that_choose(outcome)
                if np.isnan(own):
                    alarms.append(
                        f"the labelled images that choose the step define no {outcome.score.name}, so no step is the best one; "
                        "give more of them, or a larger --probe-share"
                    )
                    continue
                values[f"{name}/choosing {outcome.score.name}"] = own
                headline = own if outcome.score.higher_is_better else -own
        if self._views is not None:
            now = sample_features(model.extractor, self._views)
            self._first = self._first or now
            found = health(now, self._first)
            values |= {f"{HEALTH}/{metric}": v for metric, v in found.items()}
            alarms += collapse_alarms(found, health(self._first))
        if self._unseen is not None:
            values |= self._unseen.measure()
        return Reading(values, headline, tuple(alarms))

    def _of_those_that_choose(self, outcome: Outcome) -> float:
        """The headline of the items that choose; NaN where they define none."""
        assert self.choosing is not None
        if self.choosing.part.all():
            return outcome.score.value(outcome.rows)
        chosen = {item for item, chooses in zip(self.choosing.items, self.choosing.part, strict=True) if chooses}
        part = np.array([item in chosen for item in outcome.items])
        return outcome.score.value(outcome.rows[part]) if part.any() else float("nan")


def _choosing(options: PretrainOptions, protocol: str, items: Sequence[str], split: str) -> Choosing:
    """Cut the labelled items in those that choose the best step and those that are left to judge. Raises: RequestError."""
    share, rule, units = options.probe_share, options.probe_group_by, items
    if rule:
        try:
            units = group_items(read_rule(rule), items, split).names(items)
        except RequestError as error:
            raise RequestError(f"--probe-group-by is a rule of --group-by: {error}") from error
    return Choosing(protocol, options.probe_data, split, share, rule, tuple(items), choosing_part(units, share))


def collapse_alarms(now: dict[str, float], first: dict[str, float]) -> list[str]:
    """Say which health figures point to a collapse, and what to change."""
    alarms = []
    for name in RANKS:
        if now[name] < RANK_LOST * first[name]:
            kind = name.split()[1]
            alarms.append(
                f"the rank of the {kind} features has fallen to less than half of what it was ({first[name]:.1f} at first): "
                "they collapse onto a few directions. Lower --optim.lr-per-256 or the number of steps; with prototypes, "
                "use fewer of them or a lower teacher temperature"
            )
    if now.get("attention spread", 0.0) > EVEN_ATTENTION:
        alarms.append(
            "the class token attends to all patches alike, so it no longer selects: lower --optim.lr-per-256, or train adapters "
            "instead of all weights"
        )
    return alarms


def _protocols(options: PretrainOptions) -> list[str]:
    return [name for name in options.probe if name not in (HEALTH, UNSEEN)]
