# SPDX-License-Identifier: Apache-2.0
"""Checkpoints: everything that a run needs to go on as if it had never stopped, in one file."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from rekindle.core.distributed import world_size
from rekindle.core.errors import RekindleError, RequestError
from rekindle.core.files import DamagedFile, check_sealed, write_sealed
from rekindle.engine.optimizer import restore_optimizer
from rekindle.methods.base import Method

FORMAT = 2  # 2: the file ends in a checksum of itself
PREVIOUS = "previous.ckpt"


@dataclass(frozen=True)
class TrainingPlan:
    """How a run is cut into steps; a checkpoint only continues under the plan that it was made under.

    Attributes:
        steps: optimizer steps in all.
        steps_per_epoch: optimizer steps for one pass over the images.
        batch_size: images in one optimizer step, over all processes and micro-batches.
        num_slots: micro-batches that a step's batch is cut into, over all processes.
        seed: the run's seed.
    """

    steps: int
    steps_per_epoch: int
    batch_size: int
    num_slots: int
    seed: int


def save_checkpoint(
    path: Path, method: Method, optimizer: torch.optim.Optimizer, plan: TrainingPlan, step: int
) -> None:
    """Write method (without the frozen base), optimizer and position, atomically; the one before stays as previous.ckpt."""
    frozen = method.frozen_names()
    payload = {
        "format": FORMAT,
        "step": step,
        "plan": asdict(plan),
        "method": {name: tensor for name, tensor in method.state_dict().items() if name not in frozen},
        "optimizer": optimizer.state_dict(),
    }
    write_sealed(path, lambda stream: torch.save(payload, stream), previous=path.with_name(PREVIOUS))


def has_checkpoint(path: Path) -> bool:
    """Whether a run got as far as a checkpoint: this one, or the one before it."""
    return path.exists() or path.with_name(PREVIOUS).exists()


def load_checkpoint(
    path: Path, method: Method, optimizer: torch.optim.Optimizer, plan: TrainingPlan
) -> tuple[int, TrainingPlan]:
    """Restore a checkpoint in place; return the number of steps done, and the plan with the micro-batches that the run had.

    Raises RekindleError if the file is damaged, and names the one before it if that is whole; RequestError if it belongs to
    another plan or another model.
    """
    try:
        payload = _read(path)
    except DamagedFile as error:
        raise RekindleError(f"{error}. {_way_out(path)}") from error
    stored = payload["plan"]
    different = {k: (v, stored.get(k)) for k, v in asdict(plan).items() if stored.get(k) != v}
    if int(stored["num_slots"]) % world_size() == 0:
        different.pop("num_slots", None)  # micro-batches are the run's own: memory may have decided them
    if payload["format"] != FORMAT or different:
        name, (now, then) = next(iter(different.items()), ("format", (FORMAT, payload["format"])))
        raise RequestError(
            f"{path} was made with {name} = {then}, and this run has {name} = {now}; a run resumes only as it was started"
        )
    result = method.load_state_dict(payload["method"], strict=False)
    missing = sorted(set(result.missing_keys) - method.frozen_names())
    if missing or result.unexpected_keys:
        raise RequestError(
            f"{path} does not fit this model (first difference: {(missing + list(result.unexpected_keys))[0]}); "
            "resume with the backbone, method and adapter of the run"
        )
    restore_optimizer(optimizer, payload["optimizer"], method)
    return int(payload["step"]), replace(plan, num_slots=int(stored["num_slots"]))


def _read(path: Path) -> dict[str, Any]:
    """Read a checkpoint's content. Raises: DamagedFile."""
    if not path.exists():
        raise DamagedFile(path, "the file is not there")
    check_sealed(path)
    try:
        payload: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever a pickle that is not one can raise
        raise DamagedFile(path, f"{type(error).__name__} while reading it") from error
    return payload


def _way_out(path: Path) -> str:
    """What to do about a damaged checkpoint."""
    previous = path.with_name(PREVIOUS)
    try:
        step = int(_read(previous)["step"])
    except (RekindleError, LookupError, TypeError, ValueError):
        return "Restore a copy of it, or remove the checkpoints folder to start over"
    return f"The one before it, of step {step}, is whole. To go on from there: cp {previous} {path}, then --resume"
