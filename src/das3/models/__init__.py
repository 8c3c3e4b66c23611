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
from das3.files import os_error, sync_files, why_not_written
from das3.models import huggingface, plain, smp, torchvision
from das3.models.metadata import METADATA_FILE, ModelMetadata, read_metadata, write_metadata
from das3.models.oneformer import give_task
from das3.models.trust import names_code, refuse_code, refuse_remote
from das3.models.weights import Weights, fit, is_mmseg, read_weights, refuse_not_finite, save_weights, wrong_classes
from das3.segmenter import Origin, Preprocess, Segmenter

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
    input_max: float | None = None,
    channels: Literal["rgb", "bgr", "grey", "bands"] | None = None,
    size: int | tuple[int, int] | None = None,
    output_key: str | int | None = None,
    model_args: dict[str, Any] | None = None,
    align_corners: bool | None = None,
    in_channels: int | None = None,
    trust: bool = False,
) -> Segmenter:
    """Open a segmentation network.

    Options that are None are read from the model where its format carries them, else found out or left at defaults.
    What `model` names is looked for on the disk first. Code is run if `model` itself names it, not if a folder does.

    Args:
        model: a folder (Hugging Face, smp, das3, or a das3 run), a hub id (as str), `torchvision:NAME`, `smp:NAME`,
            `das3:NAME`, `package.module:function`, or a network object, which is used as it is and not copied.
        weights: state dict (.pt, .pth, .safetensors; a training checkpoint that holds one), or a das3 model folder.
        classifier: names of the layers that produce the logits.
        num_classes: how many classes the network predicts; 2 for one with a single sigmoid logit.
        class_names: their names.
        mean: see `Preprocess`, as are std, input_max, channels and size.
        std: as above.
        input_max: as above.
        channels: as above.
        size: as above.
        output_key: see `main_logits`.
        model_args: arguments of the function that builds the network, for the forms that name one.
        align_corners: see `Segmenter`.
        in_channels: see `Segmenter`.
        trust: also run the code that a folder or hub repository names for its network.

    Returns:
        The segmenter, in evaluation mode and float32, on the CPU unless a network object came on another device.

    Raises:
        ModelError: if there is no such model, anything given does not fit the network, or its weights are not finite.
    """
    named = (classifier,) if isinstance(classifier, str) else classifier
    if named is not None and not (named and all(named)):
        raise ModelError("--classifier names no layer; leave it out to have it found")
    beside = Path(weights) if weights is not None else None
    network, card = _open(model, dict(model_args or {}), beside, num_classes, trust=trust)
    refuse_not_finite(network, weights or (model if isinstance(model, str | Path) else type(network).__name__))
    preprocess = {"mean": mean, "std": std, "input_max": input_max, "channels": channels, "size": size}
    changes = {
        "classifier": named,
        "class_names": class_names,
        "output_key": output_key,
        "align_corners": align_corners,
        "in_channels": in_channels,
        "preprocess": _changed(card.preprocess, _given(preprocess)),
    }
    unchanged = weights is None and not _given(changes)
    if _given({name: value for name, value in preprocess.items() if name != "size"}):
        card = replace(card, origin=replace(card.origin, preprocess="given"))
    if isinstance(model, Segmenter) and unchanged:
        segmenter = model
    else:
        segmenter = replace(card, **_given(changes)).segmenter(network.float()).eval()
    wanted = 2 if num_classes == 1 and segmenter.sigmoid else num_classes
    if wanted is not None and wanted != segmenter.num_classes:
        raise wrong_classes(str(model) if isinstance(model, str | Path) else "model", segmenter.num_classes, wanted)
    return segmenter


def _changed(preprocess: Preprocess, given: dict[str, Any]) -> Preprocess | None:
    """The preprocessing with the user's own options; statistics of other than three channels say what these are."""
    count = len(
        given.get("mean") or given.get("std") or ([0.0] if given.get("channels") == "grey" else preprocess.mean)
    )
    if given and count != len(preprocess.mean):
        preprocess = replace(Preprocess.of_channels(count), size=preprocess.size, input_max=preprocess.input_max)
    return replace(preprocess, **given) if given else None


def _given(options: dict[str, Any]) -> dict[str, Any]:
    return {k: tuple(v) if isinstance(v, list) else v for k, v in options.items() if v is not None}


