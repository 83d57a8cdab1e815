# SPDX-License-Identifier: Apache-2.0
"""Evaluation: one model, one protocol, one result file."""

from __future__ import annotations

from pathlib import Path

from rekindle.core.errors import RequestError
from rekindle.engine.watcher import LoggingWatcher, Watcher
from rekindle.evaluation.scores.result import EvalResult
from rekindle.measuring.fine_tuned import check_saving
from rekindle.measuring.measurement import Measurement, build_protocol, open_labelled
from rekindle.measuring.models import load_model, slug
from rekindle.measuring.options import (
    EvaluateOptions,
    require,
)
from rekindle.networks.backbone import Backbone


def run_evaluate(
    options: EvaluateOptions, *, backbone: Backbone | None = None, watcher: Watcher | None = None
) -> EvalResult:
    """Do what `rekindle evaluate` does: check, measure, write the result file."""
    watcher = watcher or LoggingWatcher()
    require("evaluate", MODEL=options.model, data=options.data)
    data = open_labelled(options, [options.protocol])
    model = load_model(options.model, options, watcher, backbone)
    protocol = build_protocol(options.protocol, options, model, data, watcher.message)
    protocol.check()
    if options.save_model:
        check_saving(options, protocol, model)
    protocol.prepare()
    measurement = Measurement(options.protocol, protocol, model, data, options)
    return measurement.of_seed(options.seed, result_path(options))[0]


def result_path(options: EvaluateOptions) -> Path:
    """Where `run_evaluate` writes."""
    if not options.out:
        return Path("results") / f"{options.protocol}-{slug(options.model)}-s{options.seed}.json"
    if not options.out.endswith(".json"):
        raise RequestError(f"--out {options.out}: the result is one file; give a name that ends in .json")
    return Path(options.out)
