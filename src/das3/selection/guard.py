"""The guard of a run: it chooses norm statistics, notices a collapse, and chooses which model is handed back."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from das3.ema import copy_weights
from das3.files import write_atomically
from das3.halves import in_halves
from das3.losses import most_likely
from das3.norms import NormStatistics, running_statistics
from das3.segmenter import Segmenter
from das3.selection.bn_statistics import StatisticsChoice, choose_bn_statistics, sample_batches
from das3.selection.candidates import Kind, State, Verdict, choose, measure_candidates
from das3.selection.carried_statistics import carry_statistics, put_statistics
from das3.stages.context import StageContext

__all__ = ["Guard", "GuardMode", "StageStopped"]

GuardMode = Literal["best", "stop", "off"]
"""What a run does so that it does not hand back a worse model: "best" chooses among the incoming model and all that the
stages made of it; "stop" only steps back when a stage collapses; "off" hands back what the last stage left."""

BLENDS = (0.25, 0.5, 0.75)
"""Shares of the final weights in the blends with the incoming ones that are candidates too (WiSE-FT)."""
SNAPSHOTS = 2
"""Weights within a stage that are candidates too."""
MAX_COLLAPSE_SHIFT = 0.7
"""A stage has collapsed if this share of the pixels went to other classes, in total variation."""


class StageStopped(Exception):
    """A stage collapsed: its weights are not to be used. Internal to a run."""


class Guard:
    """Keeps what is needed to judge a run: the incoming weights, some images, where the candidates' weights are.

    Args:
        mode: see `GuardMode`.
        segmenter: the model as it came in, on the device.
        context: of the run's images; its folder is where the choice of statistics is kept.
        load: reads the weights of a candidate by its file.
    """

    def __init__(
        self, mode: GuardMode, segmenter: Segmenter, context: StageContext, load: Callable[[Path], Mapping[str, Tensor]]
    ) -> None:
        self.mode, self.segmenter, self.context, self.load = mode, segmenter, context, load
        self.incoming = {name: value.cpu() for name, value in copy_weights(segmenter).items()}
        self.statistics: StatisticsChoice | None = None
        self.stopped: str | None = None
        self._batches: list[Tensor] | None = None
        self._shares: Tensor | None = None
        self._moved: dict[str, list[NormStatistics]] = {}
        self._trained: Callable[[], Mapping[str, Tensor]] = lambda: self.incoming
        self._states: list[State] = [State("incoming", "incoming", lambda: self.incoming)]

    @property
    def snapshots(self) -> int:
        """How many snapshots the loop takes of each stage."""
        return SNAPSHOTS if self.mode != "off" else 0

    @property
    def batches(self) -> list[Tensor]:
        """Some target images, the same whenever they are asked for."""
        if self._batches is None:
            self._batches = sample_batches(self.context)
        return self._batches

    def choose_statistics(self) -> StatisticsChoice:
        """Choose the norm statistics of the incoming model and put it on them; a resumed run chooses as before."""
        file = self.context.folder / "bn_statistics.json"
        self.statistics = choose_bn_statistics(self.context, self.batches)
        write_atomically(file, json.dumps(describe_statistics(self.statistics), indent=1))
        if self.statistics.target_weight:
            weights = {name: value.cpu() for name, value in copy_weights(self.segmenter).items()}
            self._states.append(State("statistics", "statistics", lambda: weights))
        return self.statistics

    def add(self, name: str, kind: Kind, file: Path) -> None:
        """Let the weights in a file be a candidate; later ones are preferred to earlier ones."""
        self._trained = lambda: self.load(file)
        self._states.append(State(name, kind, lambda: self._carried(name, self.load(file))))

    @property
    def keeps_statistics(self) -> bool:
        """Whether the incoming model stays on its own statistics although others were tried."""
        return self.statistics is not None and not self.statistics.target_weight and bool(self.statistics.source)

    def _carried(self, name: str, weights: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """A candidate's weights on the statistics that were chosen, moved as far as the weights moved the target's.

        Stages train on the target's statistics; where the source's are better, what they leave is put back on them.
        """
        if not self.keeps_statistics or self.statistics is None:
            return weights
        with self._weights(weights):
            if name in self._moved:  # a pass over the images
                put_statistics(self.segmenter, self._moved[name])
            else:
                self.context.reestimate_bn()
                carry_statistics(self.segmenter, self.statistics.source, self.statistics.target)
                self._moved[name] = running_statistics(self.segmenter)
            return {name: value.cpu() for name, value in copy_weights(self.segmenter).items()}

    def check(self, weights: Mapping[str, Tensor]) -> None:
        """Notice a collapse.

        Raises:
            StageStopped: if the weights give most pixels to other classes than the untrained model, or are not finite.
        """
        if self.mode == "off":
            return
        if not all(torch.isfinite(value).all() for value in weights.values() if value.is_floating_point()):
            raise StageStopped("its weights are not finite")
        before = self._untrained_shares()
        with self._weights(weights):
            shares = self._class_shares()
        shift = float((shares - before).abs().sum() / 2)
        if shift > MAX_COLLAPSE_SHIFT:
            raise StageStopped(f"it gave {shift:.0%} of the pixels to other classes")

    def verdict(self) -> Verdict:
        """Choose among the candidates and give the model the chosen weights."""
        states = self._candidates()
        with self.context.fabric.autocast():
            candidates = measure_candidates(
                self.segmenter, states, self.batches, self.segmenter.class_names, self.context.rgb
            )
        tried = self.statistics is None or bool(self.statistics.source)
        verdict = choose(candidates, len(self.context.images), statistics_tried=tried)
        chosen = next(state for state in states if state.name == verdict.chosen)
        self.segmenter.load_state_dict(chosen.load())
        return verdict

    def candidate_weights(self) -> Iterator[tuple[str, Mapping[str, Tensor]]]:
        """Name and weights of every candidate."""
        yield from ((state.name, state.load()) for state in self._candidates())

    def _candidates(self) -> list[State]:
        """In order of preference: untrained models, stages in order, blends with the last one, and this itself."""
        untrained = [state for state in self._states if state.kind in ("incoming", "statistics")]
        trained = self._states[len(untrained) :]
        if not trained:
            return untrained
        *earlier, final = trained
        blends = [
            State(name, "blend", lambda name=name, share=share: self._blend(name, share), share)  # type: ignore[misc]
            for share in BLENDS
            for name in (f"{share:.0%} of {final.name}",)
        ]
        return [*untrained, *earlier, *blends, final]

    def _blend(self, name: str, share: float) -> Mapping[str, Tensor]:
        """Weights between the incoming and the last stage's; where statistics are kept, they are carried to the blend:
        those in between fit neither."""
        trained = self._trained()
        mixed = {
            key: value.lerp(trained[key].to(value), share) if value.is_floating_point() else trained[key]
            for key, value in self.incoming.items()
        }
        return self._carried(name, mixed)

    def untrained(self) -> Mapping[str, Tensor]:
        """The incoming weights, on the chosen statistics."""
        return [state for state in self._states if state.kind in ("incoming", "statistics")][-1].load()

    def _untrained_shares(self) -> Tensor:
        if self._shares is None:
            with self._weights(self.untrained()):
                if self.keeps_statistics and self.statistics is not None:  # stages train on the target's all the same
                    put_statistics(self.segmenter, self.statistics.target)
                self._shares = self._class_shares()
        return self._shares

    @torch.no_grad()
    def _class_shares(self) -> Tensor:
        def counted(images: Tensor) -> Tensor:
            with self.context.fabric.autocast():
                labels = most_likely(self.segmenter(images), 1).flatten()
            return torch.bincount(labels, minlength=self.segmenter.num_classes)

        counts: list[Tensor] = []
        for images in self.batches:
            counts += in_halves(lambda part, images=images: [counted(images[part])], len(images))  # type: ignore[misc]
        total = torch.stack(counts).sum(dim=0).double().cpu()
        return total / total.sum()

    @contextmanager
    def _weights(self, weights: Mapping[str, Tensor]) -> Iterator[None]:
        """Within, the model has other weights and is in evaluation mode."""
        own, modes = copy_weights(self.segmenter), [(m, m.training) for m in self.segmenter.modules()]
        try:
            self.segmenter.load_state_dict(weights)
            self.segmenter.eval()
            yield
        finally:
            self.segmenter.load_state_dict(own)
            for module, mode in modes:
                module.training = mode


def in_words(verdict: Verdict | None, stopped: str | None, before: float | None, after: float | None) -> list[str]:
    """The last lines on the screen: whether the model changed for the better, and how sure das3 is.

    Args:
        verdict: of the guard, if it chose.
        stopped: which stage collapsed, and why.
        before: mIoU of the incoming model in percent, if labels were given.
        after: that of the model that is handed back.
    """
    lines = [stopped] if stopped else []
    if verdict is not None:
        sure = {"high": "das3 is sure of it", "medium": "das3 is fairly sure of it", "low": "look at the report first"}
        changed = "changed, judged to be no worse" if verdict.changed else "unchanged"
        lines.append(f"verdict: the model is {changed} ({sure[verdict.confidence]}); {verdict.reason}")
    if before is not None and after is not None:
        worse = " WORSE than the model that came in, on your labels" if after < before - 0.05 else ""
        lines.append(f"mIoU {before:.1f} -> {after:.1f}{worse}")
    return lines


def describe_statistics(choice: StatisticsChoice) -> dict[str, Any]:
    """For summary.json."""
    consistency = {f"{weight:g}": round(value, 4) for weight, value in choice.consistency.items()}
    return {"target_weight": choice.target_weight, "consistency": consistency, "reason": choice.reason}
