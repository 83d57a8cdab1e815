# SPDX-License-Identifier: Apache-2.0
"""Every option of the report is read, and says what it means."""

from __future__ import annotations

import re
from pathlib import Path

import rekindle.report
from rekindle.report.options import ReportOptions

SOURCE = Path(rekindle.report.__file__).parent


def test_every_option_is_read_and_explained() -> None:
    text = "\n".join(path.read_text() for path in SOURCE.glob("*.py") if path.name != "options.py")
    for name, field in ReportOptions.model_fields.items():
        assert re.search(rf"options\.{name}\b", text), name
        assert field.description and len(field.description) > 8
