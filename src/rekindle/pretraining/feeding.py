# SPDX-License-Identifier: Apache-2.0
"""Data loading: from images to batches of views on the device, with store, data workers, views and normalisation."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

import torch
from torch.utils.data import DataLoader, Dataset

from rekindle.core.distributed import rank, world_size
from rekindle.core.processor import usable_cores
from rekindle.data.images import ImageSource
from rekindle.data.store import GIB, StoredImages, shared_store, with_counts_told
from rekindle.data.training import ReadableImages, StepBatches, TrainingImages
from rekindle.engine.checkpoints import TrainingPlan
from rekindle.engine.watcher import Watcher
from rekindle.networks.backbone import Backbone
from rekindle.pretraining.machine import Machine
from rekindle.pretraining.options import PretrainOptions
from rekindle.views.batch import ViewBatch
from rekindle.views.multicrop import MultiCrop, view_maker
from rekindle.views.on_device import DeviceExecutor
from rekindle.views.plan import PlannedBatch

if TYPE_CHECKING:
    from rekindle.core.fabric import Fabric  # loads Lightning, which nobody needs to look at a few views

Batch = TypeVar("Batch")
Stream: TypeAlias = Callable[[int, TrainingPlan], Iterator[Batch]]
"""This process's micro-batches of every step from a start on, as the plan cuts them."""
CORES_PER_WORKER = 8
"""Cores that compute on a CPU for each that makes views: views take some 2 ms an image, a step of a ViT-S 400 ms of one core."""


def micro_batches(
    options: PretrainOptions, machine: Machine, images: ImageSource, budget: int, fabric: Fabric, watcher: Watcher
) -> Stream[ViewBatch | PlannedBatch]:
    """`_batches` as a function of start and plan; decoded images are kept in `budget` bytes unless that is switched off."""
    if options.data.store_gib == 0:  # the same in every process, as a budget that is measured need not be
        return lambda start, plan: _batches(options, machine, images, plan, start)
    store = shared_store(len(images), budget, lambda handle: fabric.broadcast(handle), rank(), world_size())
    watcher.message(
        f"image store: up to {budget / GIB:.1f} GiB of memory keep decoded images; what does not fit is decoded each time"
    )
    stored = StoredImages(images, store, options.data)

    def stream(start: int, plan: TrainingPlan) -> Iterator[ViewBatch | PlannedBatch]:
        per_epoch = plan.steps_per_epoch * plan.num_slots // world_size()
        return with_counts_told(_batches(options, machine, stored, plan, start), store, per_epoch, watcher.message)

    return stream


def _batches(
    options: PretrainOptions, machine: Machine, images: ReadableImages, plan: TrainingPlan, start: int
) -> Iterator[ViewBatch | PlannedBatch]:
    """This process's micro-batches of every step from `start` on; the same whatever the number of workers."""
    accumulate = plan.num_slots // world_size()
    transform = view_maker(options.views, on_gpu=machine.is_gpu)
    dataset: Dataset[Any] = TrainingImages(images, transform, seed=options.seed, options=options.data)
    sampler = StepBatches(
        len(images),
        plan.batch_size,
        num_slots=plan.num_slots,
        slots=[micro * world_size() + rank() for micro in range(accumulate)],
        steps=plan.steps,
        start_step=start,
        seed=options.seed,
    )
    workers = options.data.num_workers
    if workers is None:
        cores = usable_cores() // world_size()
        # Beside a GPU they have the cores; on a CPU the step has them, and makes of one image's views work for many.
        workers = max(1, min(16, cores - 1 if machine.is_gpu else cores // CORES_PER_WORKER))
    loader: DataLoader[ViewBatch | PlannedBatch] = DataLoader(
        dataset,
        batch_sampler=sampler,
        collate_fn=transform.collate,
        num_workers=workers,
        worker_init_fn=_leave_signals_to_the_parent,
        pin_memory=torch.cuda.is_available(),
    )
    return iter(loader)


def few_views(options: PretrainOptions, images: ImageSource, count: int) -> ViewBatch:
    """Views of a few images, as bytes; the same for a seed. Raises: RekindleError if none is readable."""
    crop = MultiCrop(options.views)
    dataset = TrainingImages(images, crop, seed=options.seed, options=options.data)
    chosen = [i * len(images) // count for i in range(count)]
    return crop.collate([dataset[number, index] for number, index in enumerate(chosen)])


def on_device(
    stream: Stream[ViewBatch | PlannedBatch], options: PretrainOptions, backbone: Backbone, device: torch.device
) -> Stream[ViewBatch]:
    """What the data workers deliver, as bytes, moved to the device, made into views if they are not, and normalised there."""
    make_views = DeviceExecutor(options.views)

    def moved(start: int, plan: TrainingPlan) -> Iterator[ViewBatch]:
        for batch in stream(start, plan):
            there = batch.to(device)
            views = make_views(there) if isinstance(there, PlannedBatch) else there
            yield views.normalised(backbone.mean, backbone.std)

    return moved


def _leave_signals_to_the_parent(worker: int) -> None:
    """A scheduler or Ctrl-C signals the whole process group; the parent ends its step and then lets the workers go."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
