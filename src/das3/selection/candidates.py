"""The candidates that a run may hand back, measured side by side, and the rule that chooses among them without labels."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from das3.selection.bn_statistics import mean_consistency
from das3.selection.signals import (
    Signals,
    class_shares,
    ensemble_agreement,
    share_shift,
    signals_of,
    sure_agreement,
    view_predictions,
)

__all__ = ["Candidate", "Verdict", "choose", "measure_candidates"]

Kind = Literal["incoming", "statistics", "snapshot", "stage", "blend"]

MAX_SHARE_SHIFT = 0.15
"""Class shares of a trained candidate may differ from the untrained model's by this total variation."""
MIN_SURE_AGREEMENT = 0.9
"""Share of the pixels of which the untrained model was sure that a trained candidate has to label alike."""
MIN_SHARE = 0.002
"""A class that the untrained model gives this share of the pixels counts as seen."""
LOST = 0.2
"""A class is lost if its share falls below this part of what it was."""
MAX_CONSISTENCY_DROP = 0.005
"""A trained candidate may be this much less consistent than the untrained model."""


@dataclass(frozen=True)
class Candidate:
    """A model that may be handed back, and what its predictions on unlabelled images say.

    Attributes:
        name: of the candidate.
        kind: the incoming model; the incoming weights on chosen statistics; weights during or after a stage; or weights
            between the incoming and the final ones.
        signals: of its own predictions.
        consistency: mean share of labels that stay under mirroring, light and scale.
        share_shift: total variation distance of its class shares to the untrained model's.
        sure_agreement: share of the pixels of which the untrained model was sure that are labelled alike.
        ensemble_agreement: mean IoU with the mean prediction of all candidates.
        lost: classes that the untrained model saw and this one nearly never predicts.
        finite: whether its predictions are numbers.
    """

    name: str
    kind: Kind
    signals: Signals
    consistency: float
    share_shift: float
    sure_agreement: float
    ensemble_agreement: float
    lost: tuple[str, ...] = ()
    finite: bool = True

    def rejection(self, untrained: Candidate) -> str | None:
        """Why this trained candidate is not to be trusted, None if nothing speaks against it."""
        if not self.finite:
            return "its predictions are not finite"
        if self.lost:
            return f"it hardly predicts {', '.join(self.lost)} any more"
        if self.share_shift > MAX_SHARE_SHIFT:
            return f"it gives {self.share_shift:.0%} of the pixels to other classes than before, in total"
        if self.sure_agreement < MIN_SURE_AGREEMENT:
            return f"it changed {1 - self.sure_agreement:.0%} of the pixels of which the model was sure"
        if self.consistency < untrained.consistency - MAX_CONSISTENCY_DROP:
            return f"it is less consistent ({self.consistency:.1%} after {untrained.consistency:.1%})"
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
    states: Sequence[tuple[str, Kind, Callable[[], Mapping[str, Tensor]]]],
    batches: Sequence[Tensor],
    class_names: Sequence[str],
) -> list[Candidate]:
    """Load one candidate's weights after the other and measure its signals.

    Args:
        segmenter: takes the weights; ends with those of the last candidate.
        states: (name, kind, function that returns the weights) of each candidate; the untrained model's come first.
        batches: of images, see `das3.selection.bn_statistics.sample_batches`.
        class_names: of the model.
    """
    views, plain = [], []
    for _, _, weights in states:
        segmenter.load_state_dict(weights())
        found = view_predictions(segmenter, batches)
        views.append(signals_of(found))
        plain.append(torch.cat([_square(probs) for probs in found["plain"]]))
    anchor = _anchor([kind for _, kind, _ in states])
    agreed = ensemble_agreement(plain)
    before = class_shares(plain[anchor])
    candidates = []
    for (name, kind, _), signals, probs, (_, ensemble) in zip(states, views, plain, agreed, strict=True):
        shares = class_shares(probs)
        lost = ((before > MIN_SHARE) & (shares < LOST * before)).nonzero().flatten().tolist()
        candidates.append(
            Candidate(
                name,
                kind,
                signals,
                mean_consistency(signals),
                share_shift(shares, before),
                sure_agreement(probs.argmax(dim=1), plain[anchor]),
                ensemble,
                tuple(class_names[c] for c in lost),
                bool(torch.isfinite(probs).all()),
            )
        )
    return candidates


def _square(probs: Tensor) -> Tensor:
    """B×C×h×w of any size as B×C×64×64, so that images of all sizes can be compared together."""
    return nn.functional.interpolate(probs, size=(64, 64), mode="bilinear", antialias=True)


def _anchor(kinds: Sequence[Kind]) -> int:
    """The untrained model: on the chosen statistics, else as it came in."""
    return kinds.index("statistics") if "statistics" in kinds else kinds.index("incoming")


def choose(candidates: Sequence[Candidate]) -> Verdict:
    """The last candidate of which nothing says that it is worse than the untrained model; else the untrained model.

    Args:
        candidates: the incoming model, perhaps the same on chosen statistics, then trained ones in order of preference,
            the least preferred first.
    """
    untrained = candidates[_anchor([c.kind for c in candidates])]
    trained = [c for c in candidates if c.kind not in ("incoming", "statistics")]
    rejected = {c.name: reason for c in trained if (reason := c.rejection(untrained))}
    accepted = [c for c in trained if c.name not in rejected]
    chosen = accepted[-1] if accepted else untrained
    return Verdict(
        chosen.name,
        chosen.kind != "incoming",
        _confidence(chosen, untrained),
        _reason(chosen, untrained, rejected),
        [{**asdict(c), "rejected": rejected.get(c.name)} for c in candidates],
    )


def _confidence(chosen: Candidate, untrained: Candidate) -> Literal["high", "medium", "low"]:
    if chosen.kind == "incoming":
        return "high"
    gain = chosen.consistency - untrained.consistency
    if chosen.kind == "statistics" or (
        gain > MAX_CONSISTENCY_DROP and chosen.sure_agreement > (1 + MIN_SURE_AGREEMENT) / 2
    ):
        return "medium"
    return "low"


def _reason(chosen: Candidate, untrained: Candidate, rejected: Mapping[str, str]) -> str:
    if chosen.kind == "incoming":
        why = next(reversed(rejected.values()), "nothing was trained")
        return f"the model is handed back as it came in: the adapted one is not to be trusted, {why}"
    if chosen.kind == "statistics":
        why = next(reversed(rejected.values()), "nothing was trained")
        return f"only the batch-norm statistics changed: the trained model is not to be trusted, {why}"
    return (
        f"{chosen.name}: it keeps {chosen.sure_agreement:.0%} of the labels of which the untrained model was sure and is "
        f"{chosen.consistency:.1%} consistent under mirroring, light and scale ({untrained.consistency:.1%} before)"
    )
