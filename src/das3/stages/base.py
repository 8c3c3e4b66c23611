"""The interface of a stage: what a method has to define; everything else is done by the training loop."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, Generic, TypeVar

from torch import Tensor, nn

from das3.data.label_store import LabelStore
from das3.data.samples import Sample, Samples
from das3.segmenter import Segmenter
from das3.stages.context import StageContext
from das3.stages.options import StageOptions

__all__ = ["OptionsT", "Stage", "StageTags", "parameter_groups"]


OptionsT = TypeVar("OptionsT", bound=StageOptions)


@dataclass(frozen=True)
class StageTags:
    """Rules of `das3.testing.check_stage` that a stage follows.

    Attributes:
        ignores_padding: its loss does not depend on pixels that are not `valid`.
        equal_over_processes: two processes with half of each batch give the same weights as one with all of it.
    """

    ignores_padding: bool = True
    equal_over_processes: bool = True


class Stage(nn.Module, ABC, Generic[OptionsT]):
    """A method, or one step of a method: what it prepares, what it trains, its loss.

    A stage is a module so that state that it keeps between steps (a running estimate, a teacher) is a buffer or a
    submodule and is saved and resumed with the run. Parameters of its own that require gradients (an auxiliary decoder,
    a generator) are trained along.

    Attributes:
        name: its name in a recipe's `stages`.
        Options: dataclass of its options, each with its default.
        own_lr_factor: the learning rate of the stage's own parameters is this times `lr`.
        tags: rules that the stage does not follow, for `das3.testing.check_stage`.
        pseudo_labels: what `prepare` stored, if it makes pseudo labels.
        input_transform: name of the transform (see `das3.input_transforms`) that `prepare` chose, if it tried any.
    """

    name: ClassVar[str]
    Options: ClassVar[type[StageOptions]] = StageOptions
    own_lr_factor: ClassVar[float] = 1.0
    tags: ClassVar[StageTags] = StageTags()

    def __init__(self, options: OptionsT) -> None:
        super().__init__()
        self.options = options
        self.pseudo_labels: LabelStore | None = None
        self.input_transform: str | None = None

    def trainable(self, segmenter: Segmenter) -> Iterator[nn.Parameter]:
        """Parameters that the stage trains; all others are frozen."""
        return segmenter.model.parameters()

    def prepare(self, context: StageContext) -> Samples:
        """Do the stage's offline part with the incoming model, and return the training samples."""
        return context.samples(self.options)

    @abstractmethod
    def loss(self, segmenter: nn.Module, batch: Sample) -> dict[str, Tensor]:
        """The weighted terms, scalars whose sum is minimised, for one batch of samples (see `Samples`).

        `segmenter` is called as a function; under mixed precision and several processes it is wrapped.
        """

    def after_step(self, segmenter: Segmenter) -> None:
        """Called after every optimiser step, e.g. to update a teacher."""

    def finish(self, context: StageContext) -> None:
        """Called after the last step, for work on the trained model."""


def parameter_groups(segmenter: Segmenter, stage: Stage[Any], weight_decay: float) -> list[dict[str, Any]]:
    """Optimiser groups: the classifier and the stage's own parameters with their own rates; no weight decay on biases
    and norm layers.

    Freezes everything of the segmenter that is not trained. Parameters that were frozen before stay so (Caffe-style
    norm layers), unless all were, as in a network that was saved for inference.
    """
    options = stage.options
    partly = any(p.requires_grad for p in segmenter.model.parameters())
    chosen = {id(p) for p in stage.trainable(segmenter) if p.requires_grad or not partly}
    head = {id(p) for p in segmenter.classifier_parameters()}
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}

    def add(parameter: nn.Parameter, factor: float) -> None:
        decay = weight_decay if parameter.ndim > 1 else 0.0
        groups.setdefault((options.lr * factor, decay), []).append(parameter)

    for parameter in segmenter.model.parameters():
        parameter.requires_grad_(id(parameter) in chosen)
        if id(parameter) in chosen:
            add(parameter, options.head_lr_factor if id(parameter) in head else 1.0)
    for parameter in stage.parameters():
        if parameter.requires_grad:
            add(parameter, stage.own_lr_factor)
    return [{"params": p, "lr": lr, "base_lr": lr, "weight_decay": decay} for (lr, decay), p in groups.items()]
