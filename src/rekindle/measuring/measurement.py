# SPDX-License-Identifier: Apache-2.0
"""Measurement of one model under one protocol on labelled data: what evaluating, comparing and probing share."""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import timm
import torch

from rekindle.core.errors import RequestError
from rekindle.core.files import write_atomically
from rekindle.core.tables import import_named
from rekindle.data.labelled.classification import WithClasses, check_same_classes
from rekindle.data.published.named import DATASETS, named_root, open_data
from rekindle.evaluation import PROTOCOLS
from rekindle.evaluation.protocol import Outcome, Protocol, Split, TrainingPart
from rekindle.evaluation.scores.result import EvalResult, write_csv, write_result
from rekindle.evaluation.training.predicted_maps import PredictedMaps
from rekindle.evaluation.verdict.groups import Grouping, Rule, group_items, read_rule, shared_groups
from rekindle.measuring.fine_tuned import save_fine_tuned
from rekindle.measuring.models import LoadedModel
from rekindle.measuring.options import (
    CompareOptions,
    EvaluateOptions,
    LabelledOptions,
    fitted_to_patch,
    preset_values,
    protocol_options,
)

NOT_OF_NUMBERS = ("data", "split", "network", "device", "preset", "worst_images", "group_by", "allow_shared_groups")
"""Options of a measurement that a result file has elsewhere, or that its numbers do not depend on."""
WHERE_ASKED = ("train_shots",)
"""Those that a result file has only where they are set, so that without them its fingerprint is the one of before."""
AnyProtocol = Protocol[Any, Any]


class LabelledData:
    """Labelled data under the protocols that will read it: each kind is opened and checked once.

    Args:
        root: the data's folder, or NAME:ROOT.
        train: split to learn from or to remember.
        test: split that the metrics are of.
        protocols: names; their classes say what kind of data they read.
        group_by: rule by which test items belong together; empty for none.
        allow_shared_groups: let groups through that have items in both splits of a protocol that learns.

    Raises: RequestError that lists what is wrong with the files, or with the groups.
    """

    def __init__(
        self,
        root: str,
        train: str,
        test: str,
        protocols: Sequence[str],
        *,
        group_by: str = "",
        allow_shared_groups: bool = False,
    ) -> None:
        self._kind_of: dict[str, str] = {}
        self._test: dict[str, Split] = {}
        self._train: dict[str, Split] = {}
        self._learns: set[str] = set()
        for name in protocols:
            protocol = import_named(PROTOCOLS, "protocol", name)
            kind = self._kind_of[name] = protocol.DATA
            if kind not in self._test:
                _serves(root, kind)
                self._test[kind] = open_data(kind, root, test)
                self._test[kind].check()
            if protocol.USES_TRAIN:
                self._learns.add(name)
                if kind not in self._train:
                    self._train[kind] = open_data(kind, root, train)
                    self._train[kind].check()
                    learnt, measured = self._train[kind], self._test[kind]
                    if isinstance(learnt, WithClasses) and isinstance(measured, WithClasses):
                        check_same_classes(learnt, measured)
        self._groupings: dict[str, Grouping] = {}
        if group_by:
            rule = read_rule(group_by)
            for name in protocols:
                self._groupings[name] = self._grouped(name, rule, (train, test), allow_shared_groups)

    def test(self, protocol: str) -> Split:
        """Return the split that the metrics of a protocol are of."""
        return self._test[self._kind_of[protocol]]

    def train(self, protocol: str) -> Split | None:
        """Return what a protocol learns from; None if it does not learn."""
        return self._train[self._kind_of[protocol]] if protocol in self._learns else None

    def grouping(self, protocol: str) -> Grouping | None:
        """Return which test items belong together; None where nothing was said of it."""
        return self._groupings.get(protocol)

    def refuse_single_items(self) -> None:
        """Raise RequestError where a split has one item alone, of which nothing can be drawn for an interval."""
        for protocol, kind in self._kind_of.items():
            items = self._test[kind].items
            if len(items) < 2 and not import_named(PROTOCOLS, "protocol", protocol).UNGROUPED:
                raise RequestError(
                    f"{protocol}: there is one item alone to measure ({', '.join(items)}), so nothing can be drawn and no "
                    "interval be given; give two or more, and for a verdict 30, or 8 groups. `rekindle evaluate` measures "
                    "single items"
                )

    def _grouped(self, protocol: str, rule: Rule, splits: tuple[str, str], allow_shared: bool) -> Grouping:
        """Put the test items of a protocol into groups. Raises: RequestError, also for groups that both splits have."""
        why = import_named(PROTOCOLS, "protocol", protocol).UNGROUPED
        if why:
            raise RequestError(
                f"--group-by {rule.text}: {protocol} cannot have groups: {why}. Leave one of the two out"
            )
        test, train = self.test(protocol), self.train(protocol)
        found = group_items(rule, test.items, splits[1])
        if train is None:
            return found
        shared = shared_groups(rule, train.items, splits[0], found)
        if shared and not allow_shared:
            classes = " (these are the classes)" if {*shared} <= {*getattr(train, "names", ())} else ""
            told = ", ".join(f"{group} ({there} and {here})" for group, (there, here) in list(shared.items())[:5])
            more = f" and {len(shared) - 5} more" if len(shared) > 5 else ""
            count = f"{len(shared)} group{'s' if len(shared) > 1 else ''}"
            raise RequestError(
                f"--group-by {rule.text}: {count}{classes} with items in both splits, '{splits[0]}' that {protocol} "
                f"learns from and '{splits[1]}' that is measured: {told}{more}. What is learnt of a group flatters what is "
                "measured of it: put a group into one split, use another rule, or let it through with --allow-shared-groups"
            )
        return replace(found, shared=tuple(shared))

    def fingerprint(self, protocol: str, config: Mapping[str, Any]) -> str:
        """Identify what is measured: numbers of one fingerprint may be compared.

        It covers the protocol, its options, the names of the items of both splits, and the groups of the items where there are
        any; neither model nor seed.
        """
        train = self.train(protocol)
        asked = {name: value for name, value in config.items() if name != "init"}  # random weights are another model
        items, grouping = self.test(protocol).items, self.grouping(protocol)
        told = [protocol, asked, items, None if train is None else train.items]
        told += [] if grouping is None else [grouping.names(items)]  # without groups it is the one of before
        return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:16]


