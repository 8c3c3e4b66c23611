"""Networks of Hugging Face transformers: a folder that save_pretrained wrote, or a hub id."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from das3.errors import ModelError
from das3.models.extras import library
from das3.models.metadata import ModelMetadata
from das3.models.weights import mismatch
from das3.segmenter import Origin, Preprocess, Segmenter

__all__ = ["download", "is_huggingface", "load_folder", "save_folder"]


def download(model_id: str) -> Path:
    """Fetch a model from the Hugging Face hub, or find it in the local cache.

    Raises:
        ModelError: if it is in neither.
    """
    hub = library("huggingface_hub", "huggingface")
    missing = (hub.errors.HfHubHTTPError, hub.errors.HFValidationError, OSError)
    try:
        return Path(hub.snapshot_download(model_id, allow_patterns=["*.json", "*.safetensors", "pytorch_model*.bin"]))
    except missing as error:
        reason = str(error).strip().split("\n")[0]
        raise ModelError(
            f"{model_id}: no such folder here, and not on the Hugging Face hub as far as can be reached ({reason})"
        ) from None


def load_folder(folder: Path) -> tuple[nn.Module, ModelMetadata]:
    """Open what save_pretrained wrote: network, class names, and preprocessing if there is an image processor.

    Raises:
        ModelError: if transformers is missing, the folder holds no semantic segmentation network, or its weights don't
            fit (a backbone without a head, say).
    """
    transformers = library("transformers", "huggingface")
    try:
        with _no_progress_bar(transformers):
            model, info = transformers.AutoModelForSemanticSegmentation.from_pretrained(
                folder, local_files_only=True, ignore_mismatched_sizes=True, output_loading_info=True
            )
    except (OSError, ValueError, RuntimeError, KeyError, ImportError) as error:
        reason = str(error).strip().split("\n")[0].split(" for this kind of AutoModel")[0]
        raise ModelError(f"{folder}: not a semantic segmentation model that transformers can open ({reason})") from None
    mismatched = [str(k[0] if isinstance(k, tuple) else k) for k in info["mismatched_keys"]]
    if info["missing_keys"] or mismatched:
        raise mismatch(folder, missing=sorted(info["missing_keys"]), wrong=sorted(mismatched))
    processor = _processor(transformers, folder)
    preprocess = preprocess_of(processor) if processor is not None else Preprocess()
    return model, ModelMetadata(
        preprocess, class_names_of(model), origin=Origin("huggingface", str(folder), processor=processor)
    )


@contextlib.contextmanager
def _no_progress_bar(transformers: Any) -> Iterator[None]:
    shown = transformers.logging.is_progress_bar_enabled()
    transformers.logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            transformers.logging.enable_progress_bar()


def _processor(transformers: Any, folder: Path) -> Any:
    if not (folder / "preprocessor_config.json").is_file():
        return None
    try:
        return transformers.AutoImageProcessor.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, ImportError) as error:
        raise ModelError(f"{folder / 'preprocessor_config.json'}: transformers can't open it ({error})") from None


def preprocess_of(processor: Any) -> Preprocess:
    """What a Hugging Face image processor does to an image, as far as a network sees it."""

    def setting(name: str, default: Any) -> Any:
        value = getattr(processor, name, None)
        return default if value is None else value

    normalised = setting("do_normalize", False)
    factor = setting("rescale_factor", 1 / 255) if setting("do_rescale", True) else 1.0
    return Preprocess(
        mean=_triple(setting("image_mean", 0.0)) if normalised else (0.0, 0.0, 0.0),
        std=_triple(setting("image_std", 1.0)) if normalised else (1.0, 1.0, 1.0),
        value_range=255 * factor,
        channels="bgr" if setting("do_flip_channel_order", False) else "rgb",
        size=_size(setting("size", {})) if setting("do_resize", False) else None,
    )


def _triple(value: float | Sequence[float]) -> tuple[float, float, float]:
    values = [float(value)] * 3 if isinstance(value, int | float) else [float(v) for v in value]
    return (values[0], values[1], values[2])


def _size(size: Any) -> int | tuple[int, int] | None:
    # A dict, or in newer versions of transformers an object with the same entries.
    height, width, shortest = (
        size.get(name) if isinstance(size, dict) else getattr(size, name, None)
        for name in ("height", "width", "shortest_edge")
    )
    if height and width:
        return (int(height), int(width))
    return int(shortest) if shortest else None


def class_names_of(model: nn.Module) -> tuple[str, ...] | None:
    """Class names in a Hugging Face config, None where it has only placeholders or one sigmoid's."""
    names: dict[int, str] = getattr(model.config, "id2label", None) or {}
    if len(names) < 2 or all(str(n).startswith("LABEL_") for n in names.values()):
        return None
    return tuple(str(names[i]) for i in sorted(names))


def is_huggingface(model: nn.Module) -> bool:
    """Whether a network is one of transformers', as far as it is loaded at all."""
    transformers = sys.modules.get("transformers")
    return transformers is not None and isinstance(model, transformers.PreTrainedModel)


def save_folder(segmenter: Segmenter, folder: Path) -> None:
    """Write network and image processor as transformers does; `from_pretrained(folder)` opens both.

    Class names and preprocessing that were given as options go into the config and the processor.
    """
    model: Any = segmenter.model
    if not segmenter.sigmoid and segmenter.class_names != class_names_of(model) and _are_named(segmenter):
        model.config.id2label = dict(enumerate(segmenter.class_names))
        model.config.label2id = {name: i for i, name in enumerate(segmenter.class_names)}
    with _no_progress_bar(library("transformers", "huggingface")):
        model.save_pretrained(folder)
    processor = segmenter.origin.processor
    if processor is not None:
        if preprocess_of(processor) != segmenter.preprocess:
            _update(processor, segmenter.preprocess)
        processor.save_pretrained(folder)


def _are_named(segmenter: Segmenter) -> bool:
    return any(name != f"class {i}" for i, name in enumerate(segmenter.class_names))


def _update(processor: Any, preprocess: Preprocess) -> None:
    processor.do_normalize = True
    processor.image_mean, processor.image_std = list(preprocess.mean), list(preprocess.std)
    processor.do_rescale, processor.rescale_factor = preprocess.value_range != 255, preprocess.value_range / 255
    processor.do_resize = preprocess.size is not None
    if isinstance(preprocess.size, int):
        processor.size = {"shortest_edge": preprocess.size}
    elif preprocess.size is not None:
        processor.size = {"height": preprocess.size[0], "width": preprocess.size[1]}
    if hasattr(processor, "do_flip_channel_order"):
        processor.do_flip_channel_order = preprocess.channels == "bgr"
