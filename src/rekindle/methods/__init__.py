# SPDX-License-Identifier: Apache-2.0
"""The methods by name; a module is imported when its method is asked for."""

from __future__ import annotations

METHODS: dict[str, str] = {
    "dino": "rekindle.methods.dino:Dino",
    "glare": "rekindle.methods.glare:Glare",
}

SUMMARIES: dict[str, str] = {
    "dino": "self-distillation of the class token between crops (Caron et al., 2021)",
    "glare": "global, regional and local consistency on adapters (Ebouky et al., 2025)",
}