def open_labelled(options: EvaluateOptions | CompareOptions, protocols: Sequence[str]) -> LabelledData:
    """Open what a request names, for some protocols. Raises: as LabelledData, and for a single item that is to be compared."""
    grouped: dict[str, Any] = {name: getattr(options, name) for name in ("group_by", "allow_shared_groups")}
    data = LabelledData(options.data, options.train_split, options.split, protocols, **grouped)
    if isinstance(options, CompareOptions):
        data.refuse_single_items()
    return data


def build_protocol(
    name: str,
    options: EvaluateOptions | CompareOptions,
    model: LoadedModel,
    data: LabelledData,
    message: Callable[[str], None] = lambda text: None,
) -> AnyProtocol:
    """Return the protocol `name` for one model; its `check` and `prepare` are the caller's to call.

    Args: message, takes lines of progress.
    """
    asked, patch = protocol_options(options, name), model.extractor.patch_size
    group = fitted_to_patch(asked, preset_values([name], options.preset)[name], patch)
    if group != asked:
        sides = {
            side: getattr(group, side) for side in group.WHOLE_PATCHES if getattr(group, side) != getattr(asked, side)
        }
        told = ", ".join(f"{side} = {size} for {getattr(asked, side)}" for side, size in sides.items())
        message(f"{name}: {told}, as the model's patch of {patch} px divides")
    kind = import_named(PROTOCOLS, "protocol", name)
    part = _training_part(options)
    protocol: AnyProtocol = kind(
        group,
        model.extractor,
        data.train(name),
        data.test(name),
        lambda text: message(f"{name}: {text}"),
        part,
        model.features,
        options.worst_images,
        keep_backbone=isinstance(options, EvaluateOptions) and bool(options.save_model),
    )
    return protocol


