"""State dicts: read without executing anything, checked against a network key by key, written whole or not at all."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from das3.errors import ModelError
from das3.files import writing_atomically
from das3.models.file_kinds import is_safetensors, pickled_names, refusal, whole_model
from das3.segmenter import Origin
from das3.text_files import describe_special

__all__ = [
    "Weights",
    "check_file",
    "fit",
    "infer_classes",
    "is_mmseg",
    "mismatch",
    "read_weights",
    "refuse_not_finite",
    "save_weights",
    "wrong_classes",
]

_DEEPEST = 10  # mappings in mappings, before it is taken for one that holds itself

_NESTS = ("state_dict", "model_state_dict", "model", "net")
# What wrappers (DataParallel, Lightning, torch.compile) put before every key.
_PREFIXES = ("module.", "model.", "_orig_mod.", "net.")


@dataclass(frozen=True)
class Weights:
    """A state dict as its file holds it.

    Attributes:
        source: the file.
        tensors: under the file's names.
        nesting: keys of the mappings around it.
        rest: what else the file holds, such as a training's settings.
    """

    source: Path
    tensors: dict[str, Tensor]
    nesting: list[str] = field(default_factory=list)
    rest: Mapping[str, Any] = field(default_factory=dict)

    def named_for(self, expected: Iterable[str]) -> tuple[dict[str, Tensor], str]:
        """The tensors without a wrapper's prefix that all names have and the network's don't, and that prefix."""
        expected, tensors, removed = set(expected), self.tensors, ""
        while not expected.intersection(tensors):
            prefix = next((p for p in _PREFIXES if all(k.startswith(p) for k in tensors)), None)
            if prefix is None:
                return self.tensors, ""
            tensors = {k.removeprefix(prefix): v for k, v in tensors.items()}
            removed += prefix
        return tensors, removed


def read_weights(path: str | Path) -> Weights:
    """Read a state dict from a .safetensors file or a torch file, where it may be nested in a training checkpoint.

    Raises:
        ModelError: if the file is missing, can't be read, holds anything but tensors (pickled code is never executed)
            or holds no state dict.
    """
    path = Path(path)
    if not path.is_file():
        raise ModelError(f"{path}: no such weights file")
    _refuse(path)
    if is_safetensors(path):
        return Weights(path, _plain(_read_safetensors(path), path))
    content = rest = _load(path)
    nesting: list[str] = []
    while isinstance(content, Mapping):
        inner = next((n for n in _NESTS if isinstance(content.get(n), Mapping | _Inert)), None)
        if inner is None:
            break
        if len(nesting) == _DEEPEST:
            raise ModelError(f"{path}: a mapping that holds itself, not a checkpoint; save the weights again")
        nesting.append(inner)
        content = content[inner]
    if isinstance(content, _Inert):
        raise ModelError(f"{path}: is {whole_model(pickled_names(path))}")
    tensors = {str(k): v for k, v in content.items() if isinstance(v, Tensor)} if isinstance(content, Mapping) else {}
    if not tensors:
        raise ModelError(f"{path}: holds no state dict (a mapping from names to tensors)")
    return Weights(path, _plain(tensors, path), nesting, {str(k): v for k, v in rest.items()} if nesting else {})


def check_file(path: Path) -> None:
    """See that a weights file which another library is going to read is whole and holds plain tensors.

    Raises:
        ModelError: saying what it is instead.
    """
    _refuse(path)
    if not is_safetensors(path):
        content = _load(path)
        if isinstance(content, _Inert):
            raise ModelError(f"{path}: is {whole_model(pickled_names(path))}")
        values = content if isinstance(content, Mapping) else {}
        _plain({str(k): v for k, v in values.items() if isinstance(v, Tensor)}, path)
        return
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        for name in file.keys():  # noqa: SIM118, it is no mapping
            entry = file.get_slice(name)
            kind = str(entry.get_dtype())[:1]  # of I8, U8, BOOL, F32, BF16, C64 …
            if kind == "C":
                raise _odd(path, name, "complex")
            if _is_quantised(name, kind in ("I", "U"), entry.get_shape()):
                raise _odd(path, name, "quantised")


def _refuse(path: Path) -> None:
    try:
        special = describe_special(path)
        what = f"{special}, not a file" if special else refusal(path)
    except OSError as error:
        raise ModelError(f"{path}: can't be read ({error.strerror or error})") from None
    if what is not None:
        raise ModelError(f"{path}: is {what}")


