"""What a model's predictions on unlabelled images say about how good it is: pure functions, no labels.

None of them is right always: a model can be sure and wrong, consistent and wrong, and see classes that are not there.
`measure_signals` looks at a handful of images.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from das3.halves import in_halves
from das3.losses import entropy_of_probs, most_likely, mutual_information
from das3.segmenter import evaluating

__all__ = [
    "COLOR_VIEWS",
    "VIEWS",
    "Signals",
    "ViewPredictions",
    "agreement",
    "by_matrices",
    "class_shares",
    "ensemble_agreement",
    "measure_color_consistency",
    "measure_signals",
    "neighbourhood_density",
    "share_shift",
    "sure_agreement",
    "view_predictions",
]

VIEWS: Mapping[str, Callable[[Tensor], Tensor]] = {
    "mirror": lambda images: images.flip(-1),
    "smaller": lambda images: _smaller(images),
    "darker": lambda images: images**1.25,
    "lighter": lambda images: images**0.8,
    "warm": lambda images: _tinted(images, (1.1, 1.0, 0.85)),
    "cold": lambda images: _tinted(images, (0.88, 1.0, 1.12)),
    "grayscale": lambda images: images.mean(dim=1, keepdim=True).expand_as(images),
}
"""Images B×3×H×W in [0, 1] → the same scene seen otherwise, so mildly that its classes stay what they are."""

COLOR_VIEWS = ("darker", "lighter", "warm", "cold", "grayscale")
"""The views in another light or colour."""


def _smaller(images: Tensor) -> Tensor:
    """Three quarters of the size; of one pixel, none would be left."""
    if min(images.shape[-2:]) < 2:
        return images
    return F.interpolate(images, scale_factor=0.75, mode="bilinear", antialias=True)


def _tinted(images: Tensor, tint: tuple[float, float, float]) -> Tensor:
    return (images * images.new_tensor(tint).view(1, 3, 1, 1)).clamp(max=1)


GRID = 128
"""Predictions are kept at this longer side at most: all candidates' predictions of all images are held at once."""


def neighbourhood_density(probs: Tensor, *, temperature: float = 0.05, most: int = 1000) -> float:
    """Soft neighbourhood density: mean entropy of the similarities of each pixel's prediction to all others'.

    It is large where predictions form dense groups, and grows no further where groups that should be apart merge.

    Args:
        probs: N×C probabilities, a row per pixel, N ≥ 3.
        temperature: > 0, of the softmax over similarities.
        most: rows that are compared, in time and memory of its square; of more, evenly spread ones.

    Returns:
        In [0, log(N − 1)], in nats.

    Source: Saito et al. (ICCV 2021), eq. 1 to 3, with pixels as samples.
    """
    rows = probs[torch.linspace(0, len(probs) - 1, min(most, len(probs))).round().long()].float()
    rows = F.normalize(rows, dim=1)
    similar = rows @ rows.T / temperature
    similar.fill_diagonal_(-math.inf)
    log_weights = similar.log_softmax(dim=1).clamp(min=-1e4)  # 0 · −∞ on the diagonal would be NaN
    return float(-(log_weights.exp() * log_weights).sum(dim=1).mean())


def agreement(one: Tensor, other: Tensor, *, where: Tensor | None = None, least: float = 0.002) -> tuple[float, float]:
    """How far two label maps agree: share of equal pixels, and mean IoU over the classes that they show.

    The mean IoU is what tells rare classes that flicker from frequent ones that stay.

    Args:
        one, other: integer labels of equal shape.
        where: boolean of that shape, pixels that count; None for all.
        least: share of the pixels that a class must have, in either map, for the mean IoU; a few pixels say nothing.

    Returns:
        Both in [0, 1]; (1, 1) where no pixel counts.
    """
    if where is not None:
        one, other = one[where], other[where]
    if one.numel() == 0:
        return 1.0, 1.0
    classes = int(max(one.max(), other.max())) + 1
    both = torch.bincount(one.long().flatten() * classes + other.long().flatten(), minlength=classes**2)
    both = both.view(classes, classes).double()
    union = both.sum(dim=0) + both.sum(dim=1) - both.diag()
    seen = union > min(least * float(both.sum()), float(union.max()) - 1)
    return float(both.diag().sum() / both.sum()), float((both.diag()[seen] / union[seen]).mean())


