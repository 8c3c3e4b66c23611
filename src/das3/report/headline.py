"""What a report says first: is the model better, worse, or is it not known?"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from das3.report.numbers import percent, points, signed
from das3.report.run_folder import RunFolder

__all__ = ["Headline", "headline"]

_EQUAL = 0.05  # points of mIoU that are not spoken of


@dataclass(frozen=True)
class Headline:
    """The first lines of a report.

    Attributes:
        tone: "good", "bad", "same", or "open" where nobody knows.
        title: the answer in a few words.
        lines: what else is to be said.
        before: mIoU of the incoming model in percent, None without evaluation labels.
        after: that of the model handed back.
    """

    tone: Literal["good", "bad", "same", "open"]
    title: str
    lines: tuple[str, ...]
    before: float | None = None
    after: float | None = None


def headline(run: RunFolder, *, unchanged: bool) -> Headline:
    """Evaluation labels decide where there are some, else the guard's verdict; else nobody knows, and that is said.

    Args:
        run: the run folder.
        unchanged: the weights handed back are those that came in.
    """
    words = _words(run.verdict)
    before = run.incoming_row.get("miou")
    after = run.returned().get("miou")
    if before is not None and after is not None:
        return _measured(float(before), float(after), words)
    if unchanged:
        return Headline("same", "das3 handed back the model that came in", words or (_same(),))
    if words:
        return Headline("open", words[0], (*words[1:], _unmeasured()))
    return Headline("open", "The model changed; whether for the better was not measured", (_unmeasured(),))


def _measured(before: float, after: float, words: tuple[str, ...]) -> Headline:
    change = after - before
    figures = f"mIoU from {points(before)} to {percent(after / 100)} ({signed(change)})"
    if change < -_EQUAL:
        advice = "The adapted model is worse on your evaluation images. Keep the model that came in."
        return Headline("bad", f"Worse: {figures}", (advice, *words), before, after)
    if change <= _EQUAL:
        return Headline("same", f"As good as before: mIoU {percent(before / 100)}", words, before, after)
    return Headline("good", f"Better: {figures}", ("Measured on your evaluation images.", *words), before, after)


def _words(verdict: dict[str, Any]) -> tuple[str, ...]:
    """The verdict's own words: the reason, what was chosen, how sure it is."""
    lines = [str(verdict[key]) for key in ("reason", "text") if verdict.get(key)]
    if verdict.get("chosen"):
        lines.append(f"Chosen: {verdict['chosen']}.")
    if verdict.get("confidence") is not None:
        sure = verdict["confidence"]
        lines.append(f"Confidence: {sure if isinstance(sure, str) else format(sure, '.2g')}.")
    return tuple(lines)


def _same() -> str:
    return "The weights are bit-equal to those that came in."


def _unmeasured() -> str:
    return "No evaluation labels were given, so nothing here is measured: see the pictures and the points to check."
