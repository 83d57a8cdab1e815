# SPDX-License-Identifier: Apache-2.0
"""The methods by name: code and summary. A module is imported when its method is asked for; its `Config` are the options."""

from __future__ import annotations

from rekindle.core.tables import Entry

METHODS: dict[str, Entry] = {
    "dino": Entry(
        "rekindle.methods.dino:Dino",
        "self-distillation of the class token between crops (Caron et al., 2021)",
    ),
    "fd": Entry(
        "rekindle.methods.fd:Fd",
        "a new encoder predicts a frozen one's whitened features (Wei et al., 2022)",
    ),
    "flsl": Entry(
        "rekindle.methods.flsl:Flsl",
        "clustering of patches within and between views (Su et al., 2023)",
    ),
    "glare": Entry(
        "rekindle.methods.glare:Glare",
        "global, regional and local consistency on adapters (Ebouky et al., 2025)",
        options="rekindle.methods.glare_options:GlareOptions",
    ),
    "ibot": Entry(
        "rekindle.methods.ibot:Ibot",
        "DINO, and hidden patches that match the teacher's (Zhou et al., 2022)",
    ),
    "leopart": Entry(
        "rekindle.methods.leopart:Leopart",
        "object parts: clusters of foreground patches, balanced and aligned between crops (Ziegler and Asano, 2022)",
    ),
    "loca": Entry(
        "rekindle.methods.loca:Loca",
        "where a query lies in its reference, and its cluster there (Caron et al., 2024)",
        options="rekindle.methods.loca_options:LocaOptions",
    ),
    "mae": Entry(
        "rekindle.methods.mae:Mae",
        "pixels of hidden patches from the visible ones (He et al., 2022)",
    ),
    "mcssl": Entry(
        "rekindle.methods.mcssl:Mcssl",
        "pixels and pseudo-concepts of corrupted patches (Atito et al., 2021)",
    ),
    "mmc": Entry(
        "rekindle.methods.mmc:Mmc",
        "pixels, and contrast of corrupted views and patches with clean ones (masked momentum contrast)",
    ),
    "mocov3": Entry(
        "rekindle.methods.mocov3:Mocov3",
        "contrast between images with a momentum teacher (Chen et al., 2021)",
    ),
    "msn": Entry(
        "rekindle.methods.msn:Msn",
        "prototypes of views without most of their patches (Assran et al., 2022)",
    ),
    "paka": Entry(
        "rekindle.methods.paka:Paka",
        "similarities among the patches of a region agree with the teacher's (Yeo et al., 2025)",
    ),
    "sit": Entry(
        "rekindle.methods.sit:Sit",
        "pixels, and contrast of corrupted views with clean ones (Atito et al., 2021)",
    ),
    "tec": Entry(
        "rekindle.methods.tec:Tec",
        "a new encoder predicts a frozen one's features and attention from visible patches (Gao et al., 2022)",
    ),
    "udi": Entry(
        "rekindle.methods.udi:Udi",
        "DINO with a second class token for several levels of semantics (Su and Ji, 2024)",
    ),
}