def sure_agreement(labels: Tensor, incoming: Tensor, *, sure: float = 0.9) -> float:
    """Share of the pixels of which the incoming model was sure that are labelled as it did.

    Args:
        labels: N×H×W integer labels.
        incoming: N×C×H×W probabilities of the incoming model.
        sure: least probability of its label.

    Returns:
        In [0, 1]; 1 where it was sure of nothing.
    """
    confidence, before = incoming.max(dim=1)
    return agreement(labels, before, where=confidence >= sure)[0]


def class_shares(probs: Tensor) -> Tensor:
    """C shares of the pixels by label, of probabilities N×C×H×W."""
    labels = most_likely(probs, 1).flatten()
    return torch.bincount(labels, minlength=probs.shape[1]).double() / labels.numel()


def share_shift(shares: Tensor, incoming: Tensor) -> float:
    """Total variation distance ½ Σ_c |a_c − b_c| of class shares to the incoming model's, in [0, 1]."""
    return float((shares.double() - incoming.double()).abs().sum() / 2)


def ensemble_agreement(candidates: Sequence[Tensor]) -> list[tuple[float, float]]:
    """How far each candidate agrees with the mean prediction of all, see `agreement`.

    Args:
        candidates: N×C×H×W probabilities of each.

    Source: EnsV (Hu et al., NeurIPS 2024): the ensemble stands in for the labels when a model is selected.
    """
    labels = most_likely(torch.stack([probs.float() for probs in candidates]).mean(dim=0), 1)
    return [agreement(most_likely(probs, 1), labels) for probs in candidates]


@dataclass(frozen=True)
class Signals:
    """What one model's predictions say of themselves.

    Attributes:
        entropy: mean over pixels, as a share of log C, in [0, 1].
        mutual_information: of image and class, see `das3.losses.mutual_information`.
        density: see `neighbourhood_density`.
        consistency: view → share of pixels whose label stays, in [0, 1].
        consistent_miou: view → mean IoU of the labels with those of the view, in [0, 1].
        shares: of the pixels by class.
    """

    entropy: float
    mutual_information: float
    density: float
    consistency: dict[str, float]
    consistent_miou: dict[str, float]
    shares: list[float]

    @property
    def mean_consistency(self) -> float:
        """Mean of `consistent_miou` over all views, in [0, 1]: every class counts alike, however few its pixels."""
        return sum(self.consistent_miou.values()) / len(self.consistent_miou)

    @property
    def color_consistency(self) -> float:
        """Mean of `consistent_miou` over the `COLOR_VIEWS`, in [0, 1]: what tells which norm statistics fit.

        They say how light and colourful features are. A network on statistics that do not fit its images is at their
        limits, where little light or colour tips it over; mirror and zoom say less about that. docs/decisions/0020.
        """
        return sum(self.consistent_miou[view] for view in COLOR_VIEWS) / len(COLOR_VIEWS)


def _seen(view: str, images: Tensor, rgb: Sequence[int] | None) -> Tensor:
    """Images as in a view; of those with other bands than red, green and blue only these three change colour."""
    if view == "plain":
        return images
    if view not in COLOR_VIEWS or images.shape[1] == 3:
        return VIEWS[view](images)
    if rgb is None:
        return VIEWS[view](images) if view in ("darker", "lighter") else images
    changed = images.clone()
    changed[:, list(rgb)] = VIEWS[view](images[:, list(rgb)])
    return changed


@dataclass(frozen=True)
class ViewPredictions:
    """What a model predicts for images and their views, on the CPU, of `GRID` pixels on the longer side at most.

    Attributes:
        probs: of each batch of images as they are, B×C×h×w float32.
        labels: view, "plain" first → of each batch B×h×w int64, turned back onto the image.
    """

    probs: list[Tensor]
    labels: dict[str, list[Tensor]]


@torch.no_grad()
def view_predictions(
    segmenter: nn.Module,
    batches: Sequence[Tensor],
    rgb: Sequence[int] | None = None,
    views: Iterable[str] = tuple(VIEWS),
) -> ViewPredictions:
    """Predictions for images and their `VIEWS`.

    Args:
        segmenter: B×3×H×W images in [0, 1] → logits B×C×h×w; run in evaluation mode, each layer's own mode restored.
        batches: of images, each of one size.
        rgb: the bands that are red, green and blue, where there are others as well.
        views: names of those that are wanted.
    """
    found = ViewPredictions([], {"plain": [], **{name: [] for name in views}})

    def predicted(images: Tensor) -> list[Tensor]:
        """Probabilities of images, and the labels of each view."""
        size, results = _grid(images.shape[-2:]), []
        for name in found.labels:
            probs = _probabilities(segmenter(_seen(name, images, rgb)).float(), size)
            if name == "plain":
                results.append(probs.cpu())
            results.append(most_likely(probs.flip(-1) if name == "mirror" else probs, 1).cpu())
        return results

    with evaluating(segmenter):
        for images in batches:
            parts = in_halves(lambda part, images=images: [predicted(images[part])], len(images))  # type: ignore[misc]
            probs, *labels = map(torch.cat, zip(*parts, strict=True))
            found.probs.append(probs)
            for maps, of_view in zip(found.labels.values(), labels, strict=True):
                maps.append(of_view)
    return found


