"""Networks of Hugging Face transformers: a folder that save_pretrained wrote, or a hub id."""

from __future__ import annotations

import contextlib
import json
import math
import sys
import warnings
from collections.abc import Iterator, Sequence
from logging import CRITICAL
from pathlib import Path
from typing import Any, Literal

from torch import nn

from das3.errors import ModelError
from das3.models.extras import library
from das3.models.metadata import ModelMetadata
from das3.models.oneformer import give_task, save_tokenizer
from das3.models.trust import refuse_remote
from das3.models.weights import check_file, mismatch
from das3.segmenter import Origin, Preprocess, Segmenter
from das3.segmenter.mask_classification import TYPES
from das3.text_files import describe_special

__all__ = ["download", "is_huggingface", "load_folder", "save_folder"]

_FETCHED = ["*.json", "*.safetensors", "pytorch_model*.bin", "merges.txt"]  # no code


def download(model_id: str) -> Path:
    """Fetch a model from the Hugging Face hub, or find it in the local cache.

    Raises:
        ModelError: if it is in neither.
    """
    hub = library("huggingface_hub", "hub")
    try:
        return Path(hub.snapshot_download(model_id, allow_patterns=_FETCHED))
    except Exception as error:  # of the hub, its client or the network
        raise ModelError(
            f"{model_id}: no such folder here, and not on the Hugging Face hub as far as can be reached "
            f"({_reason(error)})"
        ) from None


def load_folder(folder: Path) -> tuple[nn.Module, ModelMetadata]:
    """Open what save_pretrained wrote: network, class names, and preprocessing if there is an image processor.

    Nothing is fetched, and code that the folder holds is never run.

    Raises:
        ModelError: if transformers is missing, the folder holds no semantic segmentation network, or its weights don't
            fit (a backbone without a head, say).
    """
    transformers = library("transformers", "huggingface")
    config = read_config(folder)
    check_files(folder)
    task = "Universal" if str(config.get("model_type")) in TYPES else "Semantic"
    automatic = getattr(transformers, f"AutoModelFor{task}Segmentation")
    try:
        with _silenced(transformers):
            model, info = automatic.from_pretrained(
                folder,
                local_files_only=True,
                trust_remote_code=False,
                ignore_mismatched_sizes=True,
                output_loading_info=True,
            )
    except Exception as error:  # whatever transformers raises on a folder that is not whole
        reason = _reason(error).split(" for this kind of AutoModel")[0]
        if "auto_map" in config:
            reason = "its network is code in the folder, which das3 does not run; build it in Python: das3.adapt(model)"
        raise ModelError(f"{folder}: not a semantic segmentation model that transformers can open ({reason})") from None
    mismatched = [str(k[0] if isinstance(k, tuple) else k) for k in info["mismatched_keys"]]
    if info["missing_keys"] or mismatched:
        raise mismatch(folder, missing=sorted(info["missing_keys"]), wrong=sorted(mismatched))
    _into_memory(model)
    give_task(model, folder)
    processor = _processor(transformers, folder)
    preprocess = _preprocess_in(folder, processor) if processor is not None else Preprocess()
    return model, ModelMetadata(
        preprocess,
        class_names_of(model),
        origin=Origin(
            "huggingface",
            str(folder),
            processor=processor,
            preprocess="assumed" if processor is None else "preprocessor_config.json",
        ),
    )


def _into_memory(model: nn.Module) -> None:
    """Copy weights that lie in the mapped file where it put them.

    From places that are no multiples of a cache line torch computes the last bit otherwise, so that a network and the
    same network saved and opened again would differ.
    """
    for tensor in (*model.parameters(), *model.buffers()):
        if tensor.data_ptr() % 64:
            tensor.data = tensor.data.clone()


def read_config(folder: Path) -> dict[str, Any]:
    """What config.json says, where it is one that das3 may follow.

    Raises:
        ModelError: if it is no JSON mapping, is of quantised weights or names parts to be fetched from elsewhere.
    """
    path = folder / "config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"{path}: not JSON ({_reason(error)}); write it again with save_pretrained") from None
    if not isinstance(config, dict):
        raise ModelError(f"{path}: holds no mapping of settings; write it again with save_pretrained")
    refuse_remote(config, path)
    if config.get("quantization_config"):
        raise ModelError(
            f"{path}: the weights are quantised and can't be trained; take the model as it was before that"
        )
    return config


def check_files(folder: Path) -> None:
    """See that weights files are whole before a library opens them.

    Raises:
        ModelError: naming the first that is not.
    """
    for path in sorted(folder.iterdir()):
        if path.exists() and (special := describe_special(path)) not in (None, "a folder"):
            raise ModelError(f"{path}: is {special}, not a file; take it out")
    for index in sorted(folder.glob("*.index.json")):
        _check_index(index)
    for pattern in ("*.safetensors", "pytorch_model*.bin"):
        for path in sorted(folder.glob(pattern)):
            check_file(path)


