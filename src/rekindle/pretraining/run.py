# SPDX-License-Identifier: Apache-2.0
"""Pre-training run: options in, a trained model and its folder out."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from rekindle.adapters.attach import Attachment, attach
from rekindle.adapters.saved import Lineage, load_backbone, model_hash, read_description
from rekindle.core.distributed import rank
from rekindle.core.errors import RequestError
from rekindle.core.fabric import Fabric
from rekindle.core.progress import Progress
from rekindle.core.rng import seeded_default
from rekindle.core.tables import import_named
from rekindle.data.images import ImageSource, chosen_images
from rekindle.data.store import store_budget
from rekindle.engine.checkpoints import TrainingPlan
from rekindle.engine.loop import RunHooks, micro_batch_size, train
from rekindle.engine.metrics_log import read_curves
from rekindle.engine.probe import Probe
from rekindle.engine.run_folder import RunFolder
from rekindle.engine.watcher import LoggingWatcher, Watcher
from rekindle.methods import METHODS
from rekindle.methods.base import Method
from rekindle.networks.backbone import Backbone
from rekindle.networks.checkpoints.stored_head import load_stored_head
from rekindle.networks.compiling import compile_blocks
from rekindle.networks.packed_maps import pack_trunk
from rekindle.pretraining.feeding import Stream, micro_batches, on_device
from rekindle.pretraining.machine import Machine, machine_of, precision_line, with_precision
from rekindle.pretraining.options import PretrainOptions, Resolved
from rekindle.pretraining.pictures import RunPictures
from rekindle.pretraining.recipes import with_recipe, with_view_sizes
from rekindle.pretraining.records import logged, record_skipped_images, record_start
from rekindle.pretraining.requests import as_begun, check_request, check_views, required
from rekindle.pretraining.saving import ModelWriter
from rekindle.pretraining.steps import fitted_to_memory, plan_steps
from rekindle.pretraining.unseen import UNSEEN, UnseenLoss, unseen_images
from rekindle.views.batch import ViewBatch

if TYPE_CHECKING:
    from rekindle.pretraining.probes import ModelProbe


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
    folder = RunFolder(required("out", resolved.options.out))
    watcher = watcher or LoggingWatcher()
    prepared = prepare(
        as_begun(resolved, folder) if resume else resolved,
        watcher,
        before_loading=lambda: folder.refuse_unless_free(resume=resume, needed_bytes=0),
    )
    resolved, images, fabric, plan = prepared.resolved, prepared.images, prepared.fabric, prepared.plan
    options, backbone, method, attachment = resolved.options, prepared.backbone, prepared.method, prepared.attachment
    if rank() > 0:
        watcher = LoggingWatcher()  # one process speaks to the user
    else:
        folder.refuse_unless_free(resume=resume, needed_bytes=needed_bytes(method))
    head_steps = head_warmup_steps(options, plan, method, watcher)
    has_adapters = options.train == "adapters" or options.adapter.in_full_training

    lineage = Lineage(
        base=_lasting_name(options.backbone),
        base_hash=prepared.base_hash,
        base_licence=backbone.identity.licence,
        train=options.train,
        adapter=options.adapter if has_adapters else None,
        network=options.network,
        method=options.method,
        steps=0,
    )
    reload = None if options.engine.trunk_bits is None else partial(_adapted_base, options, prepared.base_hash)
    writer = ModelWriter(folder, method, attachment.trained, lineage, reload=reload)
    end = Progress(step=plan.steps, total=plan.steps, steps_per_epoch=plan.steps_per_epoch, seed=options.seed)
    probe = None
    if options.probe and rank() == 0:
        model_probe = _model_probe(prepared, end)
        writer = replace(writer, choosing=model_probe.choosing)
        probe = Probe(
            measure=lambda: model_probe.measure(method.exported()),
            save_best=writer.save_best,
            every=options.every,
            compared="" if writer.choosing is None else writer.choosing.identity,
        )
    with ExitStack() as stack:
        if rank() == 0:
            stack.enter_context(folder.locked())
            folder.write_text(folder.config, resolved.to_yaml())
            record_start(folder, resolved, fabric.device)
            if writer.choosing is not None:
                writer.choosing.write(folder.path)
            watcher = stack.enter_context(logged(folder, watcher))
        if options.engine.compile and (failure := compile_blocks(method, fabric.device)):
            watcher.message(failure)
        stream = prepared.stream(watcher)
        pictures = RunPictures(options, prepared.unseen or images, method, end, fabric.device, prepared.base)
        outcome = train(
            method,
            stream,
            plan,
            fabric=fabric,
            precision=prepared.machine.precision,
            optim=options.optim,
            engine=options.engine,
            folder=folder,
            watcher=watcher,
            resume=resume,
            max_skipped=int(options.data.max_unreadable_fraction * len(images)),
            hooks=RunHooks(
                record_skipped=lambda skipped: record_skipped_images(folder, images, skipped, options.data, watcher),
                image_name=images.name,
                probe=probe,
                draw=None if prepared.base is None else pictures.draw,
            ),
            head_steps=head_steps,
        )
        exported_hash = None
        writer.count_looks(probe)
        if outcome.is_finished and rank() == 0:
            folder.require_still_there()
            writer.leave(outcome.steps_done, probe, watcher, keep_best=options.probe_keep == "best")
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
        trained_parameters=count_trained(method),
        model_hash=exported_hash,
    )


@dataclass(frozen=True)
class Prepared:
    """A run before its first step.

    Attributes:
        resolved: with what the recipe chose.
        images: to learn from.
        machine: where and how it computes.
        fabric: launched.
        backbone: inside the method; base_hash, of what was loaded.
        method: on the CPU; attachment, what of the backbone trains.
        plan: how the run is cut into steps.
        budget: bytes of the image store.
        base: a copy of the backbone as it was, where pictures of the training want one.
        unseen: images that are not learnt from, if there are any.
    """

    resolved: Resolved
    images: ImageSource
    machine: Machine
    fabric: Fabric
    backbone: Backbone
    base_hash: str
    method: Method
    attachment: Attachment
    plan: TrainingPlan
    budget: int
    base: Backbone | None
    unseen: ImageSource | None

    def stream(self, watcher: Watcher) -> Stream[ViewBatch]:
        """Return this process's micro-batches as a function of start and plan."""
        options = self.resolved.options
        batches = micro_batches(options, self.machine, self.images, self.budget, self.fabric, watcher)
        return on_device(batches, options, self.backbone, self.fabric.device)


