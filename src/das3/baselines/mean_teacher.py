"""Mean teacher with class mixing: DACS-style self-training between target images alone."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from das3.baselines.weak_strong_views import WeakStrongViews
from das3.data.mixing import class_mix
from das3.data.samples import Sample, Samples
from das3.distributed import from_first_process, gather_batch, mean_over_processes, own_part
from das3.ema import ema_update, frozen_copy
from das3.losses import IGNORE_INDEX, positive_loss
from das3.segmenter import Segmenter
from das3.stages.base import Stage
from das3.stages.context import StageContext
from das3.stages.options import StageOptions, option

__all__ = ["MeanTeacher", "mix_batch", "sure_labels"]


@dataclass(frozen=True)
class MeanTeacherOptions(StageOptions):
    """Options of mean-teacher self-training.

    Attributes:
        teacher_decay: share of the teacher that stays at each step.
        threshold: probability above which a pixel counts as sure; the share of sure pixels weighs the loss.
    """

    steps: int = 300
    lr: float = 3e-4
    color: float = 0.3
    blur: float = 0.3
    teacher_decay: float = option(0.99, low=0, high=1, old="keep")
    threshold: float = option(0.968, low=0, below=1)


def sure_labels(probs: Tensor, valid: Tensor, threshold: float) -> tuple[Tensor, Tensor]:
    """Labels B×H×W of all valid pixels, 255 elsewhere, and the share of them whose confidence exceeds the threshold.

    Args:
        probs: B×C×H×W.
        valid: boolean B×H×W.
        threshold: of the largest probability.

    Source: DACS, pseudo labels and λ.
    """
    confidence, labels = probs.max(dim=1)
    sure = mean_over_processes(((confidence >= threshold) & valid).sum(), valid.sum())
    return torch.where(valid, labels, IGNORE_INDEX), sure


def mix_batch(images: Tensor, labels: Tensor, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """Paste half of each image's classes on the next image of the batch; labels B×H×W alike."""
    samples = [{"image": i, "labels": y} for i, y in zip(images, labels, strict=True)]
    mixed = [class_mix(over, under, rng) for over, under in zip(samples, samples[1:] + samples[:1], strict=True)]
    return torch.stack([m["image"] for m in mixed]), torch.stack([m["labels"] for m in mixed])


class MeanTeacher(Stage[MeanTeacherOptions]):
    """Cross-entropy of mixed images with a moving-average teacher's labels of the clean ones.

    Source: DACS (Tranheden et al., WACV 2021), which mixes source images into target ones; with no source at hand two
    target images are mixed, as in ClassMix (Olsson et al., WACV 2021). The authors change the colours after mixing,
    here each image has its own before.
    """

    name = "mean-teacher"
    Options = MeanTeacherOptions

    def prepare(self, context: StageContext) -> Samples:
        """The teacher starts as the incoming model."""
        self.teacher = frozen_copy(context.segmenter)
        self.autocast = context.fabric.autocast
        return WeakStrongViews(context.samples(self.options))

    def loss(self, segmenter: nn.Module, batch: Sample) -> dict[str, Tensor]:
        """Cross-entropy on the mixtures, times the share of sure pixels."""
        with torch.no_grad(), self.autocast():
            probs = self.teacher(batch["weak"]).float().softmax(dim=1)
        labels, sure = sure_labels(probs, batch["valid"], self.options.threshold)
        # The step has seeded torch, so a resumed run mixes alike.
        rng = np.random.default_rng(int(from_first_process(torch.randint(2**62, ()))))
        images, labels = mix_batch(gather_batch(batch["image"]), gather_batch(labels), rng)
        return {"mixed": sure * positive_loss(segmenter(own_part(images)), own_part(labels))}

    def after_step(self, segmenter: Segmenter) -> None:
        """Update the teacher."""
        ema_update(self.teacher, segmenter, self.options.teacher_decay)
