# SPDX-License-Identifier: Apache-2.0
"""The models that a run leaves: the last step, the best one that a probe found, and which of them the run is."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from rekindle.adapters.saved import Lineage, copy_model, read_description, save_model
from rekindle.core.files import write_atomically
from rekindle.engine.probe import Probe
from rekindle.engine.run_folder import RunFolder
from rekindle.engine.watcher import Watcher
from rekindle.methods.base import Method
from rekindle.networks.backbone import Backbone

if TYPE_CHECKING:
    from rekindle.measuring.choosing import Choosing


@dataclass(frozen=True)
class ModelWriter:
    """Writes models of a run, each with what chose it.

    Attributes:
        folder: of the run.
        method: whose exported backbone is written.
        trained: names of the tensors that training moves.
        lineage: what every model says; its steps are replaced.
        choosing: the labelled items that choose a step; None where no protocol is probed.
        reload: gives the base with its own weights and fresh adapters, where the one that trains is packed.
    """

    folder: RunFolder
    method: Method
    trained: Sequence[str]
    lineage: Lineage
    choosing: Choosing | None = None
    reload: Callable[[], Backbone] | None = None

    def save(self, path: Path, steps: int, *, looks: int = 0) -> None:
        """Write the model as it is. Args: looks, of how many it is the best; 0 for a step that nothing chose."""
        lineage = replace(self.lineage, steps=steps)
        if self.choosing is not None and looks:
            self.choosing.write(path)
            lineage = replace(lineage, chosen=self.choosing.record(steps, looks).model_dump(mode="json"))
        save_model(path, self._unpacked(self.method.exported()), tuple(self.trained), lineage)

    def _unpacked(self, backbone: Backbone) -> Backbone:
        if self.reload is None:
            return backbone
        whole, state = self.reload(), backbone.state_dict()
        whole.load_state_dict({name: state[name] for name in self.trained}, strict=False)
        return whole

    def save_best(self, steps: int, looks: int) -> None:
        """Write the model of a step that a probe found better than all before."""
        self.save(self.folder.best, steps, looks=looks)

    def count_looks(self, probe: Probe | None) -> None:
        """Have the best model say how many steps it is the best of: the later ones did not change it, but it won over them."""
        if probe is None or probe.standing is None or self.choosing is None:
            return
        description = read_description(self.folder.best)
        record = self.choosing.record(probe.standing.step, probe.looks).model_dump(mode="json")
        text = json.dumps(description | {"chosen": record}, indent=2) + "\n"
        write_atomically(self.folder.best / "model.json", lambda stream: stream.write(text.encode()))

    def leave(self, steps: int, probe: Probe | None, watcher: Watcher, *, keep_best: bool) -> None:
        """Write the model of a run that has come to its end.

        The best step is left where it is better than the last one, and where the last one is the best that was chosen too: had it
        been worse, another step would stand there. Args: steps, done; keep_best, else the last step whatever was measured.
        """
        standing = None if probe is None or not keep_best else probe.standing
        if standing is None or probe is None:
            self.save(self.folder.path, steps)
            return
        if standing.has_fallen:
            self.save(self.folder.last, steps)
            if self.choosing is not None:
                self.choosing.write(self.folder.path)
            copy_model(self.folder.best, self.folder.path)
            watcher.message(
                f"the probe was better at step {standing.step} ({standing.headline:.4g}) than at the end "
                f"({standing.last:.4g}): the run leaves the model of step {standing.step}, and that of the last step in "
                f"{self.folder.last} (--probe-keep last turns it round)"
            )
        else:
            self.save(self.folder.path, steps, looks=probe.looks)
        if self.choosing is not None:
            watcher.message(self.choosing.record(standing.step, probe.looks).told)