def prepare(resolved: Resolved, watcher: Watcher, *, before_loading: Callable[[], object] = lambda: None) -> Prepared:
    """Find images, choose what nobody set, load the backbone, build the method, cut the run into steps; write nothing.

    Args: before_loading, called when the request is checked and nothing is loaded.
    Raises: RequestError for a request that cannot be met.
    """
    check_request(resolved.options)
    images = chosen_images(resolved.options.images, resolved.options.data)
    unseen = unseen_images(resolved.options, images)
    part = f" ({resolved.options.data.fraction:.4g} of them)" if resolved.options.data.fraction < 1 else ""
    watcher.message(f"{len(images)} images in {resolved.options.images}{part}")
    resolved = with_recipe(resolved, len(images))
    options = resolved.options
    if resolved.reasons:
        chosen = ", ".join(name for name, source in resolved.sources.items() if source == "recipe")
        watcher.message(f"chosen for {len(images)} images (`rekindle config` tells why): {chosen}")
        if resolved.sources["views.global_size_px"] == "recipe" and options.recipe == "auto":
            watcher.message(
                "recipe: short, because a CPU computes; --recipe full has large views, and takes hours on a CPU"
            )
    before_loading()
    budget = store_budget(options.data.store_gib)
    machine = machine_of(options)
    resolved = with_precision(resolved, machine)
    plan = plan_steps(options, len(images), machine)
    fabric = _fabric(options, machine)
    fabric.launch()
    if rank() > 0:
        watcher = LoggingWatcher()
    backbone, match = load_backbone(
        options.backbone, options.network, init=options.init, seed=options.seed, drop_path=options.network.drop_path
    )
    watcher.message(match)
    base_hash = model_hash(backbone)
    resolved = with_view_sizes(resolved, backbone.patch_size)
    options = resolved.options
    followed = [name for name, source in resolved.sources.items() if source == "backbone"]
    for name in followed:
        value = getattr(options.views, name.removeprefix("views."))
        watcher.message(f"{name} = {value}: {resolved.reasons[name]}")
    check_views(options, backbone)
    base = copy.deepcopy(backbone) if options.engine.pictures_every > 0 and rank() == 0 else None
    method, attachment = build_method(resolved, backbone, machine)
    plan = fitted_to_memory(plan, options, machine, backbone, fabric.device)
    watcher.message(_describe(options, plan, method, attachment, len(images)))
    watcher.message(precision_line(machine))
    return Prepared(
        resolved, images, machine, fabric, backbone, base_hash, method, attachment, plan, budget, base, unseen
    )


