# SPDX-License-Identifier: Apache-2.0
"""Export job: from a request to a folder that is whole, checked and described, or not there."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import ValidationError
from safetensors import SafetensorError

from rekindle.adapters.attach import is_adapted
from rekindle.adapters.options import AdapterOptions
from rekindle.adapters.peft_folder import is_peft_folder, read_folder
from rekindle.adapters.saved import load_backbone, model_hash, read_description
from rekindle.core.errors import RekindleError, RequestError
from rekindle.core.files import storage_error
from rekindle.core.tables import import_named
from rekindle.core.text_files import read_yaml
from rekindle.engine.watcher import LoggingWatcher, Watcher
from rekindle.exporting import FORMATS
from rekindle.exporting.card import model_card
from rekindle.exporting.options import ExportOptions
from rekindle.exporting.parity import Parity
from rekindle.exporting.plain import Obstacle
from rekindle.exporting.source import Exported, Source
from rekindle.measuring.comparison import Comparison, Row
from rekindle.networks.checkpoints.folders import is_model_folder
from rekindle.networks.position import PositionMode

CARD = "README.md"
FILE_ENDINGS = (".onnx", ".pth", ".pt", ".safetensors", ".bin", ".zip")


@dataclass(frozen=True)
class ExportResult:
    """What an export left behind.

    Attributes:
        out: the folder; `os.fspath` gives it.
        format: its format.
        parity: how far it is from the original.
        files: names in the folder, sorted.

    """

    out: Path
    format: str
    parity: Parity
    files: tuple[str, ...]

    def __fspath__(self) -> str:
        return str(self.out)


def run_export(options: ExportOptions, *, watcher: Watcher | None = None) -> ExportResult:
    """Load, write beside `out`, check, describe, and only then put the folder in place.

    Raises: RequestError for a wrong request or a model that the format cannot hold; RekindleError if the check fails.
    """
    watcher = watcher or LoggingWatcher()
    for name, value in {"MODEL": options.model, "--format": options.format, "--out": options.out}.items():
        if not value:
            known = f" ({', '.join(FORMATS)})" if name == "--format" else ""
            raise RequestError(f"{name} is missing{known}; `rekindle export --help` says what it may be")
    out = _checked_out(options.out)
    write = import_named(FORMATS, "format", options.format)
    source = _load(options, watcher)
    rows = [] if options.verdict is None else read_verdict(Path(options.verdict), source)
    partial = out.with_name(f".{out.name}.partial-{os.getpid()}")
    try:
        partial.mkdir(parents=True)
        watcher.message(f"writing {options.format} and checking it against the original")
        exported: Exported = write(source, partial)
        (partial / CARD).write_text(model_card(source, exported, rows), encoding="utf-8")
        files = tuple(sorted(str(p.relative_to(partial)) for p in partial.rglob("*") if p.is_file()))
        if out.exists():
            out.rmdir()  # empty, as was checked; a file put there meanwhile makes this fail
        partial.rename(out)
    except Obstacle as obstacle:
        others = ", ".join(n for n, format in FORMATS.items() if format.holds_all and n != options.format)
        raise RequestError(
            f"--format {options.format} cannot hold this model: {obstacle}; export it with --format {others}"
        ) from obstacle
    except OSError as error:
        raise storage_error(out, error) from error
    except SafetensorError as error:  # its own words for a full disk
        raise RekindleError(f"{out} could not be written ({error}); is the disk full? Nothing was kept") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return ExportResult(out, options.format, exported.parity, files)


def read_verdict(path: Path, source: Source) -> Sequence[Row]:
    """Return the rows of a comparison that are about this very model.

    Raises: RequestError if there is no comparison, or it is not of this model (by content hash).
    """
    file = path / "comparison.json" if path.is_dir() else path
    try:
        comparison = Comparison.model_validate_json(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise RequestError(
            f"--verdict {file}: {error.strerror or error}; give comparison.json of a compare run"
        ) from error
    except (ValidationError, UnicodeDecodeError) as error:
        raise RequestError(f"--verdict {file} is not the comparison.json of `rekindle compare`") from error
    names = {result.model for result in comparison.results if result.model_hash == source.model_hash}
    rows = [row for row in comparison.rows if names & {row.model, *row.trainings}]
    if not rows:
        raise RequestError(
            f"--verdict {file} compares {', '.join(sorted({row.model for row in comparison.rows})) or 'no models'}, none "
            f"of which has the tensors of {source.name} (hash {source.model_hash[:12]}); give a comparison of this model"
        )
    return rows


def _checked_out(name: str) -> Path:
    out = Path(os.path.abspath(name))
    if out.suffix in FILE_ENDINGS:
        raise RequestError(
            f"--out {name}: an export is a folder (weights and model card); give a name without {out.suffix}"
        )
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise RequestError(f"--out {name} is not an empty folder; choose another one, or clear it")
    if out.is_symlink():
        raise RequestError(f"--out {name} is a link; give the folder that it points to")
    return out


def _load(options: ExportOptions, watcher: Watcher) -> Source:
    folder = Path(options.model)
    description: dict[str, Any] = {}
    config: dict[str, Any] = {}
    if is_peft_folder(folder):
        description = {"train": "adapters", "adapter": read_folder(folder).options.model_dump(mode="json")}
    elif folder.is_dir() and not is_model_folder(folder):
        description, config = read_description(folder), _read_config(folder / "config.yaml")
        _require_known_rule(options.model, description["identity"]["arch"]["pos_interp"])
    backbone, match = load_backbone(options.model, options.network_options(), base=options.base)
    _require_known_rule(options.model, backbone.pos_interp)
    watcher.message(match)
    if is_peft_folder(folder):
        identity = backbone.identity
        description["base"] = {"name": identity.name, "sha256": identity.sha256, "licence": identity.licence}
    adapter = description.get("adapter") if is_adapted(backbone) else None
    return Source(
        name=options.model,
        model_hash=model_hash(backbone),
        backbone=backbone.float().eval().requires_grad_(False),
        adapter=None if adapter is None else AdapterOptions.model_validate(adapter),
        description=description,
        config=config,
    )


def _require_known_rule(name: str, rule: object) -> None:
    """Refuse what a description may say where only a few words are allowed: the model card repeats it."""
    known = get_args(PositionMode)
    if rule not in known:
        raise RequestError(f"{name}: its description names an unknown pos_interp; known are {', '.join(known)}")


def _read_config(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        content = read_yaml(path)
    except (yaml.YAMLError, UnicodeDecodeError, OSError) as error:
        raise RequestError(f"{path} cannot be read ({str(error).splitlines()[0]}); restore it from a copy") from error
    return content if isinstance(content, dict) else {}