def _probabilities(logits: Tensor, size: tuple[int, int]) -> Tensor:
    """Probabilities B×C×h×w of logits B×C×H×W at another size, antialiased where that is smaller."""
    antialias = size < logits.shape[-2:]
    if logits.is_cuda:
        # PyTorch's antialiasing on GPUs goes through all images and classes one after the other (its issue 82397).
        return by_matrices(logits.softmax(dim=1), size, antialias)
    return torch.cat(  # one image at a time: memory for all of them is asked of the system anew for every batch
        [F.interpolate(one.softmax(dim=1), size=size, mode="bilinear", antialias=antialias) for one in logits.split(1)]
    )


def by_matrices(images: Tensor, size: tuple[int, int], antialias: bool) -> Tensor:
    """`F.interpolate` with mode "bilinear" as two matrix products, equal up to rounding.

    Args:
        images: B×C×H×W float32.
        size: height and width of the result.
        antialias: as of `F.interpolate`.
    """
    rows, columns = (
        _weights(before, after, antialias, images.device) for before, after in zip(images.shape[-2:], size, strict=True)
    )
    with torch.autocast(images.device.type, enabled=False):  # it would multiply in half precision
        return rows @ (images @ columns.T)


@lru_cache(maxsize=16)
def _weights(before: int, after: int, antialias: bool, device: torch.device) -> Tensor:
    """What each of `before` pixels in a line counts in each of `after`, as after×before."""
    lines = torch.eye(before).view(1, 1, before, before)
    return F.interpolate(lines, size=(after, before), mode="bilinear", antialias=antialias)[0, 0].to(device)


def _grid(size: Sequence[int]) -> tuple[int, int]:
    height, width = size
    share = min(1.0, GRID / max(height, width))
    return max(1, round(height * share)), max(1, round(width * share))


def measure_color_consistency(
    segmenter: nn.Module, batches: Sequence[Tensor], rgb: Sequence[int] | None = None
) -> float:
    """`Signals.color_consistency` alone, which takes fewer passes.

    Args:
        segmenter, batches, rgb: see `view_predictions`.
    """
    agreed = _agreements(view_predictions(segmenter, batches, rgb, COLOR_VIEWS).labels)
    return sum(miou for _, miou in agreed.values()) / len(agreed)


def measure_signals(segmenter: nn.Module, batches: Sequence[Tensor], rgb: Sequence[int] | None = None) -> Signals:
    """All signals of one model alone; some 30 images are enough.

    Args:
        segmenter, batches, rgb: see `view_predictions`.
    """
    return signals_of(view_predictions(segmenter, batches, rgb))


def signals_of(found: ViewPredictions) -> Signals:
    """The signals of what `view_predictions` found."""
    plain = found.probs
    agreed = _agreements(found.labels)
    entropies = torch.cat([entropy_of_probs(probs).mean(dim=(1, 2)) for probs in plain])
    means = torch.cat([probs.mean(dim=(2, 3)) for probs in plain])
    rows = torch.cat([probs.movedim(1, -1).flatten(0, 2) for probs in plain])
    return Signals(
        entropy=float(entropies.mean()),
        mutual_information=mutual_information(means, entropies),
        density=neighbourhood_density(rows),
        consistency={v: share for v, (share, _) in agreed.items()},
        consistent_miou={v: miou for v, (_, miou) in agreed.items()},
        shares=class_shares(rows[:, :, None, None]).tolist(),
    )


def _agreements(labels: Mapping[str, Sequence[Tensor]]) -> dict[str, tuple[float, float]]:
    """`agreement` of the labels of each view with the plain ones."""
    plain = _joined(labels["plain"])
    return {name: agreement(plain, _joined(maps)) for name, maps in labels.items() if name != "plain"}


def _joined(maps: Sequence[Tensor]) -> Tensor:
    """Pixels of maps of any sizes in one row."""
    return torch.cat([one.flatten() for one in maps])