def _plain(tensors: dict[str, Tensor], path: Path) -> dict[str, Tensor]:
    """The tensors, if all are of real numbers that a network can be trained with."""
    for name, tensor in tensors.items():
        kinds = {
            "complex": tensor.is_complex(),
            "without values (of torch's meta device)": tensor.is_meta,
            "sparse": tensor.layout != torch.strided or tensor.is_nested,
            "quantised": tensor.is_quantized
            or _is_quantised(name, not tensor.is_floating_point() and not tensor.is_complex(), tensor.shape),
        }
        for kind, is_one in kinds.items():
            if is_one:
                raise _odd(path, name, kind)
    return tensors


def _is_quantised(name: str, whole_numbers: bool, shape: Sequence[int]) -> bool:
    return whole_numbers and len(shape) > 1 and name.endswith("weight")


def _odd(path: Path, name: str, kind: str) -> ModelError:
    return ModelError(f"{path}: the weights are {kind}, first {name}; save them as ordinary float tensors")


def refuse_not_finite(model: nn.Module, source: object) -> None:
    """Stop at weights that are NaN or infinite: everything computed with them is, and a label map shows one class.

    Args:
        model: the network.
        source: where its weights come from, for the message.

    Raises:
        ModelError: naming the first tensor.
    """
    for name, tensor in model.named_parameters():
        if not torch.isfinite(tensor).all():
            raise _not_finite(source, name, tensor)
    for name, buffer in model.named_buffers():  # a mask may hold infinities
        bad = torch.isnan(buffer) if "running_" not in name else ~torch.isfinite(buffer)
        if bad.any():
            raise _not_finite(source, name, buffer)


def _not_finite(source: object, name: str, tensor: Tensor) -> ModelError:
    what = "NaN" if torch.isnan(tensor).any() else "infinite values"
    return ModelError(
        f"{source}: the weights hold {what}, first in {name}; take a checkpoint from before the training broke, or "
        "train with a lower learning rate"
    )


class _Inert:
    """Stands in for whatever a file wants to import: it takes any arguments and does nothing with them."""

    def __init__(self, *args: object) -> None:
        pass

    def __setstate__(self, state: object) -> None:
        pass


def _load(path: Path) -> Any:
    """Load without executing anything: objects of other classes than torch's, such as settings, become `_Inert`.

    Raises:
        ModelError: if torch can't read the file.
    """
    from torch.serialization import get_unsafe_globals_in_checkpoint, safe_globals

    try:
        foreign = get_unsafe_globals_in_checkpoint(path)
    except Exception:  # from before PyTorch 1.6, or damaged
        foreign = [name for name in pickled_names(path) if name.split(".")[0] not in ("torch", "collections")]
    split = [name.rpartition(".") for name in foreign]
    try:
        inert: list[Any] = [type(name, (_Inert,), {"__module__": module}) for module, _, name in split]
        with safe_globals(inert), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of sparse tensors, which are refused
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception:  # whatever torch raises on a damaged or forbidden pickle, with advice to execute it
        names = [name for name in pickled_names(path) if not name.startswith(("torch._", "collections."))]
        if any(name.startswith("torch.nn.modules") for name in names) or foreign:
            raise ModelError(f"{path}: is {whole_model(names)}") from None
        raise ModelError(
            f"{path}: not a weights file that torch can read, or cut off; copy or download it again"
        ) from None


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    from safetensors.torch import load_file

    try:
        return dict(load_file(path))
    except Exception as error:  # SafetensorError, or whatever a type of numbers that torch lacks raises
        raise ModelError(f"{path}: not a safetensors file ({_first_line(error)})") from None


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0][:200] or type(error).__name__


def fit(model: nn.Module, weights: Weights) -> str:
    """Load weights into a network, every key of both.

    Args:
        model: changed in place.
        weights: may have a wrapper's prefix on all keys.

    Returns:
        That prefix, "" if none.

    Raises:
        ModelError: if keys are missing, unexpected or of another shape; it lists the first few of each.
    """
    expected = model.state_dict()
    found, prefix = weights.named_for(expected)
    wrong = [k for k in expected if k in found and expected[k].shape != found[k].shape]
    missing = [k for k in expected if k not in found and not k.endswith("num_batches_tracked")]
    unexpected = [k for k in found if k not in expected]
    if not missing and not unexpected and (classes := _class_counts(expected, found, wrong)):
        raise wrong_classes(weights.source, has=classes[1], wanted=classes[0])
    if missing or unexpected or wrong:
        raise mismatch(
            weights.source,
            missing=missing,
            unexpected=unexpected,
            wrong=[f"{k} {_shape(found[k])} for {_shape(expected[k])}" for k in wrong],
            hint=f"it is mmsegmentation's: `das3 convert {weights.source} --out MODEL` makes a model of it"
            if is_mmseg(weights)
            else None,
        )
    integers = [k for k, v in expected.items() if v.is_floating_point() and not found.get(k, v).is_floating_point()]
    if integers:
        raise _odd(weights.source, integers[0], "quantised")
    # Files from before PyTorch 0.4.1 lack num_batches_tracked, which nothing reads at a fixed momentum.
    model.load_state_dict({k: found.get(k, v) for k, v in expected.items()})
    return prefix