def _open(
    model: str | Path | nn.Module,
    args: dict[str, Any],
    weights: Path | None,
    num_classes: int | None,
    *,
    trust: bool,
) -> tuple[nn.Module, ModelMetadata]:
    """The network with its weights, and what its format says about it."""
    saved = _model_folder(weights) if weights is not None else None
    if saved is not None:  # written by das3 for a network that only its owner can build
        weights = saved / "model.safetensors"
    found = read_weights(weights) if weights is not None else None
    try:
        folder = None if isinstance(model, nn.Module) else _model_folder(Path(model))
    except OSError as error:  # a name that is too long, links in a circle
        raise ModelError(f"{str(model)[:200]}: can't be opened ({error.strerror}); --model takes {_FORMS}") from None
    if args and (folder is not None or isinstance(model, nn.Module)):
        raise ModelError(
            "--model-args are for a function that builds a network; this one is built already, leave them out"
        )
    if isinstance(model, Segmenter):
        network, card = model.model, ModelMetadata.of(model)
    elif isinstance(model, nn.Module):
        network, card = model, _metadata_of(model)
    elif folder is not None:
        network, card = _open_folder(folder, trust=trust)
    elif isinstance(model, str) and is_hub_id(model):
        network, card = _open_folder(huggingface.download(model), trust=trust, called=model)
    else:
        network, card = _open_spec(str(model), args, num_classes, found)
    if found is not None:
        prefix = fit(network, found)
        card = replace(card, origin=replace(card.origin, nesting=found.nesting, prefix=prefix))
    if saved is not None and (written := read_metadata(saved)) is not None:
        card = replace(
            written,
            origin=replace(
                card.origin,
                nesting=written.origin.nesting,
                prefix=written.origin.prefix,
                preprocess=written.origin.preprocess,
            ),
        )
    return network, card


def _metadata_of(model: nn.Module) -> ModelMetadata:
    give_task(model)
    return ModelMetadata(
        class_names=huggingface.class_names_of(model) if huggingface.is_huggingface(model) else None,
        origin=Origin(_kind(model) or "object", type(model).__name__),
    )


def _kind(model: nn.Module) -> str | None:
    """The library in whose own format a network is saved."""
    if huggingface.is_huggingface(model):
        return "huggingface"
    return "smp" if smp.is_smp(model) else None


def _model_folder(path: Path) -> Path | None:
    """The folder with the model's files: the path itself or, in a run's folder, model/. None if it is no folder."""
    if not path.is_dir():
        return None
    folder = next(
        (f for f in (path, path / "model") if (f / METADATA_FILE).is_file() or (f / "config.json").is_file()), None
    )
    if folder is None:
        raise ModelError(f"{path}: no {METADATA_FILE} or config.json in it or in its model/; --model takes {_FORMS}")
    return folder


def _open_folder(folder: Path, *, trust: bool, called: str | None = None) -> tuple[nn.Module, ModelMetadata]:
    card = read_metadata(folder)
    if (folder / "config.json").is_file():
        network, own = smp.load_folder(folder) if smp.is_smp_folder(folder) else huggingface.load_folder(folder)
        if card is None:
            return network, own
        return network, replace(card, origin=replace(card.origin, processor=own.origin.processor))
    assert card is not None
    spec = card.origin.spec
    if card.origin.kind == "object":
        raise ModelError(
            f"{folder}: the network ({spec}) came in as a Python object, so only its weights are here; "
            f"name the function that builds it: --model package.module:function --weights {folder}"
        )
    if card.origin.kind != "plain":
        raise ModelError(f"{folder}: its config.json is missing; copy the whole folder again")
    refuse_code(spec, called or str(folder), trust=trust, instead=f"--model {spec} --weights {folder}")
    refuse_remote(card.origin.model_args, folder / METADATA_FILE)
    weights = read_weights(folder / "model.safetensors")
    network, _ = _open_spec(spec, plain.without_downloads(card.origin.model_args), None, weights)
    fit(network, weights)
    return network, card


# What a hub id never ends in, and a mistyped path may.
_SUFFIXES = frozenset(
    {".pt", ".pth", ".pt2", ".ckpt", ".bin", ".safetensors", ".onnx", ".h5", ".hdf5", ".keras", ".pkl", ".pickle"}
    | {".py", ".json", ".yaml", ".yml", ".txt", ".zip", ".tar", ".gz", ".tflite", ".engine", ".pb", ".npz", ".npy"}
)


