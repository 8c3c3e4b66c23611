"""Open any user's segmentation network, and give it back in the format it came in. One file per family beside this."""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from torch import nn

from das3.errors import ModelError
from das3.models import huggingface, plain, smp, torchvision
from das3.models.card import CARD, Card, read_card, write_card
from das3.models.weights import Weights, fit, read_weights, save_weights
from das3.origin import Origin
from das3.segmenter import Preprocess, Segmenter

__all__ = ["load_segmenter", "save_segmenter"]

_FORMS = (
    "a folder saved by Hugging Face, segmentation-models-pytorch or das3, a hub id, torchvision:NAME, smp:NAME, "
    "das3:NAME or package.module:function"
)


def load_segmenter(
    model: str | Path | nn.Module | Segmenter,
    *,
    weights: str | Path | None = None,
    classifier: str | Sequence[str] | None = None,
    num_classes: int | None = None,
    class_names: Sequence[str] | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    value_range: float | None = None,
    channels: Literal["rgb", "bgr"] | None = None,
    size: int | tuple[int, int] | None = None,
    output_key: str | int | None = None,
    model_args: dict[str, Any] | None = None,
    align_corners: bool | None = None,
) -> Segmenter:
    """Open a segmentation network.

    Options that are None are read from the model where its format carries them, else found out or left at defaults.

    Args:
        model: a folder (Hugging Face, smp, das3, or a das3 run), a hub id, `torchvision:NAME`, `smp:NAME`, `das3:NAME`,
            `package.module:function`, or a network object, which is used as it is and not copied.
        weights: state dict (.pt, .pth, .safetensors; a training checkpoint that holds one), or a das3 model folder.
        classifier: names of the layers that produce the logits.
        num_classes: how many classes the network predicts; 2 for one with a single sigmoid logit.
        class_names: their names.
        mean: see `Preprocess`, as are std, value_range, channels and size.
        std: as above.
        value_range: as above.
        channels: as above.
        size: as above.
        output_key: see `main_logits`.
        model_args: arguments of the function that builds the network.
        align_corners: see `Segmenter`.

    Returns:
        The segmenter, in evaluation mode, on the CPU unless a network object came on another device.

    Raises:
        ModelError: if there is no such model, or anything given does not fit the network.
    """
    weights = Path(weights) if weights is not None else None
    network, card = _open(model, dict(model_args or {}), weights, num_classes)
    names = (classifier,) if isinstance(classifier, str) else classifier
    changes: dict[str, Any] = {
        "classifier": tuple(names) if names else None,
        "class_names": tuple(class_names) if class_names else None,
        "output_key": output_key,
        "align_corners": align_corners,
        "preprocess": _changed(
            card.preprocess, mean=mean, std=std, value_range=value_range, channels=channels, size=size
        ),
    }
    segmenter = replace(card, **{k: v for k, v in changes.items() if v is not None}).segmenter(network).eval()
    if (
        num_classes is not None
        and num_classes != segmenter.num_classes
        and not (segmenter.sigmoid and num_classes == 1)
    ):
        raise ModelError(
            f"the network predicts {segmenter.num_classes} classes, not {num_classes}; "
            "leave out --num-classes or give a network that was trained on as many"
        )
    return segmenter


def _changed(preprocess: Preprocess, **options: Any) -> Preprocess:
    given: dict[str, Any] = {k: tuple(v) if isinstance(v, list | tuple) else v for k, v in options.items() if v is not None}
    return replace(preprocess, **given)


def _open(
    model: str | Path | nn.Module, args: dict[str, Any], weights: Path | None, num_classes: int | None
) -> tuple[nn.Module, Card]:
    """The network with its weights, and what its format says about it."""
    if isinstance(model, Segmenter):
        network, card = model.model, Card.of(model)
    elif isinstance(model, nn.Module):
        network, card = model, _card_of(model)
    elif (folder := _model_folder(Path(model))) is not None:
        network, card = _open_folder(folder)
    else:
        found = read_weights(weights) if weights is not None else None
        network, card = _open_spec(str(model), args, num_classes, found)
    return network, card
def _with_folder(
    model: str | Path | nn.Module, args: dict[str, Any], folder: Path, num_classes: int | None
) -> tuple[nn.Module, Card]:
    """A network that is named apart from the das3 folder that holds its weights: one that came in as an object."""
    folder = _model_folder(folder) or folder
    network, own = _open(model, args, folder / "model.safetensors", num_classes)
    card = read_card(folder)
    return network, own if card is None else card.over(own)


