"""The candidates that a run may hand back, measured side by side, and the rule that chooses without labels."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from das3.losses import most_likely
from das3.selection.signals import (
    Signals,
    agreement,
    class_shares,
    ensemble_agreement,
    share_shift,
    signals_of,
    sure_agreement,
    view_predictions,
)

__all__ = ["Candidate", "State", "Verdict", "choose", "measure_candidates", "to_square"]

Kind = Literal["incoming", "statistics", "snapshot", "stage", "blend"]


class State(NamedTuple):
    """Where a candidate's weights come from; `share` of the trained weights in a blend."""

    name: str
    kind: Kind
    load: Callable[[], Mapping[str, Tensor]]
    share: float = 1.0


MIN_ENTROPY = 0.26
"""Where nothing can be told by norm statistics, a model whose mean entropy is this share of log C does not fit the
images: it is 0.13 to 0.24 on the same or a similar place, 0.28 to 0.46 by night, in another country, inverted or at
another scale (docs/decisions/0024)."""
FITS_AGREEMENT = 0.73
"""A model fits the images, even if the target's statistics make it more consistent, if they change few labels (mean IoU
with its own 0.82 and 0.88 on the same place, at most 0.64 on shifts of seven classes, 0.81 on one of two)"""
FITS_ENTROPY = 0.31
"""and it was sure of them: mean entropy, as a share of log C, 0.16 and 0.24 on the same place, 0.39 on that shift of
two classes (docs/decisions/0030)."""
MIN_CONSISTENCY_GAIN = 0.15
"""And training has to make such a model this much more consistent: it was 0.19 to 0.40 on large shifts, 0.05 for a
model that was unsure on a place much like its source's."""
MIN_IMAGES_TO_LEARN = 16
"""On fewer images consistency also rises because they are learnt by heart: by 0.23 on one, where mIoU fell by 7."""
MAX_SHARE_SHIFT = (0.15, 0.4)
"""Class shares of a trained candidate may differ from the untrained model's by this total variation: where the incoming
model fits the images already, and where it does not."""
MAX_SHARE_SHIFT_AFTER_STATISTICS = 0.25
"""The same where statistics were re-estimated, which corrects the shares first: it was at most 0.22 where training
helped, 0.37 where it ruined a model."""
MIN_SURE_AGREEMENT = (0.9, 0.6)
"""Share of the pixels of which the untrained model was sure that a trained candidate has to label alike; likewise."""
MAX_CONSISTENCY_DROP = 0.05
"""A trained candidate may be this much less consistent than the untrained model whose statistics were re-estimated, but
not less consistent than the model as it came in."""
BLEND_DROP = 0.02
"""Where the incoming model fits the images already, a quarter of trained weights may make it this much less consistent;
half of them not at all: docs/decisions/0022."""
MIN_AGREEMENT = 0.6
"""There a blend has to agree so far with the incoming model, as mean IoU of the labels,"""
MIN_SHARE_LEFT = 0.75
"""and each class has to keep this part of its share: rare ones go first where training does harm."""
MIN_ENTROPY_LEFT = 0.4
"""Training has to leave a model that fits this part of its entropy: it was 0.46 and more where blends gain, 0.14 to
0.41 where the model had learnt its own labels by heart (docs/decisions/0028)."""
MIN_GAIN_WHERE_IT_FITS = 0.06
"""Training has to make a model that fits this much more consistent: it was 0.05 to 0.16 where blends gain, up to 0.04
where nothing else tells that they lose,"""
MIN_GAIN_PER_CHANGE = 2.0
"""and by this many times the share that it changed of the labels of which the model was sure: it was 2.7 to 13 times
where blends gain, 1.4 where half of the weights lost 5 mIoU (docs/decisions/0031)."""
MIN_IMAGES = 4
"""Of fewer images the signals say how well they were learnt by heart."""
MIN_SHARE = 0.002
"""A class that the untrained model gives this share of the pixels counts as seen."""
LOST = 0.2
"""A class is lost if its share falls below this part of what it was."""
MAX_LOST = 0.34
"""A candidate that lost more than this share of the classes that were seen has collapsed."""
MAX_BLEND = 0.5
"""Largest share of trained weights that is taken where the incoming model fits the images already."""


