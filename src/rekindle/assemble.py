# SPDX-License-Identifier: Apache-2.0
"""The one place where names become objects: options in, a training run out."""

from __future__ import annotations

import copy
import json
import logging
import os
import shlex
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from rekindle.adapters.attach import Attachment, attach
from rekindle.adapters.saved import Lineage, copy_model, load_backbone, model_hash, read_description, save_model
from rekindle.config import PretrainOptions, Resolved, import_named, read_run_file, resolve
from rekindle.core.distributed import rank
from rekindle.core.errors import RequestError
from rekindle.core.fabric import Fabric
from rekindle.core.files import printable
from rekindle.core.progress import Progress
from rekindle.core.rng import seeded_default
from rekindle.data.decoding import RULES
from rekindle.data.images import ImageSource, chosen_images
from rekindle.data.options import DataOptions
from rekindle.data.store import store_budget
from rekindle.engine.checkpoints import TrainingPlan
from rekindle.engine.loop import share_size, train
from rekindle.engine.metrics_log import read_curves
from rekindle.engine.probe import Probe
from rekindle.engine.run_folder import RunFolder
from rekindle.engine.session import session_record
from rekindle.engine.watcher import LOGGER, LoggingWatcher, StepReport, Watcher
from rekindle.feeding import on_device, shares_stream
from rekindle.methods import METHODS
from rekindle.methods.base import Method
from rekindle.networks.backbone import Backbone
from rekindle.networks.compiling import compile_blocks
from rekindle.networks.stored_head import load_stored_head
from rekindle.planning import compute_precision, on_gpu, plan_steps
from rekindle.probing import ModelProbe, check_probes
from rekindle.recipes import with_recipe
from rekindle.run_pictures import RunPictures

WATCHING = ("probe", "every", "probe_data", "probe_images")
FREE_TO_CHANGE = (
    "out",
    "devices",
    "data",
    "engine",
    *WATCHING,
)  # when a run goes on: its numbers do not depend on them


@dataclass(frozen=True)
class PretrainResult:
    """What `pretrain` leaves behind.

    Attributes:
        run: the run folder.
        is_finished: False if the run was asked to stop early; continue it with resume.
        steps: optimizer steps done.
        images: images in the source.
        skipped: images that could not be read.
        seconds: time of this call's training.
        trained_parameters: numbers that training moves (adapters, head, ...).
        model_hash: content hash of the exported model, None if the run has not finished.
    """

    run: Path
    is_finished: bool
    steps: int
    images: int
    skipped: int
    seconds: float
    trained_parameters: int
    model_hash: str | None

    def __fspath__(self) -> str:
        return str(self.run)