def _card_of(model: nn.Module) -> Card:
    return Card(class_names=huggingface.class_names_of(model)) if huggingface.is_huggingface(model) else Card()


def _model_folder(path: Path) -> Path | None:
    """The folder with the model's files: the path itself or, in a run's folder, model/."""
    if not path.is_dir():
        return None
    folder = next((f for f in (path, path / "model") if (f / CARD).is_file() or (f / "config.json").is_file()), None)
    if folder is None:
        raise ModelError(
            f"{path}: holds no model (no {CARD} or config.json in it or in its model/); --model takes {_FORMS}"
        )
    return folder


def _open_folder(folder: Path) -> tuple[nn.Module, Card]:
    card = read_card(folder)
    if smp.is_smp_folder(folder):
        return smp.load_folder(folder), card or Card()
    if (folder / "config.json").is_file():
        network, own = huggingface.load_folder(folder)
        return network, card.over(own) if card else own
    assert card is not None
    if card.origin.spec is None:
        raise ModelError(
            f"{folder}: the network came in as a Python object, so only its weights are here; build it again and give "
            "the folder as its weights: load_segmenter(network, weights=folder), or --model package.module:function "
            f"--weights {folder}"
        )
    network, _ = _open_spec(card.origin.spec, dict(card.origin.args), None, None)
    fit_state(network, read_state(folder / "model.safetensors"), folder / "model.safetensors")
    return network, card


def _open_spec(spec: str, args: dict[str, Any], num_classes: int | None, state: State | None) -> tuple[nn.Module, Card]:
    family, colon, name = spec.partition(":")
    if not colon:
        return _open_hub(spec)
    if not re.fullmatch(r"[\w.]+:\w+", spec):
        raise ModelError(f"{spec}: no such model; --model takes {_FORMS}")
    if family == "torchvision":
        plan = torchvision.blueprint(name, args, state)
    elif family == "smp":
        plan = smp.blueprint(name, args)
    elif family == "das3":
        plan = plain.builtin(name, args)
    else:
        plan = plain.from_code(spec, args)
    network, args = plain.build(plan, num_classes, state)
    return network, Card(plan.preprocess, align_corners=plan.align_corners, origin=Origin(plan.spec, args))


def _open_hub(model_id: str) -> tuple[nn.Module, Card]:
    if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", model_id):
        raise ModelError(f"{model_id}: no such folder; --model takes {_FORMS}")
    return _open_folder(huggingface.download(model_id))


def save_segmenter(segmenter: Segmenter, folder: str | Path, *, state_dict: bool = False) -> Path:
    """Save a network in the format it came in, beside a das3.json with what else `load_segmenter` needs.

    Hugging Face and smp networks open with their own `from_pretrained`; others are written as model.safetensors.

    Args:
        segmenter: the network; nothing of it is changed.
        folder: replaced as a whole, at once, if das3 wrote it before.
        state_dict: also write model.pt, a plain state dict under the key names of the weights that came in.

    Returns:
        The folder.

    Raises:
        ModelError: if the folder holds something else, or can't be written.
    """
    folder = Path(folder)
    if folder.exists() and not (folder.is_dir() and ((folder / CARD).is_file() or not any(folder.iterdir()))):
        raise ModelError(f"{folder}: holds something else than a das3 model; name a new folder to save to")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    except OSError as error:
        raise ModelError(f"{folder}: can't be written ({error.strerror})") from None
    try:
        _write(segmenter, partial, state_dict=state_dict)
        partial.chmod(0o755)
        _swap(partial, folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return folder


def _write(segmenter: Segmenter, folder: Path, *, state_dict: bool) -> None:
    write_card(Card.of(segmenter), folder)
    own_format = True
    if huggingface.is_huggingface(segmenter.model):
        huggingface.save_folder(segmenter, folder)
    elif smp.is_smp(segmenter.model):
        smp.save_folder(segmenter.model, folder)
    else:
        own_format = False
    save_weights(
        segmenter.model, folder, safetensors=not own_format, state_dict=state_dict, prefix=segmenter.origin.key_prefix
    )


def _swap(new: Path, folder: Path) -> None:
    """Put a finished folder in place. A directory can't be replaced in one step, so the old one steps aside."""
    if not folder.exists():
        os.rename(new, folder)
        return
    old = Path(tempfile.mkdtemp(prefix=f".{folder.name}.old.", dir=folder.parent))
    os.rename(folder, old)
    os.rename(new, folder)
    shutil.rmtree(old, ignore_errors=True)