@dataclass(frozen=True)
class Candidate:
    """A model that may be handed back, and what its predictions on unlabelled images say.

    Attributes:
        name: of the candidate.
        kind: the incoming model; the incoming weights on chosen statistics; weights during or after a stage; or weights
            between the incoming and the final ones.
        signals: of its own predictions.
        consistency: mean IoU with itself under mirroring, light and scale.
        share_shift: total variation distance of its class shares to the untrained model's.
        sure_agreement: share of the pixels of which the untrained model was sure that are labelled alike.
        agreement: mean IoU of its labels with the untrained model's.
        ensemble_agreement: mean IoU with the mean prediction of all candidates.
        lost: classes that the untrained model saw and this one nearly never predicts.
        seen: how many classes the untrained model saw.
        finite: whether its predictions are numbers.
        share: of the trained weights in a blend.
        least_share: the least share of a class of those seen, as a part of its share before.
    """

    name: str
    kind: Kind
    signals: Signals
    consistency: float
    share_shift: float
    sure_agreement: float
    agreement: float
    ensemble_agreement: float
    lost: list[str] = field(default_factory=list)
    seen: int = 1
    finite: bool = True
    share: float = 1.0
    least_share: float = 1.0

    def rejection(self, untrained: Candidate, incoming: Candidate, shifted: bool) -> str | None:
        """Why this trained candidate is not to be trusted, None if nothing speaks against it.

        Args:
            untrained: the model before training, on the chosen statistics.
            incoming: the model as it came in, which may be the same.
            shifted: whether the shift is large, so that the incoming model does not fit the images.
        """
        if not self.finite:
            return "its predictions are not finite"
        if len(self.lost) > (MAX_LOST * self.seen if shifted else 0):
            return f"it hardly predicts {', '.join(self.lost)} any more"
        most = MAX_SHARE_SHIFT_AFTER_STATISTICS if untrained.kind == "statistics" else 1.0
        if self.share_shift > min(MAX_SHARE_SHIFT[shifted], most):
            return f"it gives {self.share_shift:.0%} of the pixels to other classes than before, in total"
        if self.sure_agreement < MIN_SURE_AGREEMENT[shifted]:
            return f"it changed {1 - self.sure_agreement:.0%} of the pixels of which the model was sure"
        if not shifted:
            return self._harm_to_a_good_model(untrained)
        least = max(untrained.consistency - MAX_CONSISTENCY_DROP, incoming.consistency)
        if self.consistency < least:
            return f"it is less consistent ({self.consistency:.3f}, at least {least:.3f} was expected)"
        return None

    def _harm_to_a_good_model(self, untrained: Candidate) -> str | None:
        """Why this blend is not to be trusted where the incoming model fits the images already."""
        drop = BLEND_DROP if self.share <= MAX_BLEND / 2 else 0.0
        if self.consistency < untrained.consistency - drop:
            return f"it is less consistent ({self.consistency:.3f} after {untrained.consistency:.3f})"
        if self.agreement < MIN_AGREEMENT:
            return f"its labels are far from those of the incoming model (mean IoU {self.agreement:.2f} with them)"
        if self.least_share < MIN_SHARE_LEFT:
            return f"a class keeps only {self.least_share:.0%} of its pixels"
        return None


@dataclass(frozen=True)
class Verdict:
    """What is handed back, and why; the `verdict` of summary.json.

    Attributes:
        chosen: name of the candidate.
        changed: whether it differs from the model that came in.
        confidence: how sure das3 is that it is no worse than the model that came in: high, medium or low.
        reason: in words.
        candidates: name, kind, signals, and why it was rejected, if it was.
    """

    chosen: str
    changed: bool
    confidence: Literal["high", "medium", "low"]
    reason: str
    candidates: list[dict[str, Any]]

    def to_dict(self) -> dict[str, Any]:
        """For summary.json."""
        return asdict(self)


