"""TensorBoard's files, written without its thread: a full disk is then an error of the run, not of a thread."""

from __future__ import annotations

import os
import socket
import time
from itertools import count
from pathlib import Path

__all__ = ["EventFile"]

_number = count()


class EventFile:
    """Scalars for TensorBoard, in a new file of a folder.

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

    def add(self, scalars: dict[str, float], step: int) -> None:
        """Write scalars of one step."""
        from tensorboard.compat.proto.summary_pb2 import Summary

        values = [Summary.Value(tag=name, simple_value=value) for name, value in scalars.items()]
        self._write(self.make(wall_time=time.time(), step=step, summary=Summary(value=values)))

    def _write(self, event: object) -> None:
        self.writer.write(event.SerializeToString())  # type: ignore[attr-defined]
        self.file.flush()

    def close(self) -> None:
        """Close the file."""
        self.file.close()
