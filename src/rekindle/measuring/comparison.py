# SPDX-License-Identifier: Apache-2.0
"""The file of a comparison, comparison.json: what every model was measured at, and the verdicts. Torch-free."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from pydantic import Field

from rekindle.core.options import Options
from rekindle.evaluation.scores.kinds import AnyScore
from rekindle.evaluation.scores.result import EvalResult
from rekindle.evaluation.verdict.judging import Verdict
from rekindle.evaluation.verdict.overall import Overall
from rekindle.evaluation.verdict.telling import items_of, remarks, told
from rekindle.measuring.choosing import LeftOut

ONE_TRAINING = {
    "run": "this run, not its recipe: one training says nothing of what other seeds give (runs spread by 0.3 to 1 point); use "
    "--pool with three runs, or --recipe",
    "recipe": "one training says nothing of the recipe: other seeds would differ (runs spread by 0.3 to 1 point); give three",
    "model": "this model, not the way it was trained: another training like it would differ",
}
"""What a verdict on one training does not cover, by its subject (docs/protocols.md, A recipe, not a run)."""


class Row(Options):
    """One model against the base under one protocol."""

    protocol: str
    """Name of the protocol."""
    metric: str
    """What is compared."""
    score: AnyScore
    """How it follows from single items, and which direction is good."""
    model: str
    """The model's name."""
    verdict: Verdict
    """The comparison."""
    subject: Literal["model", "run", "recipe"] = "model"
    """What the verdict is about: a model, a run of `rekindle pretrain`, or a recipe by its trainings."""
    trainings: list[str] = Field(default_factory=list)
    """Of a recipe, the runs that were pooled."""

    @property
    def told(self) -> str:
        """The verdict in words."""
        return told(self.verdict, self.metric, items_of(self.protocol))

    @property
    def remarks(self) -> list[str]:
        """What its word leaves open."""
        return remarks(self.verdict, self.metric, items_of(self.protocol))


class ModelOverall(Options):
    """One model against the base over all protocols."""

    model: str
    """The model's name."""
    overall: Overall
    """The verdict over all protocols, and what it rests on."""


class Comparison(Options):
    """Every model against the base under every protocol."""

    base: str
    """The base's name."""
    data: str
    """The data set's folder."""
    split: str
    """The split that was measured."""
    seeds: list[int]
    """Seeds of every model."""
    rows: list[Row]
    """One per protocol and model."""
    overall: list[ModelOverall] = Field(default_factory=list)
    """One per model, in the order of the request; none in files of before."""
    left_out: list[LeftOut] = Field(default_factory=list)
    """Items that had chosen the step of a model, by protocol; none in files of before."""
    results: list[EvalResult]
    """Every single evaluation."""
    notes: list[str] = Field(default_factory=list)
    """What to know beside the verdicts: images that seem to belong together, groups that both splits have, items that had chosen
    a step, what one training leaves open."""

    @property
    def told(self) -> str:
        """Every verdict, a line each, one for each model over all, and the notes."""
        lines = [f"{row.model}, {row.protocol}, {row.metric}: {row.told}" for row in self.rows]
        lines += [f"{entry.model}, overall: {entry.overall.told}" for entry in self.overall]
        lines += [f"note: {note}" for note in self.notes]
        return "\n".join(lines)

    def __str__(self) -> str:
        return self.told

    @property
    def is_worse(self) -> bool:
        """Some model is worse in something, with the intervals widened for their number."""
        return any(entry.overall.worse for entry in self.overall)


def notes_on_trainings(rows: Sequence[Row], left_out: Sequence[LeftOut]) -> list[str]:
    """Say which items had chosen a model, and what verdicts on single trainings do not cover."""
    notes = []
    for entry in left_out:
        reach = [
            f"{row.model} by {100 * size:.2g} points" if row.score.is_fraction else f"{row.model} by {size:.3g}"
            for row in rows
            if row.protocol == entry.protocol and (size := max(row.verdict.flattered)) > 0
        ]
        notes.append(entry.told + (f" ({', '.join(reach)})" if reach else ""))
    single = {row.model: row.subject for row in rows if row.verdict.training_seeds == 1}
    for subject, text in ONE_TRAINING.items():
        named = [model for model, own in single.items() if own == subject]
        notes += [f"{', '.join(named)}: {text}"] if named else []
    return notes