@torch.no_grad()
def measure_candidates(
    segmenter: nn.Module,
    states: Sequence[State],
    batches: Sequence[Tensor],
    class_names: Sequence[str],
    rgb: Sequence[int] | None = None,
) -> list[Candidate]:
    """Load one candidate's weights after the other and measure its signals.

    Args:
        segmenter: takes the weights; ends with those of the last candidate.
        states: the candidates, untrained ones first.
        batches: of images, see `das3.selection.bn_statistics.sample_batches`.
        class_names: of the model.
        rgb: see `das3.selection.signals.view_predictions`.
    """
    views, plain = [], []
    for state in states:
        segmenter.load_state_dict(state.load())
        found = view_predictions(segmenter, batches, rgb)
        views.append(signals_of(found))
        plain.append(torch.cat([to_square(probs) for probs in found.probs]))
    anchor = _anchor([state.kind for state in states])
    agreed = ensemble_agreement(plain)
    before = class_shares(plain[anchor])
    candidates = []
    for state, signals, probs, (_, ensemble) in zip(states, views, plain, agreed, strict=True):
        shares = class_shares(probs)
        lost = ((before > MIN_SHARE) & (shares < LOST * before)).nonzero().flatten().tolist()
        candidates.append(
            Candidate(
                state.name,
                state.kind,
                signals,
                signals.mean_consistency,
                share_shift(shares, before),
                sure_agreement(most_likely(probs, 1), plain[anchor]),
                agreement(most_likely(probs, 1), most_likely(plain[anchor], 1))[1],
                ensemble,
                [class_names[c] for c in lost],
                int((before > MIN_SHARE).sum()),
                bool(torch.isfinite(probs).all()),
                state.share,
                float((shares / before)[before > MIN_SHARE].min()),
            )
        )
    return candidates


def to_square(probs: Tensor) -> Tensor:
    """B×C×h×w of any size as B×C×64×64, so that images of all sizes can be compared together."""
    return nn.functional.interpolate(probs, size=(64, 64), mode="bilinear", antialias=True)


def _anchor(kinds: Sequence[Kind]) -> int:
    """The untrained model: on the chosen statistics, else as it came in."""
    return kinds.index("statistics") if "statistics" in kinds else kinds.index("incoming")


def choose(candidates: Sequence[Candidate], images: int | None = None, *, statistics_tried: bool = True) -> Verdict:
    """The most trained candidate of which nothing says that it is worse than the untrained model; else that model.

    Where the target's statistics make the untrained model more consistent, and it needed them, the shift is large, and
    what the stages made of it is preferred; likewise where a network without such statistics was unsure of many pixels
    and learnt to be much more consistent. Elsewhere the incoming model fits the images already: then weights half way
    between its own and the trained ones are all that is taken, which are rarely worse than either (WiSE-FT), and only
    if they stay near it and training did not go far.

    Args:
        candidates: the incoming model, perhaps the same on chosen statistics, then trained ones in order of preference,
            the least preferred first.
        images: how many the model was trained on; fewer than `MIN_IMAGES` say nothing of a trained model.
        statistics_tried: whether the target's norm statistics were compared with the source's; of a network that has
            none, entropy before and consistency after training say whether the shift is large.
    """
    untrained = candidates[_anchor([c.kind for c in candidates])]
    trained = [c for c in candidates if c.kind not in ("incoming", "statistics")]
    enough = not statistics_tried and (images is None or images >= MIN_IMAGES_TO_LEARN)
    incoming = candidates[0]
    reestimated = untrained.kind == "statistics"
    shifted = not _fits(incoming) if reestimated else enough and _learnt_much(untrained, trained)
    rejected = _rejections(untrained, incoming, trained, shifted, images)
    accepted = [c for c in trained if c.name not in rejected]
    # The incoming model if they are equal.
    fallback = max(incoming, untrained, key=lambda c: c.consistency) if shifted else incoming
    chosen = accepted[-1] if accepted else fallback
    return Verdict(
        chosen.name,
        chosen.kind != "incoming",
        _confidence(chosen, untrained),
        _reason(chosen, untrained, rejected),
        [{**asdict(c), "rejected": rejected.get(c.name)} for c in candidates],
    )