def is_hub_id(name: str) -> bool:
    """Whether a model that is not on the disk is `owner/name` on the hub, rather than a path that is mistyped.

    A path is what begins with a dot, ends like a file or has a folder here to lie in.
    """
    if not re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", name) or Path(name).exists():
        return False
    return Path(name).suffix.lower() not in _SUFFIXES and not Path(name).parent.exists()


def _no_such(spec: str) -> ModelError:
    path = Path(spec)
    if path.is_file():
        weights = read_weights(path)  # says what the file is, where it holds none
        if is_mmseg(weights):
            return ModelError(
                f"{spec}: is a checkpoint of mmsegmentation; `das3 convert {spec} --out MODEL` makes a model of it"
            )
        return ModelError(
            f"{spec}: is a file of weights; give it with --weights, and the network they are for with --model"
        )
    if path.exists():
        return ModelError(f"{spec}: is neither a file nor a folder; --model takes {_FORMS}")
    if "/" in spec or os.sep in spec:
        here = f", though {path.parent} is one" if str(path.parent) != "." and path.parent.exists() else ""
        return ModelError(
            f"{spec}: no such folder here{here}; hub ids are owner/name, and are looked for only where there is no "
            "folder of the owner's name"
        )
    return ModelError(f"{spec}: no such model; --model takes {_FORMS}")


def _open_spec(
    spec: str, args: dict[str, Any], num_classes: int | None, weights: Weights | None
) -> tuple[nn.Module, ModelMetadata]:
    if Path(spec).exists() or not re.fullmatch(r"[\w.]+:\w+", spec):
        raise _no_such(spec)
    family, _, name = spec.partition(":")
    if family == "torchvision":
        plan = torchvision.blueprint(name, args, weights)
    elif family == "smp":
        plan = smp.blueprint(name, args)
    elif family == "das3":
        plan = plain.builtin(name, args)
    else:
        plan = plain.from_code(spec, args)
    users_own = names_code(spec)  # may load weights itself
    trained = users_own or weights is not None or bool(args.get("weights"))
    network, args = plain.build(plan, num_classes, weights)
    own = plan.preprocess != Preprocess()
    origin = Origin(
        _kind(network) or "plain", spec, args, trained=trained, preprocess="usual for it" if own else "assumed"
    )
    return network, ModelMetadata(plan.preprocess, align_corners=plan.align_corners, origin=origin)


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
        ModelError: if the folder holds something else, or can't be written, or the weights are not finite.
    """
    folder = Path(folder)
    refuse_not_finite(segmenter.model, f"{folder}: not written")
    if folder.exists() and not (folder.is_dir() and ((folder / METADATA_FILE).is_file() or not any(folder.iterdir()))):
        raise ModelError(f"{folder}: holds something else than a das3 model; name a new folder to save to")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    except OSError as error:
        raise ModelError(why_not_written(folder, error)) from None
    try:
        _write(segmenter, partial, state_dict=state_dict)
        sync_files(partial)
        partial.chmod(0o755)
        _swap(partial, folder)
    except Exception as error:
        if isinstance(error, ModelError) or (cause := os_error(error)) is None:
            raise
        raise ModelError(why_not_written(folder, cause)) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return folder


def _write(segmenter: Segmenter, folder: Path, *, state_dict: bool) -> None:
    write_metadata(ModelMetadata.of(segmenter), folder)
    kind = _kind(segmenter.model)
    if kind == "huggingface":
        huggingface.save_folder(segmenter, folder)
    elif kind == "smp":
        smp.save_folder(segmenter.model, folder)
    save_weights(segmenter.model, folder, segmenter.origin, safetensors=kind is None, state_dict=state_dict)


def _swap(new: Path, folder: Path) -> None:
    """Put a finished folder in place. A directory can't be replaced in one step, so the old one steps aside."""
    if not folder.exists():
        os.rename(new, folder)
        return
    old = Path(tempfile.mkdtemp(prefix=f".{folder.name}.old.", dir=folder.parent))
    os.rename(folder, old)
    os.rename(new, folder)
    shutil.rmtree(old, ignore_errors=True)
