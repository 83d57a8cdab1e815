# SPDX-License-Identifier: Apache-2.0
"""PaKA (arXiv:2509.05606): a post-training of dense features; the rest is NeCo's code, which it builds on."""

from __future__ import annotations

from rekindle.methods.shared.stated import lent

STATED = {
    **lent(
        "NeCo's code",
        {
            "views.num_local": 4,
            "views.overlap": "reject",
            "paka.sample_grid": 7,
            "paka.min_shared_area": 0.01,
            "paka.momentum": (0.9995, 1.0),
            "paka.export": "teacher",
        },
    ),
}
