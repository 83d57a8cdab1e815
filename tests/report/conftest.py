# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest

from tests.report.made import Made, make


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    return make(tmp_path_factory.mktemp("made"))