def _rejections(
    untrained: Candidate, incoming: Candidate, trained: Sequence[Candidate], shifted: bool, images: int | None
) -> dict[str, str]:
    """Why trained candidates are not handed back, by name."""
    if images is not None and images < MIN_IMAGES:
        few = f"{images} image{'s are' if images > 1 else ' is'} too few to judge a trained model by"
        return {c.name: few for c in trained}
    rejected = {c.name: reason for c in trained if (reason := c.rejection(untrained, incoming, shifted))}
    if shifted or not trained:
        return rejected
    kept = "the incoming model fits the images already, so only blends with it are taken"
    rejected |= {c.name: kept for c in trained if (c.kind != "blend" or c.share > MAX_BLEND) and c.name not in rejected}
    if wrong := _went_wrong(untrained, trained[-1]):
        rejected |= {c.name: wrong for c in trained if c.name not in rejected}
    return rejected


def _went_wrong(untrained: Candidate, last: Candidate) -> str | None:
    """What the last stage says against all training of a model that fits the images; blends with it show less of it."""
    if last.share_shift > MAX_SHARE_SHIFT[False]:
        return f"training gave {last.share_shift:.0%} of the pixels to other classes, though the model fitted"
    if last.least_share < MIN_SHARE_LEFT:
        return f"training left a class only {last.least_share:.0%} of its pixels, though the model fitted"
    before, after = untrained.signals.entropy, last.signals.entropy
    if after < MIN_ENTROPY_LEFT * before:
        return f"training made the model sure of nearly everything (mean entropy {after:.3f} after {before:.3f})"
    overturned = 1 - last.sure_agreement
    if last.consistency < untrained.consistency + max(MIN_GAIN_WHERE_IT_FITS, MIN_GAIN_PER_CHANGE * overturned):
        return (
            f"training changed {overturned:.1%} of the labels of which the model was sure, and hardly made it more "
            f"consistent ({last.consistency:.3f} after {untrained.consistency:.3f})"
        )
    return None


def _fits(incoming: Candidate) -> bool:
    """Whether a model hardly needs the target's statistics, which were chosen."""
    return incoming.agreement >= FITS_AGREEMENT and incoming.signals.entropy < FITS_ENTROPY


def _learnt_much(untrained: Candidate, trained: Sequence[Candidate]) -> bool:
    """Whether the model was unsure of many pixels, and training made it much more consistent."""
    gain = trained[-1].consistency - untrained.consistency if trained else 0.0
    return untrained.signals.entropy >= MIN_ENTROPY and gain >= MIN_CONSISTENCY_GAIN


def _confidence(chosen: Candidate, untrained: Candidate) -> Literal["high", "medium", "low"]:
    if chosen.kind == "incoming":
        return "high"
    gain = chosen.consistency - untrained.consistency
    if chosen.kind == "statistics" or (gain > 0 and chosen.sure_agreement > 0.95):
        return "medium"
    return "low"


def _reason(chosen: Candidate, untrained: Candidate, rejected: Mapping[str, str]) -> str:
    if chosen.kind == "incoming":
        why = list(rejected.values())[-1] if rejected else "nothing was trained"
        return f"the model is handed back as it came in: the adapted one is not to be trusted, {why}"
    if chosen.kind == "statistics":
        why = list(rejected.values())[-1] if rejected else "nothing was trained"
        return f"only the batch-norm statistics changed: the trained model is not to be trusted, {why}"
    return (
        f"{chosen.name}: it keeps {chosen.sure_agreement:.0%} of the labels of which the untrained model was sure, and "
        f"its agreement with itself under mirroring, light and scale is {chosen.consistency:.3f} "
        f"(before training {untrained.consistency:.3f})"
    )