def pretrain(resolved: Resolved, *, resume: bool = False, watcher: Watcher | None = None) -> PretrainResult:
    """Run self-supervised pre-training as the options say.

    Raises: RequestError for a request that cannot be met, before anything is written; RekindleError if the run fails.
    """
    folder = RunFolder(_required("out", resolved.options.out))
    watcher = watcher or LoggingWatcher()
    check_request(resolved.options)
    images = chosen_images(resolved.options.images, resolved.options.data)
    share = f" ({resolved.options.data.fraction:.4g} of them)" if resolved.options.data.fraction < 1 else ""
    watcher.message(f"{len(images)} images in {resolved.options.images}{share}")
    resolved = with_recipe(resolved, len(images))
    options = resolved.options
    if resolved.reasons:
        chosen = ", ".join(name for name, source in resolved.sources.items() if source == "recipe")
        watcher.message(f"chosen for {len(images)} images (`rekindle config` tells why): {chosen}")
    folder.refuse_unless_free(resume=resume, needed_bytes=0)
    budget = store_budget(options.data.store_gib)
    plan_steps(options, len(images))  # refuses what cannot be before anything is loaded
    fabric = _fabric(options)
    fabric.launch()
    if rank() > 0:
        watcher = LoggingWatcher()  # one process speaks to the user
    backbone, match = load_backbone(
        options.backbone, options.network, init=options.init, seed=options.seed, drop_path=options.network.drop_path
    )
    watcher.message(match)
    base_hash, base_licence = model_hash(backbone), backbone.identity.licence
    check_views(options, backbone)
    live = options.engine.pictures_every > 0 and rank() == 0
    base = copy.deepcopy(backbone) if live else None
    method, attachment = build_method(resolved, backbone)
    plan = plan_steps(options, len(images), backbone if fabric.world_size == 1 else None)
    if rank() == 0:
        folder.refuse_unless_free(resume=resume, needed_bytes=_needed_bytes(method))
    watcher.message(_describe(options, plan, method, attachment, len(images)))
    head_steps = _head_steps(options, plan, method, watcher)
    has_adapters = options.train == "adapters" or options.adapter.in_full_training

    def save(path: Path, steps: int) -> None:
        """Write the model as it is."""
        lineage = Lineage(
            base=_lasting_name(options.backbone),
            base_hash=base_hash,
            base_licence=base_licence,
            train=options.train,
            adapter=options.adapter if has_adapters else None,
            network=options.network,
            method=options.method,
            steps=steps,
        )
        save_model(path, method.exported(), attachment.trained, lineage)

    probe = None
    if options.probe and rank() == 0:
        bf16 = compute_precision(options) == "bf16"
        model_probe = ModelProbe(options, images, method.exported(), fabric.device, bf16=bf16)
        probe = Probe(
            measure=lambda: model_probe.measure(method.exported()),
            save_best=lambda steps: save(folder.best, steps),
            every=options.every,
        )
    with ExitStack() as stack:
        if rank() == 0:
            stack.enter_context(folder.locked())
            folder.write_text(folder.config, resolved.to_yaml())
            _record(folder, resolved, fabric.device)
            watcher = stack.enter_context(_logged(folder, watcher))
        if options.engine.compile and (failure := compile_blocks(method, fabric.device)):
            watcher.message(failure)
        stream = on_device(shares_stream(options, images, budget, fabric, watcher), options, backbone, fabric.device)
        end = Progress(step=plan.steps, total=plan.steps, steps_per_epoch=plan.steps_per_epoch, seed=options.seed)
        pictures = RunPictures(options, images, method, end, fabric.device, base)
        outcome = train(
            method,
            stream,
            plan,
            fabric=fabric,
            precision=compute_precision(options),
            optim=options.optim,
            engine=options.engine,
            folder=folder,
            watcher=watcher,
            resume=resume,
            max_skipped=int(options.data.max_unreadable_fraction * len(images)),
            record_skipped=lambda skipped: _record_skipped(folder, images, skipped, options.data, watcher),
            image_name=images.name,
            head_steps=head_steps,
            probe=probe,
            draw=pictures.draw if live else None,
        )
        exported_hash = None
        if outcome.is_finished and rank() == 0:
            folder.require_still_there()
            standing = None if probe is None or options.probe_keep == "last" else probe.standing
            if standing is not None and standing.has_fallen:
                save(folder.last, outcome.steps_done)
                copy_model(folder.best, folder.path)
                watcher.message(
                    f"the probe was better at step {standing.step} ({standing.headline:.4g}) than at the end "
                    f"({standing.last:.4g}): the run leaves the model of step {standing.step}, and that of the last step in "
                    f"{folder.last} (--probe-keep last turns it round)"
                )
            else:
                save(folder.path, outcome.steps_done)
            exported_hash = str(read_description(folder.path)["model_hash"])
            watcher.message(f"model written to {folder.weights}")
            _write_pictures(folder, pictures, watcher)
    return PretrainResult(
        run=folder.path,
        is_finished=outcome.is_finished,
        steps=outcome.steps_done,
        images=len(images),
        skipped=len(outcome.skipped),
        seconds=outcome.seconds,
        trained_parameters=_count_trained(method),
        model_hash=exported_hash,
    )


