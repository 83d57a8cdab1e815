# SPDX-License-Identifier: Apache-2.0
"""Settings beside the papers': what `recipe=paper` and `init=random` claim, where it stands, and where ours is another value."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from rekindle.core.option_trees import lay_over, leaves
from rekindle.core.tables import import_named
from rekindle.methods import METHODS
from rekindle.methods.base import Method
from rekindle.methods.papers.glare import CONTINUAL
from rekindle.methods.shared.stated import Stated
from rekindle.pretraining.options import NOT_OURS, USUAL_EPOCHS, Resolved, resolve

Verdict = Literal["same", "differs", "not stated"]
CLAIMS: Mapping[str, Mapping[str, object]] = {
    "recipe=paper": {"recipe": "paper", "init": "pretrained"},
    "init=random": {"init": "random", "train": "all"},
}
"""A claim to follow a paper -> the options that make it."""
NETWORK = ("network.drop_path", "network.positions", "network.pos_interp")
GROUPS = ("train", "epochs", "batch_size", "views", *NETWORK, "adapter", "optim")
"""Options that a paper's training is made of; the others are the machine's, or say what is learnt from."""
OURS = frozenset({"views.executor"})
"""Options among these that change no number."""


@dataclass(frozen=True)
class Setting:
    """An option in force beside what a paper states.

    Attributes:
        name: dotted.
        value: in force.
        stated: what the paper has, None where it is silent and nobody's value was taken.
        verdict: how the two compare.
        why: ours is another value; empty for one that nothing explains.
    """

    name: str
    value: object
    stated: Stated | None
    verdict: Verdict
    why: str = ""

    @property
    def is_unexplained(self) -> bool:
        """Whether the option claims a paper's value, has another one, and nothing says why."""
        return self.verdict == "differs" and not self.why

    def told(self) -> dict[str, object]:
        """For --json."""
        found: dict[str, object] = {"value": self.value, "verdict": self.verdict}
        if self.stated is not None:
            found |= {"stated": self.stated.value, "place": self.stated.place}
        return found | ({"why": self.why} if self.why else {})


def explain(file: Mapping[str, Any], asked: Mapping[str, Any]) -> dict[str, list[Setting]]:
    """Claim -> the settings of a run that makes it, with what was asked for besides.

    Args: as `resolve`; a recipe or start among them gives way to the claim's. Raises: RequestError, as `resolve`.
    """
    return {claim: list(_settings(file, asked, claim)) for claim in CLAIMS}


def _settings(file: Mapping[str, Any], asked: Mapping[str, Any], claim: str) -> Iterator[Setting]:
    wanted: dict[str, Any] = {}
    for layer in (asked, CLAIMS[claim]):
        lay_over(wanted, layer)
    resolved = resolve(file, wanted)
    method = import_named(METHODS, "method", resolved.options.method)
    tree = resolved.options.model_dump(mode="json")
    if tree["epochs"] is None and tree["steps"] is None:
        tree["epochs"] = USUAL_EPOCHS
    for name in leaves(tree):
        if _concerns(name, resolved, claim):
            value: Any = tree
            for part in name.split("."):
                value = value[part]
            yield _compared(name, value, _stated(name, method, resolved.options.method, claim), resolved)


def _concerns(name: str, resolved: Resolved, claim: str) -> bool:
    group = name.split(".")[0]
    if group == "adapter" and resolved.options.train != "adapters":
        return False
    if name == "train" and claim == "init=random":
        return False  # part of the claim
    return (name in GROUPS or group in GROUPS or group == resolved.options.method) and name not in OURS


def _stated(name: str, method: type[Method], method_name: str, claim: str) -> Stated | None:
    """What the paper that a claim names has; GLARE's, for a continual run's shared settings."""
    if name in NOT_OURS:
        return Stated(NOT_OURS[name], "no paper: ours, and off where one is followed")
    own = method.STATED.get(name)
    if claim == "init=random" or method.NEEDS.get("recipe") == "paper":
        return own
    if name in method.NEEDS or (name.startswith(f"{method_name}.") and name not in CONTINUAL):
        return own
    return CONTINUAL.get(name)


def _compared(name: str, value: object, stated: Stated | None, resolved: Resolved) -> Setting:
    if stated is None:
        return Setting(name, value, None, "not stated")
    theirs = list(stated.value) if isinstance(stated.value, tuple) else stated.value
    is_same = value == theirs and isinstance(value, bool) == isinstance(theirs, bool)
    if not is_same:
        is_asked = resolved.sources[name] in ("asked", "file")
        return Setting(name, value, stated, "differs", "asked for" if is_asked else stated.differs)
    return Setting(name, value, stated, "not stated" if stated.is_lent else "same")
