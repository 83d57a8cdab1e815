# SPDX-License-Identifier: Apache-2.0
"""The methods by name; a module is imported when its method is asked for."""

from __future__ import annotations

METHODS: dict[str, str] = {
    "dino": "rekindle.methods.dino:Dino",
    "flsl": "rekindle.methods.flsl:Flsl",
    "glare": "rekindle.methods.glare:Glare",
    "ibot": "rekindle.methods.ibot:Ibot",
    "loca": "rekindle.methods.loca:Loca",
    "mae": "rekindle.methods.mae:Mae",
    "mcssl": "rekindle.methods.mcssl:Mcssl",
    "mmc": "rekindle.methods.mmc:Mmc",
    "mocov3": "rekindle.methods.mocov3:Mocov3",
    "msn": "rekindle.methods.msn:Msn",
    "paka": "rekindle.methods.paka:Paka",
    "sit": "rekindle.methods.sit:Sit",
    "tec": "rekindle.methods.tec:Tec",
    "udi": "rekindle.methods.udi:Udi",
}

SUMMARIES: dict[str, str] = {
    "dino": "self-distillation of the class token between crops (Caron et al., 2021)",
    "flsl": "clustering of patches within and between views (Su et al., 2023)",
    "glare": "global, regional and local consistency on adapters (Ebouky et al., 2025)",
    "ibot": "DINO, and hidden patches that match the teacher's (Zhou et al., 2022)",
    "loca": "where a query lies in its reference, and its cluster there (Caron et al., 2024)",
    "mae": "pixels of hidden patches from the visible ones (He et al., 2022)",
    "mcssl": "pixels and pseudo-concepts of corrupted patches (Atito et al., 2021)",
    "mmc": "pixels, and contrast of corrupted views and patches with clean ones (masked momentum contrast)",
    "mocov3": "contrast between images with a momentum teacher (Chen et al., 2021)",
    "msn": "prototypes of views without most of their patches (Assran et al., 2022)",
    "paka": "similarities among the patches of a region agree with the teacher's (Yeo et al., 2025)",
    "sit": "pixels, and contrast of corrupted views with clean ones (Atito et al., 2021)",
    "tec": "a new encoder predicts a frozen one's features and attention from visible patches (Gao et al., 2022)",
    "udi": "DINO with a second class token for several levels of semantics (Su and Ji, 2024)",
}
