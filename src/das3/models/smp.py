"""Networks of segmentation-models-pytorch: `smp:NAME`, or a folder that its save_pretrained wrote."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from das3.errors import ModelError
from das3.models.extras import library
from das3.models.metadata import ModelMetadata
from das3.models.plain import Blueprint, build, without_downloads
from das3.models.trust import refuse_remote
from das3.models.weights import fit, read_weights
from das3.segmenter import Origin

__all__ = ["blueprint", "is_smp", "is_smp_folder", "load_folder", "save_folder"]


def blueprint(name: str, args: Mapping[str, Any]) -> Blueprint:
    """How smp builds the network; no encoder weights are downloaded unless `args` asks for them.

    Args:
        name: of the class, such as "Unet".
        args: of the class, such as encoder_name.

    Raises:
        ModelError: if smp is missing or has no such network.
    """
    architectures = {
        c.__name__: c for c in library("segmentation_models_pytorch", "smp").MODEL_ARCHITECTURES_MAPPING.values()
    }
    if name not in architectures:
        raise ModelError(f"smp:{name}: no such network; there are: {', '.join(architectures)}")
    return Blueprint(f"smp:{name}", architectures[name], {"encoder_weights": None, **args}, "classes")


def is_smp_folder(folder: Path) -> bool:
    """Whether smp's save_pretrained wrote the folder."""
    return "_model_class" in _config(folder)


def _config(folder: Path) -> dict[str, Any]:
    path = folder / "config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"{path}: not JSON ({error}); write it again with save_pretrained") from None
    return config if isinstance(config, dict) else {}


def load_folder(folder: Path) -> tuple[nn.Module, ModelMetadata]:
    """Open what save_pretrained wrote; encoder weights that its config names are not downloaded only to be replaced.

    Raises:
        ModelError: if smp is missing, or the weights don't fit.
    """
    config = _config(folder)
    refuse_remote(config, folder / "config.json")
    name = str(config.pop("_model_class"))
    plan = blueprint(name, without_downloads({k: v for k, v in config.items() if not k.startswith("_")}))
    model, _ = build(plan, None, None)
    files = [folder / n for n in ("model.safetensors", "pytorch_model.bin") if (folder / n).is_file()]
    if not files:
        raise ModelError(f"{folder}: has no model.safetensors")
    fit(model, read_weights(files[0]))
    return model, ModelMetadata(origin=Origin("smp", str(folder)))


def is_smp(model: nn.Module) -> bool:
    """Whether a network is one of smp's, as far as it is loaded at all."""
    smp = sys.modules.get("segmentation_models_pytorch")
    return smp is not None and isinstance(model, smp.base.SegmentationModel)


def save_folder(model: nn.Module, folder: Path) -> None:
    """Write the network as smp does; `smp.from_pretrained(folder)` opens it."""
    model.save_pretrained(folder)  # type: ignore[operator]