def _adapted_base(options: PretrainOptions, base_hash: str) -> Backbone:
    """Load the base again, with its own weights and fresh adapters. Raises RequestError if it is another one now."""
    backbone, _ = load_backbone(options.backbone, options.network, drop_path=options.network.drop_path)
    if model_hash(backbone) != base_hash:
        raise RequestError(
            f"{options.backbone} has changed since the run began; put the file back and --resume the run"
        )
    attach(backbone, options.adapter, train=options.train)
    return backbone


def _model_probe(prepared: Prepared, end: Progress) -> ModelProbe:
    """Return what measures the model now and then."""
    from rekindle.pretraining.probes import ModelProbe  # loads what measures, which a run without probes need not

    options, method, device = prepared.resolved.options, prepared.method, prepared.fabric.device
    unseen = None
    if UNSEEN in options.probe:
        assert prepared.unseen is not None
        unseen = UnseenLoss(options, prepared.unseen, method, end, device)
    return ModelProbe(options, prepared.images, method.exported(), device, bf16=prepared.machine.is_bf16, unseen=unseen)


def build_method(resolved: Resolved, backbone: Backbone, machine: Machine) -> tuple[Method, Attachment]:
    """Put adapters in, decide what trains, and build the method around the backbone. Raises RequestError."""
    options = resolved.options
    backbone.recompute_blocks = options.engine.recompute_blocks
    if machine.is_bf16 and not machine.is_gpu:
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
        if options.engine.trunk_bits is not None:
            pack_trunk(backbone, options.engine.trunk_bits)
        return method_class(config, backbone), attachment


def head_warmup_steps(options: PretrainOptions, plan: TrainingPlan, method: Method, watcher: Watcher) -> int:
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
    fresh = count_trained(method) - sum(p.numel() for p in method.backbone_parameters())
    steps = round(options.optim.head_warmup * plan.steps)
    if fresh and steps:
        watcher.message(
            f"heads first: the method's {fresh / 1e6:.2f} M numbers beside the backbone are new, so the first {steps} steps move "
            "them alone (--optim.head-warmup)"
        )
    return steps if fresh else 0


def _write_pictures(folder: RunFolder, pictures: RunPictures, watcher: Watcher) -> None:
    """Draw what was learnt, as far as the method has pictures of it, and the curves of the log."""
    from rekindle.drawing.pictures import write_curves  # loads matplotlib, which nobody needs before the end

    pictures.write_own(folder.pictures)
    steps, terms = read_curves(folder.metrics)
    if len(steps) > 1:
        write_curves(folder.pictures / "curves.png", steps, terms, smooth=max(1, len(steps) // 20))
    watcher.message(f"pictures in {folder.pictures}")


def _fabric(options: PretrainOptions, machine: Machine) -> Fabric:
    from lightning_fabric.strategies.ddp import DDPStrategy

    strategy: DDPStrategy | str = "auto"
    if options.devices > 1 or int(os.environ.get("WORLD_SIZE", "1")) > 1:
        strategy = DDPStrategy(broadcast_buffers=False, process_group_backend="nccl" if machine.is_gpu else "gloo")
    return Fabric(
        accelerator="cuda" if machine.is_gpu else "cpu",
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
        f"{plan.steps} steps of {plan.batch_size} images{note}, {micro_batch_size(plan)} at a time, "
        f"{plan.steps_per_epoch} steps an epoch"
    )


def count_trained(method: Method) -> int:
    """Numbers that training moves: adapters, heads, ..."""
    return sum(p.numel() for p in method.parameters() if p.requires_grad)


def needed_bytes(method: Method) -> int:
    """Room for three checkpoints (the last, the one before it and the one being written) and the model."""
    trained = 4 * count_trained(method)
    return 3 * (4 * trained) + 2 * trained + (16 << 20)


def _lasting_name(name: str) -> str:
    """A MODEL that means the same from any working directory."""
    path = Path(name).expanduser()
    return str(path.resolve()) if path.exists() else name
