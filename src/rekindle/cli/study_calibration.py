# SPDX-License-Identifier: Apache-2.0
"""`rekindle study calibration`."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from rekindle.calibration.cells import WHAT
from rekindle.calibration.options import CalibrationOptions
from rekindle.cli.arguments import begin

EPILOGUE = (
    """
also: --json, --debug. Sections of --cells:

"""
    + "\n".join(f"  {name:<10} {what}" for name, what in WHAT.items())
    + """

Writes calibration.json, calibration.md and calibration.png: the rate of wrong words with its interval, coverage and power,
of the verdict as it is and of the rule of commit bc97a06. Everything is drawn from --seed, so the same command gives the
same files. Exit code 1 if a limit is missed by more than chance explains.
"""
)


def run(arguments: Sequence[str]) -> int:
    """Run the study; see `rekindle study calibration --help`."""
    begun = begin(arguments, CalibrationOptions, "study calibration", EPILOGUE)
    if begun is None:
        return 0
    options, is_json = begun
    logging.getLogger("lightning_fabric").setLevel(logging.WARNING)
    from rekindle.calibration.run import FILES, run_calibration, write_calibration

    found = run_calibration(options, message=lambda text: print(text, file=sys.stderr, flush=True))
    write_calibration(found, Path(options.out))
    if is_json:
        print(json.dumps(found.model_dump(mode="json")))
    else:
        print(found.limits.told)
        for check in found.limits.missed:
            print(
                f"missed: {check.cell}: {check.what} {check.rate.value:.1%} ({check.rate.least:.1%} to {check.rate.most:.1%})"
            )
        print(f"written to {options.out}: {', '.join(FILES)}")
    return 1 if found.limits.missed else 0
