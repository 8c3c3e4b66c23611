"""Making the report of a run: during the run, or later from its folder."""

from __future__ import annotations

import html
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from das3.data.images import Images
from das3.errors import RecipeError
from das3.files import write_atomically
from das3.report.capture import Capture, Track, capture, untracked
from das3.report.findings import compare_captures
from das3.report.run_folder import RunFolder
from das3.segmenter import Segmenter

__all__ = ["Report", "RunReporter", "write_report"]


@dataclass(frozen=True)
class Report:
    """A report on disk; as the last value of a notebook's cell it is shown there.

    Attributes:
        path: of the HTML file.
    """

    path: Path

    def html(self) -> str:
        """The page."""
        return self.path.read_text(encoding="utf-8")

    def _repr_html_(self) -> str:
        """The page in a frame of its own, so that its style and script don't touch the notebook's."""
        page = html.escape(self.html(), quote=True)
        return (
            f'<iframe srcdoc="{page}" sandbox="allow-scripts" title="das3 report" '
            'style="width:100%;height:800px;border:1px solid #8884;border-radius:8px"></iframe>'
        )


def write_report(
    run: str | Path,
    *,
    incoming: Segmenter | None = None,
    adapted: Segmenter | None = None,
    images: Images | None = None,
    out: str | Path | None = None,
    track: Track = untracked,
) -> Report:
    """Write the report of a finished run.

    Without models and images, the predictions that the run kept (RUN/work/report) are used. Nothing else is read: no
    labels, no source data.

    Args:
        run: the run folder.
        incoming: the model that came in; its predictions are made anew.
        adapted: the model that was handed back; likewise.
        images: target images at the size that the models take them, needed with `incoming` or `adapted`.
        out: the HTML file; RUN/report.html when None.
        track: shows progress.

    Returns:
        The report.

    Raises:
        RecipeError: if the folder holds no run, or predictions are missing and can't be made.
        ModelError: if the two models' classes differ.
    """
    from das3.report.page import report_html  # jinja2 is needed only now

    folder = RunFolder.open(run)
    for model, place in ((incoming, folder.incoming), (adapted, folder.adapted)):
        if model is not None and images is not None:
            capture(model, images, place, track=track)
        if not Capture.is_complete(place):
            raise RecipeError(
                f"{run} keeps no predictions of the {place.name} model; name --model and --images, and they are made"
            )
    before, after = Capture(folder.incoming), Capture(folder.adapted)
    findings = compare_captures(before, after, folder.pseudo_labels())
    path = Path(out) if out is not None else folder.folder / "report.html"
    write_atomically(path, report_html(folder, before, after, findings))
    return Report(path)


class RunReporter:
    """The report of a run that is going on. Whatever goes wrong with it is said in one line and never stops the run.

    Args:
        folder: of the run.
        on: make a report at all; false also on all processes but the first.
        say: shows one line.
        track: shows progress.
    """

    def __init__(self, folder: Path, *, on: bool, say: Callable[[str], None], track: Track = untracked) -> None:
        self.folder, self.on, self.say, self.track = folder, on, say, track

    def before(self, segmenter: Segmenter, images: Images) -> None:
        """Keep what the incoming model predicts, before anything is trained: no copy of the model is needed later."""
        self._attempt(lambda: self._capture(segmenter, images, "incoming"))

    def after(self, segmenter: Segmenter, images: Images) -> None:
        """Keep what the adapted model predicts."""
        self._attempt(lambda: self._capture(segmenter, images, "adapted"))

    def write(self) -> None:
        """Write RUN/report.html; the model's files and summary.json are there by now."""
        self._attempt(lambda: write_report(self.folder))

    def _capture(self, segmenter: Segmenter, images: Images, which: str) -> None:
        capture(segmenter, images, getattr(RunFolder(self.folder, {}, {}), which), track=self.track)

    def _attempt(self, what: Callable[[], object]) -> None:
        if not self.on:
            return
        try:
            what()
        except Exception as error:  # a report is worth less than the run
            self.on = False
            reason = " ".join(str(error).split()) or type(error).__name__
            self.say(f"report: not made ({reason}); the run goes on; try again with: das3 report {self.folder}")