@dataclass(frozen=True)
class Measurement:
    """A prepared protocol, and what a result file says besides its outcome.

    Attributes:
        name: of the protocol.
        protocol: prepared.
        model: what it measures.
        data: what it reads.
        options: the request.

    """

    name: str
    protocol: AnyProtocol
    model: LoadedModel
    data: LabelledData
    options: EvaluateOptions | CompareOptions

    def of_seed(self, seed: int, path: Path, *, draw: bool = True) -> tuple[EvalResult, Outcome]:
        """Run the protocol with one seed and write its result to `path`, the values of the items beside it.

        Class maps leave their confusion matrix in the folder named after it and, with `draw`, pictures; a backbone that was
        fine-tuned and is to be kept (`save_model`) is written first.
        """
        outcome = self.protocol.run(seed)
        options, config = self.options, result_config(self.options, self.name)
        if outcome.backbone is not None and isinstance(options, EvaluateOptions):
            save_fine_tuned(options, self.model, outcome.backbone, outcome.counts["steps"])
        grouping = self.data.grouping(self.name)
        result = EvalResult(
            protocol=self.name,
            model=self.model.name,
            model_hash=self.model.hash,
            data=options.data,
            split=options.split,
            seed=seed,
            config=config | {side: getattr(self.protocol.config, side) for side in self.protocol.config.WHOLE_PATCHES},
            fingerprint=self.data.fingerprint(self.name, config),
            metrics=outcome.metrics,
            score=outcome.score,
            per_item=None,
            group_by="" if grouping is None else grouping.rule,
            shared_groups=[] if grouping is None else list(grouping.shared),
            maps=None if outcome.maps is None else path.stem,
            counts=outcome.counts,
            software={
                "rekindle": version("rekindle"),
                "torch": torch.__version__,
                "timm": timm.__version__,
                "python": platform.python_version(),
                "device": self.model.extractor.device.type,
            },
        )
        if self.protocol.USES_TRAIN and not self.protocol.part.is_whole:
            fold = [self.protocol.train.items[i] for i in self.protocol.training_indices(seed)]
            write_atomically(
                path.with_suffix(".train.txt"), lambda stream: stream.write("\n".join([*fold, ""]).encode())
            )
        for name, (header, lines) in outcome.tables.items():
            write_csv(path.with_suffix(f".{name}.csv"), header, lines)
        if outcome.maps is not None:
            write_maps(outcome.maps, path.with_suffix(""), draw=draw and self.options.worst_images > 0)
        groups = [] if grouping is None else grouping.names(outcome.items)
        return write_result(
            result, path, outcome.items, outcome.rows, groups
        ), outcome  # last: where it lies, all is there


def result_config(options: EvaluateOptions | CompareOptions, protocol: str) -> dict[str, Any]:
    """What a result file says of the options: those of the protocol, and the request's that its numbers depend on."""
    setting = {name: getattr(options, name) for name in LabelledOptions.model_fields if name not in NOT_OF_NUMBERS}
    setting = {name: value for name, value in setting.items() if value or name not in WHERE_ASKED}
    return protocol_options(options, protocol).model_dump(mode="json") | setting


def write_maps(maps: PredictedMaps, folder: Path, *, draw: bool) -> None:
    """Write confusion.csv and images.csv and, with `draw`, confusion.png, worst.png and best.png."""
    from rekindle.drawing.confusion import write_confusion_picture, write_confusion_table

    names, kept = maps.data.names, {"worst": maps.worst, "best": maps.best}
    write_confusion_table(folder / "confusion.csv", maps.confusion, names)
    lines = [[kind, k.item, k.iou, k.accuracy] for kind, images in kept.items() for k in images]
    write_csv(folder / "images.csv", ["kind", "image", "own mIoU", "own accuracy"], lines)
    if not draw:
        return
    from rekindle.drawing.worst_images import LabelledPicture, write_labelled_pictures

    write_confusion_picture(folder / "confusion.png", maps.confusion, names)
    for kind, images in kept.items():
        found = [maps.picture(k) for k in images]
        pictures = [
            LabelledPicture(
                f"{p.kept.item}: own mIoU {100 * p.kept.iou:.1f} %, {100 * p.kept.accuracy:.1f} % of the pixels right",
                p.image.permute(1, 2, 0).numpy(),
                p.label.numpy(),
                p.prediction.numpy(),
            )
            for p in found
        ]
        if pictures:
            path = folder / f"{kind}.png"
            write_labelled_pictures(path, pictures, names, ignore_index=maps.data.ignore_index, colors=maps.data.colors)


def _serves(data: str, kind: str) -> None:
    """Raise RequestError, naming the protocols that fit, if NAME:ROOT has not the kind of labels that a protocol reads."""
    named = named_root(data)
    if named is None or kind in DATASETS[named[0]].kinds:
        return
    entry = DATASETS[named[0]]
    fitting = [name for name in PROTOCOLS if import_named(PROTOCOLS, "protocol", name).DATA in entry.kinds]
    raise RequestError(
        f"--data {data}: {named[0]} is {entry.kind} data, and the protocol reads {kind}; protocols for it: {', '.join(fitting)}"
    )


def _training_part(options: LabelledOptions) -> TrainingPart:
    if options.train_shots and (options.train_fraction != 1.0 or options.train_list):
        other = "--train-list" if options.train_list else "--train-fraction"
        raise RequestError(f"--train-shots and {other} both say what to learn from; keep one of them")
    return TrainingPart(options.train_fraction, _listed(options.train_list), options.train_shots)


def _listed(path: str) -> tuple[str, ...]:
    """Read the names of a training list, one per line."""
    if not path:
        return ()
    try:
        names = tuple(line.strip() for line in Path(path).read_text(encoding="utf-8").splitlines() if line.strip())
    except (OSError, UnicodeDecodeError) as error:
        raise RequestError(f"--train-list {path}: {error}; give a text file with one stem per line") from error
    if not names:
        raise RequestError(f"--train-list {path}: it names no image; give one stem per line")
    return names