def _shape(tensor: Tensor) -> str:
    return str(tuple(tensor.shape))


def _class_counts(
    expected: Mapping[str, Tensor], state: Mapping[str, Tensor], wrong: Sequence[str]
) -> tuple[int, int] | None:
    """(wanted, found) if all that does not fit is the same length of the first dimension: another number of classes."""
    pairs = {(expected[k].shape[:1], state[k].shape[:1]) for k in wrong}
    if len(pairs) != 1 or any(expected[k].shape[1:] != state[k].shape[1:] for k in wrong):
        return None
    ((wanted, found),) = pairs
    return (wanted[0], found[0]) if wanted and found else None


def wrong_classes(source: str | Path, has: int, wanted: int) -> ModelError:
    """The error for a network or weights of another number of classes than asked for."""
    return ModelError(
        f"{source}: predicts {has} classes, not {wanted}; leave out --num-classes, or give weights that were trained "
        f"on {wanted} classes"
    )


def is_mmseg(weights: Weights) -> bool:
    """Whether a state dict has the names of mmsegmentation's networks."""
    return {"backbone", "decode_head"} <= {key.removeprefix("module.").split(".")[0] for key in weights.tensors}


def mismatch(
    source: str | Path,
    *,
    missing: Sequence[str] = (),
    unexpected: Sequence[str] = (),
    wrong: Sequence[str] = (),
    hint: str | None = None,
) -> ModelError:
    """The error for weights that don't fit a network: the first few keys of each kind, and what to do."""
    kinds = {"missing": missing, "unexpected": unexpected, "of another shape": wrong}
    parts = [
        f"{len(keys)} {kind} ({', '.join(keys[:3])}{', …' if len(keys) > 3 else ''})"
        for kind, keys in kinds.items()
        if keys
    ]
    return ModelError(
        f"{source}: the weights don't fit the network, keys: {'; '.join(parts)}; "
        f"{hint or 'check --model and --model-args against what the weights were trained with'}"
    )


def infer_classes(build: Callable[[int], nn.Module], weights: Weights) -> int | None:
    """How many classes weights were trained on: the first dimension of whatever depends on the number of classes.

    Args:
        build: makes the network for a number of classes; called twice, without memory for its weights if it can be.
        weights: of such a network.

    Returns:
        The number of classes, or None if the weights have nothing that depends on it.
    """
    two, three = _shapes(build, 2), _shapes(build, 3)
    found, _ = weights.named_for(two)
    heads = [k for k in two if k in found and k in three and (two[k][:1], three[k][:1]) == ((2,), (3,))]
    counts = {int(found[k].shape[0]) for k in heads if found[k].ndim}
    return counts.pop() if len(counts) == 1 else None


def _shapes(build: Callable[[int], nn.Module], num_classes: int) -> dict[str, torch.Size]:
    try:
        with torch.device("meta"):
            model = build(num_classes)
    except (RuntimeError, NotImplementedError):  # a constructor that computes with its weights
        model = build(num_classes)
    return {k: v.shape for k, v in model.state_dict().items()}


def save_weights(model: nn.Module, folder: Path, origin: Origin, *, safetensors: bool, state_dict: bool) -> None:
    """Write model.safetensors, and model.pt as the weights came in: nested in the same keys, under the same names.

    Every tensor is copied whole, so weights that are shared or not contiguous are stored like any other.
    """
    from safetensors.torch import save_file

    tensors = {k: v.detach().cpu().clone(memory_format=torch.contiguous_format) for k, v in model.state_dict().items()}
    if safetensors:
        save_file(tensors, folder / "model.safetensors")
    if state_dict:
        content: dict[str, Any] = {origin.prefix + k: v for k, v in tensors.items()}
        for key in reversed(origin.nesting):
            content = {key: content}
        with writing_atomically(folder / "model.pt") as file:
            torch.save(content, file)
