"""Videos, and cameras' streams, frame by frame through PyAV."""

from __future__ import annotations

import importlib
import os
from collections.abc import Iterator
from fractions import Fraction
from glob import glob
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from das3.errors import DataError

__all__ = ["VideoFrames", "VideoWriter", "find_videos", "is_stream"]

SUFFIXES = frozenset({".mp4", ".m4v", ".mov", ".avi", ".mkv", ".webm", ".mpg", ".mpeg", ".ts", ".wmv"})

_STREAMS = ("rtsp://", "rtsps://", "rtmp://", "http://", "https://", "udp://", "srt://", "/dev/video")


def is_stream(source: str | Path) -> bool:
    """Whether a source is a camera or a stream, which ends when the sender or Ctrl-C ends it."""
    return str(source).startswith(_STREAMS)


def find_videos(source: str | Path) -> list[str]:
    """Videos that a source names: itself, those in a folder and its sub-folders, or those that match a pattern."""
    path = Path(source)
    if is_stream(source):
        return [str(source)]
    if path.is_dir():
        found = [p for p in path.rglob("*") if not any(part.startswith(".") for part in p.relative_to(path).parts)]
    else:
        found = [path] if path.is_file() else [Path(p) for p in glob(str(source), recursive=True)]
    return sorted(str(p) for p in found if p.suffix.lower() in SUFFIXES and p.is_file())


def _av() -> Any:
    try:
        return importlib.import_module("av")
    except ImportError as error:
        raise DataError(f"videos need PyAV ({error}); pip install 'das3[video]'") from error


class VideoFrames:
    """Frames of a video as H×W×3 uint8.

    Args:
        source: file, stream or camera.
        every: take each so-many-th frame, the first one first.

    Attributes:
        rate: frames a second, of those that are taken.
        count: how many are to be expected; 0 if unknown.

    Raises:
        DataError: if PyAV is missing or can't open or decode it.
    """

    def __init__(self, source: str | Path, every: int = 1) -> None:
        self.source, self.every, self.av = str(source), every, _av()
        form = "v4l2" if self.source.startswith("/dev/video") else None
        try:
            self.container = self.av.open(self.source, format=form)
            self.stream = self.container.streams.video[0]
        except (self.av.FFmpegError, OSError, IndexError) as error:
            raise DataError(f"can't open video {source} ({error}); give a file that ffmpeg plays") from error
        self.stream.thread_type = "AUTO"
        self.rate = Fraction(self.stream.average_rate or 25) / every
        self.count = -(-int(self.stream.frames or 0) // every)

    def __iter__(self) -> Iterator[NDArray[np.uint8]]:
        try:
            for number, frame in enumerate(self.container.decode(self.stream)):
                if number % self.every == 0:
                    yield frame.to_ndarray(format="rgb24")
        except self.av.FFmpegError as error:
            raise DataError(f"can't read video {self.source} ({error}); repair the file") from error
        finally:
            self.container.close()


class VideoWriter:
    """An MP4 video (H.264); a file of that name appears when the last frame is in.

    Args:
        path: of the file; folders above it are made.
        shape: (height, width) of the frames; odd sides lose their last row or column, which the format wants.
        rate: frames a second.
    """

    def __init__(self, path: str | Path, shape: tuple[int, int], rate: Fraction) -> None:
        self.av, self.path = _av(), Path(path)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.part = self.path.with_name(f".{self.path.name}.{os.getpid()}.part")
        self.container = self.av.open(str(self.part), "w", format="mp4")
        self.stream = self.container.add_stream("libx264", rate=rate)
        self.shape = (shape[0] // 2 * 2, shape[1] // 2 * 2)
        self.stream.height, self.stream.width = self.shape
        self.stream.pix_fmt = "yuv420p"

    def write(self, frame: NDArray[np.uint8]) -> None:
        """Append H×W×3."""
        cut = np.ascontiguousarray(frame[: self.shape[0], : self.shape[1]])
        self.container.mux(self.stream.encode(self.av.VideoFrame.from_ndarray(cut, format="rgb24")))

    def __enter__(self) -> VideoWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None or issubclass(kind, KeyboardInterrupt):  # a stream ends so, and what is there is kept
            self.container.mux(self.stream.encode())
            self.container.close()
            self.part.replace(self.path)
        else:
            self.container.close()
            self.part.unlink(missing_ok=True)
