# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import subprocess
import sys

import pytest
from pydantic import ValidationError

from rekindle.views.options import ViewsOptions


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("global_size_px", 0, "at least one pixel"),
        ("num_local", -1, "0 or more"),
        ("global_scale", (0.5, 0.25), "smallest <= largest"),
        ("local_scale", (0.0, 0.25), "0 < smallest"),
        ("local_scale", (0.05, 1.5), "largest <= 1"),
        ("aspect_ratio", (-1.0, 2.0), "0 < smallest"),
        ("blur_sigma", (2.0, 0.1), "smallest <= largest"),
        ("hflip_p", 1.2, "[0, 1]"),
        ("blur_p", (1.0, 0.1, -0.5), "global 1, global 2, local"),
        ("brightness", -0.1, "0 switches it off"),
        ("saturation", 101.0, "[0, 100]"),
        ("hue", 0.6, "[0, 0.5]"),
        ("executor", "gpu", "'device'"),
    ],
)
def test_a_wrong_value_is_refused_with_its_name_and_the_allowed_range(name: str, value: object, text: str) -> None:
    with pytest.raises(ValidationError) as error:
        ViewsOptions.model_validate({name: value})
    assert name in str(error.value)
    assert text in str(error.value)


@pytest.mark.parametrize("module", ["rekindle.views.options", "rekindle.data.options"])
def test_options_do_not_import_torch(module: str) -> None:
    code = f"import sys, {module}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
