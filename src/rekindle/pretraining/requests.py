# SPDX-License-Identifier: Apache-2.0
"""Requests for a run: what must be given, what fits together, what may change when a run goes on."""

from __future__ import annotations

from dataclasses import replace

import torch

from rekindle.adapters import ADAPTERS
from rekindle.core.devices import has_gpu
from rekindle.core.errors import RequestError
from rekindle.engine.run_folder import RunFolder
from rekindle.networks.backbone import Backbone
from rekindle.pretraining.options import PretrainOptions, Resolved, read_run_file, resolve

WATCHING = ("probe", "every", "probe_data", "probe_share", "probe_group_by", "probe_images", "probe_keep", "unseen")
FREE_TO_CHANGE = (
    "out",
    "devices",
    "data",
    "engine",
    *WATCHING,
)  # when a run goes on: its numbers do not depend on them
BITS = "engine.trunk_bits"  # on which they do


def resolve_resumed(out: str, asked: dict[str, object]) -> Resolved:
    """Options of the run in `out`, as it was started. Raises RequestError if something else is asked for now."""
    folder = RunFolder(out)
    if not folder.holds_run:
        return resolve({}, asked)
    stored = resolve(read_run_file(folder.config), {}, file_name=str(folder.config))
    wanted = resolve(read_run_file(folder.config), asked, file_name=str(folder.config))
    both = (stored.options, wanted.options)
    before, now = (o.model_dump() | o.data.chosen | {BITS: o.engine.trunk_bits} for o in both)
    changed = [k for k in before if before[k] != now.get(k) and k not in FREE_TO_CHANGE]
    if changed:
        raise RequestError(
            f"--resume continues {out} as it was started, with {changed[0]} = {before[changed[0]]!r}, not "
            f"{now.get(changed[0])!r}; leave the option out, or start a new run in another folder"
        )
    return wanted


def as_begun(resolved: Resolved, folder: RunFolder) -> Resolved:
    """Take for `precision=auto` what it came to when the run in the folder began, or it would not go on alike.

    A run that keeps `auto` itself is of a Rekindle in which that was fp32 on every CPU.
    """
    if resolved.options.precision != "auto" or not folder.holds_run:
        return resolved
    stored = resolve(read_run_file(folder.config), {}, file_name=str(folder.config)).options.precision
    if stored == "auto" and not has_gpu(resolved.options.accelerator):
        stored = "fp32"
    return replace(
        resolved,
        options=resolved.options.model_copy(update={"precision": stored}),
        sources=resolved.sources | {"precision": "machine"},
    )


def required(name: str, value: str) -> str:
    """Value of an option that a run needs. Raises RequestError where it is empty."""
    if not value:
        raise RequestError(f"--{name} is missing; `rekindle pretrain --help` says what it may be")
    return value


def check_request(options: PretrainOptions) -> None:
    """Check what needs neither images nor weights. Raises RequestError that names the option."""
    required("images", options.images)
    required("backbone", options.backbone)
    if options.init == "random" and options.train != "all":
        raise RequestError(f"--init random with --train {options.train} would freeze random weights; use --train all")
    check_trunk_bits(options)
    if options.probe:
        from rekindle.pretraining.probes import check_probes  # what measures is loaded where something is measured

        check_probes(options)
    if options.accelerator == "gpu" and not torch.cuda.is_available():
        raise RequestError("--accelerator gpu: no GPU is visible to torch; use --accelerator cpu, or mend the driver")


def check_trunk_bits(options: PretrainOptions) -> None:
    """Check that what is to be packed stands still. Raises RequestError."""
    bits, kind = options.engine.trunk_bits, options.adapter.kind
    if bits is None:
        return
    if options.train != "adapters":
        raise RequestError(
            f"--engine.trunk-bits {bits} packs weights that stay still, and with --train {options.train} they move; use --train "
            "adapters, or leave the bits out"
        )
    if ADAPTERS[kind].moves_base:
        still = ", ".join(name for name, entry in ADAPTERS.items() if not entry.moves_base)
        raise RequestError(
            f"--engine.trunk-bits {bits} packs the weights of the base, and --adapter.kind {kind} moves numbers of the base; use "
            f"{still}, or leave the bits out"
        )


def check_views(options: PretrainOptions, backbone: Backbone) -> None:
    """Check that the backbone's patches divide the views. Raises RequestError that names a size that they do."""
    patch = backbone.patch_size
    sizes = {"global_size_px": options.views.global_size_px}
    if options.views.num_local:
        sizes["local_size_px"] = options.views.local_size_px
    for name, size in sizes.items():
        if size % patch:
            below, above = size // patch * patch, (size // patch + 1) * patch
            raise RequestError(
                f"views.{name} = {size} is not a multiple of the backbone's patch size {patch}; use "
                + (f"{below} or {above}" if below else str(above))
            )