def _check_index(path: Path) -> None:
    """See that an index of weights in several files names files beside it alone."""
    try:
        names = json.loads(path.read_text(encoding="utf-8"))["weight_map"].values()
        sound = all(isinstance(name, str) and Path(name).name == name for name in names)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        sound = False
    if not sound:
        raise ModelError(
            f"{path}: names no files beside it for the weights; write the model again with save_pretrained"
        )


def _reason(error: Exception) -> str:
    """An error of another library in one line."""
    lines = [line for line in str(error).strip().splitlines() if line.strip()] or [""]
    return " ".join(f"{type(error).__name__}: {lines[0]}".split())[:300]


@contextlib.contextmanager
def _silenced(transformers: Any) -> Iterator[None]:
    """Without transformers' progress bars and log: das3 says itself what does not fit."""
    shown, level = transformers.logging.is_progress_bar_enabled(), transformers.logging.get_verbosity()
    transformers.logging.disable_progress_bar()
    transformers.logging.set_verbosity(CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        transformers.logging.set_verbosity(level)
        if shown:
            transformers.logging.enable_progress_bar()


def _processor(transformers: Any, folder: Path) -> Any:
    if not (folder / "preprocessor_config.json").is_file():
        return None
    path = folder / "preprocessor_config.json"
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
        # OneFormer's would fetch a list of classes that only its training needs; it is named again when it is saved.
        classes = settings.get("class_info_file")
        left_out = {"class_info_file": None} if classes else {}
        processor = transformers.AutoImageProcessor.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False, **left_out
        )
        if classes:
            processor.class_info_file = classes
        return processor
    except Exception as error:  # whatever transformers raises on a damaged file
        raise ModelError(
            f"{path}: transformers can't open it ({_reason(error)}); repair it, or remove it and say "
            "--mean, --std and --size"
        ) from None


def _preprocess_in(folder: Path, processor: Any) -> Preprocess:
    try:
        return preprocess_of(processor)
    except (ValueError, TypeError, ModelError) as error:
        path = folder / "preprocessor_config.json"
        raise ModelError(
            f"{path}: {_reason(error)}; repair it, or remove it and say --mean, --std and --size"
        ) from None


def preprocess_of(processor: Any) -> Preprocess:
    """What a Hugging Face image processor does to an image, as far as a network sees it."""

    def setting(name: str, default: Any) -> Any:
        value = getattr(processor, name, None)
        return default if value is None else value

    normalised = setting("do_normalize", False)
    mean = _per_channel(setting("image_mean", 0.0)) if normalised else (0.0, 0.0, 0.0)
    std = _per_channel(setting("image_std", 1.0)) if normalised else (1.0, 1.0, 1.0)
    factor = setting("rescale_factor", 1 / 255) if setting("do_rescale", True) else 1.0
    return Preprocess(
        mean=mean,
        std=std,
        input_max=255 * factor,
        channels="bgr" if setting("do_flip_channel_order", False) else _order(len(mean)),
        size=_size(setting("size", {})) if setting("do_resize", False) else None,
    )


def _per_channel(value: float | Sequence[float]) -> tuple[float, ...]:
    values = (float(value),) * 3 if isinstance(value, int | float) else tuple(float(v) for v in value)
    if not all(map(math.isfinite, values)):
        raise ValueError(f"mean and std must be numbers, one per channel, got {values}")
    return values


def _order(channels: int) -> Literal["rgb", "grey", "bands"]:
    return "rgb" if channels == 3 else "grey" if channels == 1 else "bands"


def _size(size: Any) -> int | tuple[int, int] | None:
    # A dict, or in newer versions of transformers an object with the same entries.
    height, width, shortest = (
        size.get(name) if isinstance(size, dict) else getattr(size, name, None)
        for name in ("height", "width", "shortest_edge")
    )
    sides = [int(side) for side in ((height, width) if height and width else (shortest,)) if side]
    if any(side < 1 for side in sides):
        raise ValueError(f"images can't be resized to {sides}")
    return (sides[0], sides[1]) if len(sides) == 2 else sides[0] if sides else None


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
    with _silenced(library("transformers", "huggingface")):
        model.save_pretrained(folder)
    save_tokenizer(model, folder)
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
    processor.do_rescale, processor.rescale_factor = preprocess.input_max != 255, preprocess.input_max / 255
    processor.do_resize = preprocess.size is not None
    if isinstance(preprocess.size, int):
        processor.size = {"shortest_edge": preprocess.size}
    elif preprocess.size is not None:
        processor.size = {"height": preprocess.size[0], "width": preprocess.size[1]}
    if hasattr(processor, "do_flip_channel_order"):
        processor.do_flip_channel_order = preprocess.channels == "bgr"
