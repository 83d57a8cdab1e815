# SPDX-License-Identifier: Apache-2.0
"""One model under one protocol on some labelled data: what evaluating, comparing and probing share."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rekindle.assess_options import CompareOptions, EvaluateOptions, protocol_options
from rekindle.config import import_named
from rekindle.core.errors import RequestError
from rekindle.data.classification import WithClasses, check_same_classes
from rekindle.data.named import DATASETS, named_root, open_data
from rekindle.evaluation import PROTOCOLS
from rekindle.evaluation.extractors import FeatureExtractor
from rekindle.evaluation.protocol import Protocol, Split, TrainingPart
from rekindle.evaluation.shared_features import SharedFeatures

AnyProtocol = Protocol[Any, Any]


@dataclass(frozen=True)
class LoadedModel:
    """A network with its name and content hash."""

    name: str
    hash: str
    extractor: FeatureExtractor
    features: SharedFeatures


class LabelledData:
    """Labelled data under the protocols that will read it: each kind is opened and checked once.

    Args:
        root: the data's folder, or NAME:ROOT.
        train: split to learn from or to remember.
        test: split that the metrics are of.
        protocols: names; their classes say what kind of data they read.

    Raises: RequestError that lists what is wrong with the files.
    """

    def __init__(self, root: str, train: str, test: str, protocols: Sequence[str]) -> None:
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

    def test(self, protocol: str) -> Split:
        """Return the split that the metrics of a protocol are of."""
        return self._test[self._kind_of[protocol]]

    def train(self, protocol: str) -> Split | None:
        """Return what a protocol learns from; None if it does not learn."""
        return self._train[self._kind_of[protocol]] if protocol in self._learns else None

    def fingerprint(self, protocol: str, config: Mapping[str, Any]) -> str:
        """Identify what is measured: numbers of one fingerprint may be compared.

        It covers the protocol, its options and the names of the items of both splits; neither model nor seed.
        """
        train = self.train(protocol)
        asked = {name: value for name, value in config.items() if name != "init"}  # random weights are another model
        told = [protocol, asked, self.test(protocol).items, None if train is None else train.items]
        return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:16]


def build_protocol(
    name: str,
    options: EvaluateOptions | CompareOptions,
    model: LoadedModel,
    data: LabelledData,
    say: Callable[[str], None] = lambda text: None,
) -> AnyProtocol:
    """Return the protocol `name` for one model; its `check` and `prepare` are the caller's to call.

    Args: say, takes lines of progress.
    """
    group = protocol_options(options, name)
    kind = import_named(PROTOCOLS, "protocol", name)
    part = TrainingPart(options.train_fraction, _listed(options.train_list))
    protocol: AnyProtocol = kind(
        group,
        model.extractor,
        data.train(name),
        data.test(name),
        lambda text: say(f"{name}: {text}"),
        part,
        model.features,
    )
    return protocol


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
