"""SFDA: synthetic images from the source's norm statistics preserve knowledge; easy patches guide hard ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from das3.baselines.bn_statistics import recorded_batch_statistics
from das3.baselines.features import features_and_logits, to_grid
from das3.baselines.maxsquare import max_square_loss
from das3.baselines.sfda_networks import Generator, PatchDiscriminator, reverse
from das3.data.samples import Sample, Samples
from das3.distributed import average_over_processes, from_first_process, gather_batch, own_part, process_count
from das3.ema import frozen_copy
from das3.errors import ModelError
from das3.losses import entropy_of_probs
from das3.norms import (
    BatchNormMode,
    NormStatistics,
    batch_norms,
    held_running_statistics,
    running_statistics,
    set_norm_mode,
)
from das3.segmenter import Segmenter
from das3.stages.base import Stage
from das3.stages.context import StageContext
from das3.stages.options import StageOptions, option

__all__ = ["Sfda", "attention_kl", "attentions", "dual_attention", "easy_and_hard", "statistics_loss"]

# Attention between all places of a larger feature map would not fit in memory.
ATTENTION_GRID = 16


@dataclass(frozen=True)
class SfdaOptions(StageOptions):
    """Options of SFDA.

    Attributes:
        bn_mode: "frozen", so that the source's statistics reach the stage, which sees to the norm layers itself.
        alpha: weight of the difference between both models' predictions of made-up images.
        beta: weight of the differences between their dual attention, and between that of made-up and target images.
        gamma: weight of the patches' adversarial loss on the segmenter.
        patches: K, images are cut into K×K patches.
    """

    steps: int = 300
    bn_mode: BatchNormMode = option("frozen", choices=("frozen",), old="norm")
    alpha: float = option(1.0, low=0)
    beta: float = option(0.5, low=0)
    gamma: float = option(0.01, low=0)
    patches: int = option(3, low=1)


def statistics_loss(now: Mapping[int, NormStatistics], then: Sequence[NormStatistics]) -> Tensor:
    """L_BNS = Σ_l ‖μ_l − μ̄_l‖² + ‖σ²_l − σ̄²_l‖² between what enters each batch norm and its running statistics.

    Args:
        now: from `das3.baselines.bn_statistics.recorded_batch_statistics`.
        then: from `das3.norms.running_statistics`.
    """
    layers = [((m.mean - then[i].mean) ** 2).sum() + ((m.var - then[i].var) ** 2).sum() for i, m in now.items()]
    return torch.stack(layers).sum()


def attentions(features: Tensor) -> tuple[Tensor, Tensor]:
    """Spatial attention B×N×N and channel attention B×D×D of features B×D×h×w, N = h·w: softmax of inner products."""
    flat = features.flatten(2)
    return (flat.transpose(1, 2) @ flat).softmax(dim=1), (flat @ flat.transpose(1, 2)).softmax(dim=2)


def dual_attention(features: Tensor) -> Tensor:
    """A = concat(F·S | R·F), B×2D×N: features weighed by spatial and by channel attention."""
    spatial, channel = attentions(features)
    flat = features.flatten(2)
    return torch.cat([flat @ spatial, channel @ flat], dim=1)


def attention_kl(fake: Tensor, real: Tensor) -> Tensor:
    """KL(fake ‖ real) of spatial and of channel attention, mean over their distributions; features B×D×h×w."""
    total = torch.zeros((), device=fake.device)
    for p, q, dim in zip(attentions(fake), attentions(real), (1, 2), strict=True):
        logs = p.clamp(min=1e-12).log() - q.clamp(min=1e-12).log()
        total = total + (p * logs).sum(dim=dim).mean()
    return total


def easy_and_hard(probs: Tensor, k: int) -> tuple[Tensor, Tensor, Tensor]:
    """Cut predictions into k×k patches and, place by place, split the batch into the more and the less confident half.

    Args:
        probs: B×C×H×W, zeros where a pixel does not count.
        k: patches a side.

    Returns:
        Easy and hard patches, N×C×h×w each with N = k²·(B // 2), and their places.
    """
    half, height, width = len(probs) // 2, max(1, probs.shape[2] // k), max(1, probs.shape[3] // k)
    patches = probs.unfold(2, height, height)[:, :, :k].unfold(3, width, width)[:, :, :, :k]
    patches = patches.permute(2, 3, 0, 1, 4, 5).flatten(0, 1)  # places, B, C, h, w
    entropy = entropy_of_probs(patches.detach().flatten(0, 1)).mean(dim=(1, 2)).view(patches.shape[:2])
    order = entropy.argsort(dim=1, stable=True)
    rows = torch.arange(len(patches), device=probs.device).unsqueeze(1)
    easy, hard = patches[rows, order[:, :half]], patches[rows, order[:, len(probs) - half :]]
    return easy.flatten(0, 1), hard.flatten(0, 1), rows.expand(-1, half).flatten()


class Sfda(Stage[SfdaOptions]):
    """Knowledge transfer over made-up images, and adversarial self-supervision between patches of target images.

    Source: Liu, Zhang & Wang (CVPR 2021): BNS loss, MAE and dual attention distillation (DAD), maximum squares on
    target images, intra-domain patch-level self-supervision (IPSM), with the paper's weights. The source model keeps
    its statistics; the one that is trained runs on each batch's, made-up and target images apart, and only target
    images reach its running statistics. Simplified: all networks are updated in the same step, the adversaries by
    reversed gradients, where the paper takes turns and transfers before it adapts; the attention is that of the
    features before the classifier, averaged to 16×16 places at most, where the paper gives its networks an attention
    module; generator and discriminator are smaller and learn at ten times `lr`, not at 0.1.
    """

    name = "sfda"
    Options = SfdaOptions
    own_lr_factor = 10.0

    def prepare(self, context: StageContext) -> Samples:
        """The source model stays beside, and the generator and the discriminator begin at random."""
        self.source = frozen_copy(context.segmenter)
        self.autocast = context.fabric.autocast
        if next(batch_norms(self.source), None) is None:
            raise ModelError("sfda needs batch-norm statistics and the network has none; choose another method")
        size = (max(8, context.crop[0] // 2), max(8, context.crop[1] // 2))
        with torch.random.fork_rng([]):
            torch.manual_seed(context.random_seed())
            generator = Generator(size, bands=context.segmenter.in_channels)
            judge = PatchDiscriminator(context.segmenter.num_classes, self.options.patches**2)
        self.generator, self.judge = generator.to(context.fabric.device), judge.to(context.fabric.device)
        context.reestimate_bn(context.groups())
        return context.samples(self.options)

    def loss(self, segmenter: nn.Module, batch: Sample) -> dict[str, Tensor]:
        """What keeps the source's knowledge, and what learns from the target."""
        if segmenter.training:
            set_norm_mode(segmenter, "batch")
        features, logits = features_and_logits(segmenter, batch["image"])
        valid = batch["valid"].unsqueeze(1)
        inside = to_grid(cast(Segmenter, segmenter), valid.float(), features) > 0.5
        probs = torch.where(valid, logits.float().softmax(dim=1), 0)
        return {
            **self._transfer(segmenter, torch.where(inside, features.detach(), 0)),
            "target": 2 * max_square_loss(logits, batch["valid"], ratio=0.0),
            "patches": self._patches(probs),
        }

    def _transfer(self, segmenter: nn.Module, target: Tensor) -> dict[str, Tensor]:
        """The segmenter follows the source model on made-up images; the generator seeks those on which it does not.

        `target` are features of target images, whose attention the made-up images are to have.
        """
        options = self.options
        with self.autocast(), recorded_batch_statistics(self.source) as moments:
            noise = from_first_process(torch.randn(len(target) * process_count(), self.generator.latent))
            images = self.generator(own_part(noise).to(target.device))
            old_features, old_logits = features_and_logits(self.source, images)
        with held_running_statistics(segmenter):
            features, logits = features_and_logits(segmenter, reverse(images))
        difference = logits.float().softmax(dim=1) - reverse(old_logits.float().softmax(dim=1))
        output = average_over_processes(difference.abs().mean())
        grid = (min(ATTENTION_GRID, features.shape[-2]), min(ATTENTION_GRID, features.shape[-1]))
        small, old_small, target = (F.adaptive_avg_pool2d(f, grid) for f in (features, old_features, target))
        attention = (dual_attention(small) - reverse(dual_attention(old_small))).abs().mean()
        attention = average_over_processes(attention)
        return {
            "statistics": statistics_loss(moments, running_statistics(self.source)),
            "output": options.alpha * output,
            "attention": options.beta * attention,
            "semantics": options.beta * average_over_processes(attention_kl(old_small, target)),
        }

    def _patches(self, probs: Tensor) -> Tensor:
        """The discriminator tells easy from hard patches; the segmenter makes hard ones pass for easy."""
        easy, hard, places = easy_and_hard(gather_batch(probs), self.options.patches)
        if not len(easy):
            return probs.sum() * 0
        with self.autocast():
            sure = self.judge(easy.detach(), places).float()
            unsure = self.judge(reverse(hard, self.options.gamma), places).float()
        return F.softplus(-sure).mean() + F.softplus(unsure).mean()
