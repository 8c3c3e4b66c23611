"""TensorBoard's files, written without its thread: a full disk is then an error of the run, not of a thread."""

from __future__ import annotations

import io
import os
import socket
import time
from collections.abc import Mapping
from itertools import count
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

__all__ = ["EventFile"]

_number = count()


class EventFile:
    """Numbers and pictures for TensorBoard, in a new file of a folder.

    Args:
        folder: of all files of the run.
    """

    def __init__(self, folder: Path) -> None:
        from tensorboard.compat.proto.event_pb2 import Event  # slow to import
        from tensorboard.summary.writer.record_writer import RecordWriter

        folder.mkdir(parents=True, exist_ok=True)
        name = f"events.out.tfevents.{int(time.time()):010d}.{socket.gethostname()}.{os.getpid()}.{next(_number)}"
        self.make = Event
        self.file = (folder / name).open("wb")
        self.writer = RecordWriter(self.file)
        self._write(Event(wall_time=time.time(), file_version="brain.Event:2"))

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        """Write numbers of one step."""
        from tensorboard.compat.proto.summary_pb2 import Summary

        self._summary(Summary(value=[Summary.Value(tag=n, simple_value=v) for n, v in values.items()]), step)

    def picture(self, name: str, pixels: NDArray[np.uint8], step: int) -> None:
        """Write a picture H×W×3."""
        from tensorboard.compat.proto.summary_pb2 import Summary

        png = io.BytesIO()
        Image.fromarray(pixels).save(png, "PNG")
        height, width = pixels.shape[:2]
        image = Summary.Image(height=height, width=width, colorspace=3, encoded_image_string=png.getvalue())
        self._summary(Summary(value=[Summary.Value(tag=name, image=image)]), step)

    def _summary(self, summary: object, step: int) -> None:
        self._write(self.make(wall_time=time.time(), step=step, summary=summary))

    def _write(self, event: object) -> None:
        self.writer.write(event.SerializeToString())  # type: ignore[attr-defined]
        self.file.flush()

    def close(self) -> None:
        """Close the file."""
        self.file.close()