def build_method(resolved: Resolved, backbone: Backbone) -> tuple[Method, Attachment]:
    """Put adapters in, decide what trains, and build the method around the backbone. Raises RequestError."""
    options = resolved.options
    backbone.recompute_blocks = options.engine.recompute_blocks
    if compute_precision(options) == "bf16" and not on_gpu(options):
        backbone.attend_plainly()
    method_class = import_named(METHODS, "method", options.method)
    side = options.views.global_size_px // backbone.patch_size
    config = method_class.fitted(resolved.method_options(), (side, side))
    small = options.views.local_size_px // backbone.patch_size if options.views.num_local else None
    method_class.check_grids(config, side, small)
    with seeded_default(options.seed, "init"):
        if method_class.learns_beside(config):
            if options.train != "all" or options.adapter.in_full_training:
                raise RequestError(
                    f"{options.method} trains a new network, and adapters or norms alone would leave it as it was drawn; use "
                    "--train all without --adapter.in-full-training"
                )
            method: Method = method_class(config, backbone)
            names = tuple(name for name, _ in method.exported().named_parameters())
            return method, Attachment(trained=names, frozen=())
        attachment = attach(backbone, options.adapter, train=options.train)
        return method_class(config, backbone), attachment


def _write_pictures(folder: RunFolder, pictures: RunPictures, watcher: Watcher) -> None:
    """Draw what was learnt, as far as the method has pictures of it, and the curves of the log."""
    from rekindle.reporting.pictures import write_curves  # loads matplotlib, which nobody needs before the end

    pictures.write_own(folder.pictures)
    steps, terms = read_curves(folder.metrics)
    if len(steps) > 1:
        write_curves(folder.pictures / "curves.png", steps, terms, smooth=max(1, len(steps) // 20))
    watcher.message(f"pictures in {folder.pictures}")


def _head_steps(options: PretrainOptions, plan: TrainingPlan, method: Method, watcher: Watcher) -> int:
    """Load the head that the checkpoint brings, if it does; without one, how many steps move fresh heads alone."""
    if options.init == "random":
        return 0
    heads = method.heads()
    if heads is not None:
        is_loaded, message = load_stored_head(options.backbone, *heads)
        if message is not None:
            watcher.message(message)
        if is_loaded:
            return 0
    fresh = _count_trained(method) - sum(p.numel() for p in method.backbone_parameters())
    steps = round(options.optim.head_warmup * plan.steps)
    if fresh and steps:
        watcher.message(
            f"heads first: the method's {fresh / 1e6:.2f} M numbers beside the backbone are new, so the first {steps} steps move "
            "them alone (--optim.head-warmup)"
        )
    return steps if fresh else 0


def resolve_resumed(out: str, asked: dict[str, object]) -> Resolved:
    """Options of the run in `out`, as it was started. Raises RequestError if something else is asked for now."""
    folder = RunFolder(out)
    if not folder.holds_run:
        return resolve({}, asked)
    stored = resolve(read_run_file(folder.config), {}, file_name=str(folder.config))
    wanted = resolve(read_run_file(folder.config), asked, file_name=str(folder.config))
    before, now = (o.model_dump() | o.data.chosen for o in (stored.options, wanted.options))
    changed = [k for k in before if before[k] != now.get(k) and k not in FREE_TO_CHANGE]
    if changed:
        raise RequestError(
            f"--resume continues {out} as it was started, with {changed[0]} = {before[changed[0]]!r}, not "
            f"{now.get(changed[0])!r}; leave the option out, or start a new run in another folder"
        )
    return wanted


def _required(name: str, value: str) -> str:
    if not value:
        raise RequestError(f"--{name} is missing; `rekindle pretrain --help` says what it may be")
    return value


def check_request(options: PretrainOptions) -> None:
    """Check what needs neither images nor weights. Raises RequestError that names the option."""
    _required("images", options.images)
    _required("backbone", options.backbone)
    if options.init == "random" and options.train != "all":
        raise RequestError(f"--init random with --train {options.train} would freeze random weights; use --train all")
    check_probes(options)
    if options.accelerator == "gpu" and not torch.cuda.is_available():
        raise RequestError("--accelerator gpu: no GPU is visible to torch; use --accelerator cpu, or mend the driver")


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


def _fabric(options: PretrainOptions) -> Fabric:
    from lightning_fabric.strategies.ddp import DDPStrategy

    is_gpu = on_gpu(options)
    strategy: DDPStrategy | str = "auto"
    if options.devices > 1 or int(os.environ.get("WORLD_SIZE", "1")) > 1:
        strategy = DDPStrategy(broadcast_buffers=False, process_group_backend="nccl" if is_gpu else "gloo")
    return Fabric(
        accelerator="cuda" if is_gpu else "cpu",
        devices=options.devices,
        strategy=strategy,
        precision="32-true",  # bfloat16 is ours: engine.precision
    )


def _describe(
    options: PretrainOptions, plan: TrainingPlan, method: Method, attachment: Attachment, num_images: int
) -> str:
    moved = sum(p.numel() for n, p in method.named_parameters() if p.requires_grad)
    note = f" (asked for {options.batch_size})" if plan.batch_size != options.batch_size else ""
    return (
        f"{options.method}: {moved / 1e6:.2f} M numbers train ({options.train}, {len(attachment.trained)} backbone tensors), "
        f"{plan.steps} steps of {plan.batch_size} images{note}, {share_size(plan)} at a time, "
        f"{plan.steps_per_epoch} steps an epoch"
    )


def _count_trained(method: Method) -> int:
    return sum(p.numel() for p in method.parameters() if p.requires_grad)


def _needed_bytes(method: Method) -> int:
    """Room for two checkpoints (the old one and the one being written) and the model."""
    trained = 4 * _count_trained(method)
    return 2 * (4 * trained) + 2 * trained + (16 << 20)


def _lasting_name(name: str) -> str:
    """A MODEL that means the same from any working directory."""
    path = Path(name).expanduser()
    return str(path.resolve()) if path.exists() else name


def _record(folder: RunFolder, resolved: Resolved, device: torch.device) -> None:
    """Write what set each option (of the first start), and add where this start runs."""
    if not folder.sources.exists():
        told = {"sources": resolved.sources, "reasons": resolved.reasons}
        folder.write_text(folder.sources, json.dumps(told, indent=1) + "\n")
    with folder.sessions.open("a", encoding="utf-8") as stream:
        stream.write(json.dumps(session_record(device) | {"decoding": RULES}) + "\n")


def _record_skipped(
    folder: RunFolder, images: ImageSource, skipped: frozenset[int], options: DataOptions, watcher: Watcher
) -> None:
    """Add to the list of images that could not be read: a line each, its name, a tab, and why."""
    before = folder.skipped.read_text(encoding="utf-8").splitlines() if folder.skipped.exists() else []
    lines = dict(line.split("\t", 1) for line in before)
    for index in skipped:
        name = printable(images.name(index))
        if name not in lines:
            lines[name] = printable(images.why_unreadable(index, options))
    if lines:
        folder.write_text(folder.skipped, "".join(f"{name}\t{reason}\n" for name, reason in sorted(lines.items())))
        watcher.message(
            f"{len(lines)} of {len(images)} images could not be read and were skipped; see {folder.skipped}"
        )


class _Tee:
    """Passes news on, and keeps messages in the run's log."""

    def __init__(self, watcher: Watcher, handler: logging.Handler) -> None:
        self._watcher, self._handler = watcher, handler

    def message(self, text: str) -> None:
        self._handler.emit(logging.makeLogRecord({"msg": text, "levelname": "INFO", "name": LOGGER.name}))
        self._watcher.message(text)

    def step(self, report: StepReport) -> None:
        self._watcher.step(report)

    def close(self) -> None:
        self._watcher.close()


@contextmanager
def _logged(folder: RunFolder, watcher: Watcher) -> Iterator[Watcher]:
    handler = logging.FileHandler(folder.log, encoding="utf-8", errors="backslashreplace")
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
    tee = _Tee(watcher, handler)
    handler.emit(logging.makeLogRecord({"msg": f"command: {shlex.join(sys.argv)}", "name": LOGGER.name}))
    try:
        yield tee
    except Exception as error:
        handler.emit(logging.makeLogRecord({"msg": f"failed: {error}", "name": LOGGER.name}))
        raise
    finally:
        handler.close()
