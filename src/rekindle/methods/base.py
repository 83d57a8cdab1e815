# SPDX-License-Identifier: Apache-2.0
"""Method and LossBreakdown: a method is a module that turns a batch of views into a loss. The engine sees only this."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import ClassVar, TypeAlias

import torch
from torch import Tensor, nn

from rekindle.core.options import Options
from rekindle.core.progress import Progress as Progress
from rekindle.methods.shared.stated import Statements
from rekindle.methods.shared.teacher import EmaTeacher
from rekindle.networks.backbone import Backbone
from rekindle.networks.parts.heads import DinoHead
from rekindle.views.batch import ViewBatch as ViewBatch

PictureRows = Mapping[str, Mapping[str, Tensor]]
MicroBatch: TypeAlias = tuple[ViewBatch, Progress]
"""Views of some images of a step, and which of them they are."""


@dataclass(frozen=True)
class LossBreakdown:
    """A loss, or a part of one that others join, and what it is made of.

    Attributes:
        total: scalar that carries the graph.
        terms: the unweighted terms by the paper's names, detached.
        stats: other scalars worth watching (teacher entropy, matched fraction), detached.
    """

    total: Tensor
    terms: dict[str, Tensor]
    stats: dict[str, Tensor] = field(default_factory=dict)

    @staticmethod
    def weigh(
        terms: Mapping[str, Tensor], weights: Mapping[str, float], stats: Mapping[str, Tensor] | None = None
    ) -> LossBreakdown:
        """Return the weighted sum of `terms`. Raises ValueError unless both mappings name the same terms."""
        if terms.keys() != weights.keys():
            raise ValueError(f"terms {sorted(terms)} and weights {sorted(weights)} must name the same losses")
        total = torch.stack([weights[name] * value for name, value in terms.items()]).sum()
        return LossBreakdown.join([LossBreakdown(total, dict(terms))], stats)

    @staticmethod
    def join(parts: Sequence[LossBreakdown], stats: Mapping[str, Tensor] | None = None) -> LossBreakdown:
        """Add up parts that carry their weights already; terms of one name are added as well. Stats of parts are left out."""
        terms: dict[str, Tensor] = {}
        for part in parts:
            for name, value in part.terms.items():
                terms[name] = terms[name] + value.detach() if name in terms else value.detach()
        total = parts[0].total if len(parts) == 1 else torch.stack([part.total for part in parts]).sum()
        return LossBreakdown(total, terms, {name: value.detach() for name, value in (stats or {}).items()})


class Upkeep(ABC):
    """What a method does around its loss, for methods that do it alike: something they have (`Method.upkeep`)."""

    @abstractmethod
    def before_step(self, progress: Progress) -> None:
        """See `Method.before_step`."""

    @abstractmethod
    def after_step(self, progress: Progress) -> None:
        """See `Method.after_step`."""

    @abstractmethod
    def abandon_step(self) -> None:
        """See `Method.abandon_step`."""

    @abstractmethod
    def step_stats(self) -> dict[str, Tensor]:
        """See `Method.step_stats`."""

    @abstractmethod
    def alarms(self, stats: Mapping[str, float]) -> list[str]:
        """See `Method.alarms`."""

    @abstractmethod
    def heads(self) -> tuple[DinoHead, DinoHead] | None:
        """See `Method.heads`."""

    @abstractmethod
    def exported(self) -> Backbone:
        """See `Method.exported`."""


class Method(nn.Module, ABC):
    """A self-supervised method. Subclasses are final; what methods share is something they have, not something they are.

    A subclass is built as `Method(config, backbone)`, with the student backbone whose trainable parameters are marked.
    """

    Config: ClassVar[type[Options]]
    """Frozen options; the defaults are the paper's values."""
    PAPER: ClassVar[Mapping[str, object]] = {}
    """The settings of the paper's own training from scratch, by dotted name in the run's tree, for example
    {"optim.warmup_epochs": 10.0}. They are in force with `init=random`; continual runs share one recipe, so that methods
    are compared alike (GLARE, appendix)."""

    STATED: ClassVar[Statements] = {}
    """What the method's own paper states of its settings, and where (a table in `methods.papers`, or here). An entry of `PAPER`
    without one is a claim that nobody can look up, and a test fails on it."""

    NEEDS: ClassVar[Mapping[str, object]] = {}
    """Settings, by dotted name, that belong to the method however it is trained: its crops, for example. They stand in place of
    the shared defaults; a run file and the command line override them."""
    COMPARES_IMAGES: ClassVar[bool] = False
    """The student's gradient of an image depends on the other images of its step (negatives, batch statistics), so that a step of
    several micro-batches encodes each of them twice. It is then cut where memory asks for it, or a size is asked for."""

    @classmethod
    def fitted(cls, config: Options, grid: tuple[int, int]) -> Options:
        """Return the options for large views of `grid` patches, where a size that nobody set follows from it."""
        return config

    @classmethod
    def check_grids(cls, config: Options, large: int, small: int | None) -> None:
        """Refuse views that the options do not go with.

        Args: large, small, sides of the views in patches; None: there are no small ones. Raises: RequestError.
        """

    @classmethod
    def learns_beside(cls, config: Options) -> bool:
        """Whether a new network learns and the named backbone, whatever is attached to it, only teaches it (TEC)."""
        return False

    upkeep: Upkeep | None = None
    """Does what the hooks below ask for; a method without one defines them itself."""

    @abstractmethod
    def loss(self, batch: ViewBatch, progress: Progress) -> LossBreakdown:
        """Compute the loss of a step that is one micro-batch.

        Its docstring names the function of `objectives.plain` that prints what it equals.
        """

    def parts(self, micro_batches: Iterable[MicroBatch]) -> Iterator[Callable[[], LossBreakdown]]:
        """Yield, for each micro-batch of a step in this process, a function that computes its part of the step's loss.

        The mean of all parts of all processes is the loss over the step's images and rows, and the mean of their gradients its
        gradient, however the step is cut. What is yielded is called, and gone back through, before the next is asked for. A
        method whose parts need something of each other (counts, balanced targets, negatives) reads all of them first; here
        each is on its own, which is right where the loss is a mean over images.
        """
        for batch, progress in micro_batches:
            yield partial(self.loss, batch, progress)

    def only_part(self, batch: ViewBatch, progress: Progress) -> LossBreakdown:
        """The loss of a step that is one micro-batch, for methods that define `parts`."""
        (part,) = self.parts([(batch, progress)])
        return part()

    def forward(self, batch: ViewBatch, progress: Progress) -> LossBreakdown:
        """Call `loss`, so that DDP and torch.compile wrap a method unchanged."""
        return self.loss(batch, progress)

    def before_step(self, progress: Progress) -> None:
        """Act when gradients exist and are clipped, and weights have not moved."""
        if self.upkeep is not None:
            self.upkeep.before_step(progress)

    def after_step(self, progress: Progress) -> None:
        """Act when weights have moved: EMA teacher, centres."""
        if self.upkeep is not None:
            self.upkeep.after_step(progress)

    def abandon_step(self) -> None:
        """Forget what the micro-batches of a step that did not end have observed; they will come again."""
        if self.upkeep is not None:
            self.upkeep.abandon_step()

    def step_stats(self) -> dict[str, Tensor]:
        """Return stats of the step that no average over its parts gives; asked once, after the last part, in every process."""
        return {} if self.upkeep is None else self.upkeep.step_stats()

    def pictures(self, batch: ViewBatch, progress: Progress) -> PictureRows:
        """Return pictures of what was learnt, for people: file stem -> row title -> bytes [n, 3, H, W] of one size.

        Called once, when training has ended, in evaluation mode, without gradient, on views of a few images.
        """
        return {}

    def alarms(self, stats: Mapping[str, float]) -> list[str]:
        """Say what is wrong, given recent averages of the stats; nothing by default."""
        return [] if self.upkeep is None else self.upkeep.alarms(stats)

    def exported(self) -> Backbone:
        """Return the backbone that is saved and evaluated."""
        if self.upkeep is None:
            raise NotImplementedError(f"{type(self).__name__} says neither itself nor by its upkeep what is exported")
        return self.upkeep.exported()

    def heads(self) -> tuple[DinoHead, DinoHead] | None:
        """Return the heads of student and teacher that a checkpoint may bring along; None where there are none such."""
        return None if self.upkeep is None else self.upkeep.heads()

    def trained(self) -> list[Tensor]:
        """Return what trains, as the step computes with it (copies in low precision)."""
        return [p for p in self.parameters() if p.requires_grad]

    def backbone_parameters(self) -> list[nn.Parameter]:
        """Return the parameters of the student's backbone that train; everything else that trains belongs to heads."""
        inside = {id(p): p for m in self.modules() if isinstance(m, Backbone) for p in m.parameters()}
        return [p for p in inside.values() if p.requires_grad]

    def decays(self, name: str, parameter: nn.Parameter) -> bool:
        """Whether weight decay pulls at a parameter of this method.

        As in DINO's code, whatever is no bias and has more than one axis; and mask tokens, which have as many axes as the tokens
        that they stand in for in the codes of iBOT and MAE. A method whose authors decay otherwise says so.
        """
        return name.endswith("mask_token") or (parameter.ndim > 1 and not name.endswith(".bias"))

    def frozen_names(self) -> frozenset[str]:
        """Names in `state_dict()` of what never changes (the base), which a checkpoint need not hold."""
        averaged = {id(p) for m in self.modules() if isinstance(m, EmaTeacher) for p in m.averaged_parameters()}
        return frozenset(
            name
            for name, parameter in self.named_parameters(remove_duplicate=False)
            if not parameter.requires_grad and id(parameter) not in averaged
        )
