"""Label the frames of a video one after the other, each written at once: memory holds one frame."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import ExitStack, suppress
from fractions import Fraction
from pathlib import Path
from typing import Unpack

import numpy as np
from numpy.typing import NDArray

from das3.data.video import VideoWriter
from das3.data.visualize import legend, overlay, palette
from das3.evaluation.predict import PredictOptions, predict_labels
from das3.evaluation.prediction_files import write_prediction
from das3.segmenter import Segmenter

__all__ = ["label_video"]


def label_video(
    segmenter: Segmenter,
    frames: Iterable[NDArray[np.uint8]],
    folder: Path,
    name: str,
    *,
    rate: Fraction,
    values: Sequence[int] | None = None,
    overlays: bool = False,
    grey: bool = False,
    **how: Unpack[PredictOptions],
) -> int:
    """Write labels/NAME/000000.png and so on and, on request, the video with the classes over it, overlays/NAME.mp4.

    Args:
        segmenter: the model.
        frames: H×W×3 uint8, all of one size. Ctrl-C ends them, as a stream's end does.
        folder: where to.
        name: of the video.
        rate: frames a second.
        values: see `das3.evaluation.prediction_files.write_prediction`.
        overlays: also write the video, with a legend of all classes under it.
        grey: without a palette.
        how: see `PredictOptions`.

    Returns:
        How many frames were labelled.
    """
    colors, count = palette(segmenter.class_names), 0
    with ExitStack() as stack, suppress(KeyboardInterrupt):
        writer: VideoWriter | None = None
        key: NDArray[np.uint8] | None = None
        for frame in frames:
            labels = predict_labels(segmenter, frame, **how)
            write_prediction(folder, f"{name}/{count:06d}", labels, values=values, shown=None if grey else colors)
            if overlays:
                if writer is None or key is None:
                    key = legend(segmenter.class_names, colors, frame.shape[1])
                    shape = (frame.shape[0] + len(key), frame.shape[1])
                    writer = stack.enter_context(VideoWriter(folder / "overlays" / f"{name}.mp4", shape, rate))
                writer.write(np.concatenate([overlay(frame, labels, colors), key]))
            count += 1
    return count
