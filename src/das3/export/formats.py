"""The file formats of exported networks: each is written, and run again from its file."""

from __future__ import annotations

import contextlib
import json
import logging
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from das3.export.network import InferenceNetwork, Shape
from das3.models.extras import library

__all__ = ["FORMATS", "Format"]

Run = Callable[[Tensor], Tensor]


class Format(ABC):
    """A file format.

    Attributes:
        name: as on the command line.
        suffix: of its files.
    """

    name: str
    suffix: str

    @abstractmethod
    def write(
        self, network: InferenceNetwork, example: Tensor, shape: Shape, path: Path, about: Mapping[str, Any]
    ) -> None:
        """Write the network.

        Args:
            network: in evaluation mode.
            example: images B×K×H×W.
            shape: which images the file is to take.
            path: of the file.
            about: kept in the file, as JSON under "das3".

        Raises:
            Exception: whatever the exporter raises on what it can't follow.
        """

    @abstractmethod
    def open(self, path: Path) -> Run:
        """The file as a function of images."""


class Onnx(Format):
    """ONNX, weights inside, run in onnxruntime."""

    name, suffix = "onnx", ".onnx"

    def write(
        self, network: InferenceNetwork, example: Tensor, shape: Shape, path: Path, about: Mapping[str, Any]
    ) -> None:
        """See `Format`; weights lie beside the file only if they are more than 2 GB."""
        for needed in ("onnx", "onnxscript"):
            library(needed, "export")
        names: dict[str, Any] = {"input_names": ["images"], "output_names": [network.output]}
        with _quiet():
            program = torch.onnx.export(_program(network, example, shape), dynamo=True, verbose=False, **names)
            assert program is not None
            program.model.metadata_props["das3"] = json.dumps(about)
            program.save(path)

    def open(self, path: Path) -> Run:
        """See `Format`; on the CPU."""
        runtime = library("onnxruntime", "export")
        session = runtime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        return lambda images: torch.from_numpy(session.run(None, {"images": images.numpy()})[0])


class TorchExport(Format):
    """A torch.export program (.pt2), which PyTorch runs without the network's code."""

    name, suffix = "torch-export", ".pt2"

    def write(
        self, network: InferenceNetwork, example: Tensor, shape: Shape, path: Path, about: Mapping[str, Any]
    ) -> None:
        """See `Format`."""
        with _quiet():
            torch.export.save(_program(network, example, shape), path, extra_files={"das3": json.dumps(about)})

    def open(self, path: Path) -> Run:
        """See `Format`."""
        run: Run = torch.export.load(path).module()
        return run


class TorchScript(Format):
    """A traced TorchScript module, also for C++; PyTorch no longer develops the format."""

    name, suffix = "torchscript", ".ts"

    def write(
        self, network: InferenceNetwork, example: Tensor, shape: Shape, path: Path, about: Mapping[str, Any]
    ) -> None:
        """See `Format`. Tracing can't be told which sizes are open: running the file at others shows it."""
        with _quiet():
            traced = torch.jit.trace(network, (example,), check_trace=False)
            torch.jit.save(traced, str(path), _extra_files={"das3": json.dumps(about)})

    def open(self, path: Path) -> Run:
        """See `Format`."""
        run: Run = torch.jit.load(str(path), map_location="cpu")
        return run


FORMATS: Mapping[str, Format] = {format_.name: format_ for format_ in (Onnx(), TorchExport(), TorchScript())}


def _program(network: InferenceNetwork, example: Tensor, shape: Shape) -> torch.export.ExportedProgram:
    is_open = {0: shape.batch is None, 2: shape.size is None, 3: shape.size is None}
    free = {axis: torch.export.Dim.DYNAMIC for axis, free in is_open.items() if free}
    return torch.export.export(network, (example,), dynamic_shapes=(free,) if free else None, strict=False)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Exporters speak at length of what they do and of what they may do otherwise one day."""
    level = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)
