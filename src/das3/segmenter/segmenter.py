"""Any user's segmentation network, seen as the paper sees it: a classifier g after a feature extractor f.

The network itself is never rewritten. `Segmenter` wraps it, feeds it images the way it was trained to see them
(`Preprocess`), takes the logits out of whatever it returns, and knows which parameters are g (`find_classifier`).
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from das3.data.pixels import Pixels
from das3.distributed import process_count
from das3.errors import Das3Error, ModelError
from das3.segmenter.mask_classification import mask_heads, mask_queries, semantic_logits
from das3.segmenter.windows import in_windows

__all__ = [
    "LARGEST_SIDE",
    "Origin",
    "Preprocess",
    "Segmenter",
    "evaluating",
    "find_classifier",
    "find_sides",
    "main_logits",
]

LARGEST_SIDE = 65536
"""Pixels of the longest side that images are resized to, or cut out with."""

_TRIED = 4
"""Numbers of channels that are tried if the network does not take RGB."""


@dataclass(frozen=True)
class Origin:
    """Where a network came from.

    Attributes:
        kind: "huggingface" or "smp" (their own folder formats), "plain" (built by a function) or "object" (handed over
            in Python).
        spec: folder, the function's name or, for an object, its class.
        model_args: the function's arguments.
        nesting: keys under which the weights file held the state dict.
        prefix: what every key in the weights file began with, "module." for DataParallel.
        trained: False if the network is known to have random weights.
        processor: Hugging Face image processor, which is saved with the network.
        preprocess: where its preprocessing is known from; "assumed" if nothing says it.
    """

    kind: str
    spec: str
    model_args: dict[str, Any] = field(default_factory=dict)
    nesting: list[str] = field(default_factory=list)
    prefix: str = ""
    trained: bool = True
    processor: Any = None
    preprocess: str = "assumed"


@dataclass(frozen=True)
class Preprocess:
    """How the network expects its input, applied to images in [0, 1].

    Attributes:
        mean: subtracted per channel, in the units of `input_max` and in the order of `channels`; one for each.
        std: divides per channel, likewise.
        input_max: largest value that the network was trained to see, before mean and std: 1 or 255.
        channels: "rgb"; "bgr" as Caffe-trained networks expect; "grey" for one channel; "bands" for those of the images
            as they are chosen, of any number.
        size: size that images are resized to before the network: None keeps theirs, an int is the length of the
            shorter side in pixels, (height, width) is exact.
        rgb: which bands of the images, from 0, are red, green and blue to a person, and get colour changes; None for
            the first three.
    """

    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    std: tuple[float, ...] = (0.229, 0.224, 0.225)
    input_max: float = 1.0
    channels: Literal["rgb", "bgr", "grey", "bands"] = "rgb"
    size: int | tuple[int, int] | None = None
    rgb: tuple[int, int, int] | None = None

    def __post_init__(self) -> None:
        count = {"rgb": 3, "bgr": 3, "grey": 1}.get(self.channels, len(self.mean))
        if not len(self.mean) == len(self.std) == count or not self.std or min(self.std) <= 0:
            raise ModelError(
                f"preprocessing needs {count} means and {count} positive stds, got mean={self.mean}, std={self.std}"
            )
        if self.channels not in ("rgb", "bgr", "grey", "bands"):
            raise ModelError(f"channels must be rgb, bgr, grey or bands, got {self.channels!r}")
        if self.rgb is not None and not (len(self.rgb) == 3 and all(0 <= band < count for band in self.rgb)):
            raise ModelError(f"the RGB bands must be three of the {count} that the network takes, got {self.rgb}")
        if not (0 < self.input_max < math.inf):
            raise ModelError(f"input_max must be positive (1 or 255), got {self.input_max}")
        # Squares of larger numbers would not fit into float32.
        if not all(abs(value) < 1e15 for value in self.mean) or not all(1e-15 < value < 1e15 for value in self.std):
            raise ModelError(f"mean and std must be ordinary numbers, got mean={self.mean}, std={self.std}")
        sides = self.size if isinstance(self.size, tuple) else () if self.size is None else (self.size,)
        if len(sides) not in ((2,) if isinstance(self.size, tuple) else (0, 1)) or not all(map(_is_side, sides)):
            raise ModelError(
                f"size must be a shorter side or (height, width), each from 1 to {LARGEST_SIDE}, got {self.size}"
            )

    @classmethod
    def of_channels(cls, count: int) -> Preprocess:
        """What is taken of a network of so many channels of which nothing is known: ImageNet's statistics, for other
        channels than RGB the mean of its three.
        """
        if count == 3:
            return cls()
        mean, std = (0.449,) * count, (0.226,) * count
        return cls(mean, std, channels="grey" if count == 1 else "bands")

    @property
    def rgb_bands(self) -> tuple[int, int, int]:
        """Which bands are red, green and blue to a person."""
        last = len(self.mean) - 1
        return self.rgb or (0, min(1, last), min(2, last))

    def __str__(self) -> str:
        """In words, for a person."""
        mean, std = (" ".join(f"{value:.4g}" for value in values) for values in (self.mean, self.std))
        scale = "" if self.input_max == 1 else f", of values to {self.input_max:g}"
        return f"{self.channels}{scale}, mean {mean}, std {std}"

    def __call__(self, images: Tensor) -> Tensor:
        """Turn B×K×H×W images in [0, 1] into the network's input of the same shape."""
        if self.channels == "bgr":
            images = images.flip(1)
        scale, shift = _normalization(self, images.device, images.dtype)
        return torch.addcmul(shift, images, scale)


@cache
def _normalization(preprocess: Preprocess, device: torch.device, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """1×K×1×1 factor and summand of `Preprocess`, made once: to send them at each call would be to wait for a GPU."""
    mean, std = (
        torch.tensor(values, dtype=torch.float64).view(1, -1, 1, 1) for values in (preprocess.mean, preprocess.std)
    )
    return tuple(values.to(device, dtype) for values in (preprocess.input_max / std, -mean / std))  # type: ignore[return-value]


def _is_side(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= LARGEST_SIDE


def _of_channels(preprocess: Preprocess, channels: int) -> Preprocess:
    """The preprocessing of a network of so many channels, its defaults replaced by those for them."""
    if preprocess == replace(Preprocess(), size=preprocess.size):  # nothing is known of it
        return replace(Preprocess.of_channels(channels), size=preprocess.size)
    if len(preprocess.mean) != channels:
        raise ModelError(
            f"the network takes {channels} channels, but there are {len(preprocess.mean)} means and stds; give one for "
            "each channel with --mean and --std"
        )
    return preprocess


def _input_channels(model: nn.Module) -> list[int]:
    """How many channels the network's first few convolutions take, and its linear layers."""
    layers = (nn.Conv2d, nn.Linear)
    found = [
        m.in_channels if isinstance(m, nn.Conv2d) else m.in_features for m in model.modules() if isinstance(m, layers)
    ]
    return list(dict.fromkeys(found))[:_TRIED]


def main_logits(output: Any, key: str | int | None = None) -> Tensor:
    """Take the main B×C×h×w logits out of whatever a network returns.

    Args:
        output: a tensor, a mapping (`out`, `logits`), an object with such an attribute, a tuple with auxiliary
            heads, or queries' classes and masks (see `das3.segmenter.mask_classification`).
        key: which entry is the main one, where the network's convention is not the usual one.

    Raises:
        ModelError: if no 4-dimensional floating tensor is found there.
    """
    found = output
    if key is None and (queries := mask_queries(output)) is not None:
        found = semantic_logits(*queries)
    elif isinstance(output, Mapping):
        names = [key] if key is not None else [n for n in ("out", "logits") if n in output] or list(output)
        found = output.get(names[0]) if names else None
    elif isinstance(output, Sequence):
        found = output[int(key or 0)] if len(output) > int(key or 0) else None
    elif not isinstance(output, Tensor):
        names = [str(key)] if key is not None else ["logits", "out"]
        found = next((getattr(output, n) for n in names if hasattr(output, n)), None)
    if not isinstance(found, Tensor) or found.ndim != 4 or not found.is_floating_point() or _is_empty(found):
        what = f"shape {tuple(found.shape)}" if isinstance(found, Tensor) else type(found).__name__
        raise ModelError(
            f"the network returned {type(output).__name__} in which no B×C×h×w logits were found (got {what}); "
            "name the entry that holds them with --output-key"
        )
    return found


def _is_empty(logits: Tensor) -> bool:
    """Without values, or not one for each place."""
    return logits.numel() == 0 or logits.is_meta or logits.layout != torch.strided


# Autograd nodes that only reshape or cast a weight on its way into the operation that uses it.
_PASS_THROUGH = ("TBackward", "TransposeBackward", "PermuteBackward", "ViewBackward", "ToCopyBackward", "UnsafeView")


def _weight_behind(node: Any) -> Tensor | None:
    while node is not None:
        if hasattr(node, "variable"):
            return node.variable  # type: ignore[no-any-return]
        if not node.name().startswith(_PASS_THROUGH) or len(node.next_functions) != 1:
            return None
        node = node.next_functions[0][0]
    return None


def _last_parameters(logits: Tensor) -> list[Tensor]:
    """Walk the graph back from the logits; stop each path at the first operation that uses parameters."""
    found: dict[int, Tensor] = {}
    stack, seen = [logits.grad_fn], set()
    while stack:
        node = stack.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        inputs = [n for n, _ in node.next_functions]
        weights = [w for w in map(_weight_behind, inputs) if w is not None]
        if weights:
            found.update((id(w), w) for w in weights)
        else:
            stack.extend(inputs)
    return list(found.values())


def find_classifier(model: nn.Module, example: Tensor, output_key: str | int | None = None) -> tuple[str, ...]:
    """Find g: the last layers that produce the logits, by walking the autograd graph back from the output.

    This follows what the network computes, not how its author named it, so auxiliary heads are left out and several
    layers whose outputs are summed (DeepLabV2's four branches, LR-ASPP's two) are all found.

    Args:
        model: any network, called on `example`.
        example: 1×3×H×W network input.
        output_key: see `main_logits`.

    Returns:
        Module names in the order of `named_modules`, e.g. ("decode_head.classifier",).

    Raises:
        ModelError: if the last layers with parameters do not each produce the C logits (a learned temperature, a
            mask-classification head, …): which layer is g is then for the user to say. Also if the network returns
            probabilities.
    """
    required = {p: p.requires_grad for p in model.parameters()}
    try:
        model.requires_grad_(True)
        with evaluating(model), torch.enable_grad():
            logits = main_logits(model(example), output_key)
    finally:
        for p, needed in required.items():
            p.requires_grad_(needed)
    _refuse_probabilities(logits)
    last = {id(p) for p in _last_parameters(logits)}
    channels = logits.shape[1]
    owners = {
        name: module
        for name, module in model.named_modules()
        if any(id(p) in last for p in module.parameters(recurse=False))
    }
    wrong = {n: m for n, m in owners.items() if not n or _out_channels(m) != channels}
    if not owners or wrong:
        layers = ", ".join(f"{n or '(root)'}: {type(m).__name__}" for n, m in wrong.items()) or "no layer at all"
        raise ModelError(
            f"can't tell which layer is the classifier: the network returns {channels} channels, but the last layers "
            f"with parameters are {layers}; name it with --classifier, one of: {_candidates(model, channels)}"
        )
    return tuple(owners)


def _refuse_probabilities(logits: Tensor) -> None:
    node = logits.grad_fn
    while node is not None and len(node.next_functions) == 1:  # resizing, slicing and casting
        if node.name().startswith(("Softmax", "Sigmoid")):
            raise ModelError(
                f"the network returns probabilities (its last step is a {node.name()[:7].lower()}); das3 needs the "
                "logits before it: build the network without that activation"
            )
        node = node.next_functions[0][0]


def _out_channels(module: nn.Module) -> int | None:
    for attribute in ("out_channels", "out_features"):
        if isinstance(getattr(module, attribute, None), int):
            return int(getattr(module, attribute))
    weight = getattr(module, "weight", None)
    return int(weight.shape[0]) if isinstance(weight, Tensor) and weight.ndim >= 2 else None


def _candidates(model: nn.Module, channels: int) -> str:
    names = [n for n, m in model.named_modules() if n and _out_channels(m) == channels]
    return ", ".join(names) or f"(no layer has {channels} outputs; is the number of classes right?)"


_OF_DEVICE = (torch.OutOfMemoryError, getattr(torch, "AcceleratorError", torch.OutOfMemoryError))

_SMALL = 32  # images whose sides are at least this long are not padded unless a divisor wants it

_LARGEST_DIVISOR = 64  # a network whose sides must be multiples of more takes one size


def find_sides(model: nn.Module, example: Tensor, output_key: str | int | None = None) -> tuple[int, bool]:
    """Find which input sizes a network takes, by trying.

    U-shaped networks need sides that all their strides divide, some transformers need squares, or one size only;
    `Segmenter` pads images accordingly and crops the logits back.

    Args:
        model: called on inputs about as large as `example`.
        example: 1×3×H×W input that it takes.
        output_key: see `main_logits`.

    Returns:
        Smallest of 1, 8, 16, 32, 64 such that the network takes odd multiples of it, else the one side that it takes;
        and whether both sides must be equal.

    Raises:
        ModelError: if the network takes the size of `example` only, and it is not square.
    """
    height, width = example.shape[-2:]
    for square in (False, True):
        for divisor in (1, 8, 16, 32, _LARGEST_DIVISOR):
            side = max(divisor, (height // divisor - 1) * divisor) | divisor
            if square and side == height:  # a size that is known to work says nothing
                side += 2 * divisor if side <= 2 * divisor else -2 * divisor
            other = side if square else side + 2 * divisor
            with contextlib.suppress(RuntimeError, ValueError, AssertionError), evaluating(model), torch.no_grad():
                main_logits(model(F.interpolate(example, size=(side, other))), output_key)
                return divisor, square
    if height == width:
        return height, True
    raise ModelError(
        f"the network takes images of {height}×{width} pixels only, and das3 needs a square of one size, or sides that "
        "are multiples of 64 or less; build it for another size"
    )


@contextlib.contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """In evaluation mode, each layer put back into its own mode afterwards."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


class Segmenter(nn.Module):
    """A segmentation network as M = g ∘ f, with one calling convention for all of them.

    Attributes:
        model: the user's network, untouched; what is saved at the end.
        classifier: names of the modules inside `model` that are g.
        in_channels: K of the images that the network takes.
        num_classes: C of the logits that `forward` returns; a network with one sigmoid logit counts as 2.
        sigmoid: whether the network itself has one sigmoid logit.
        preprocess: how the network expects images.
        class_names: names of the classes, "class 0"… where unknown.
        origin: where the network came from.
        pixels: how the image files were read that it was trained or adapted on, if they were not plain pictures of 8
            bits.

    Args:
        model: the network.
        classifier: names of g's modules; found by `find_classifier` when None.
        example_size: (height, width) of the input used to look at the network.
        align_corners: how the network's family upsamples its logits to the image.
        divisor: sides of the input must be multiples of this; found when this or `square` is None.
        square: both sides must be equal.
        in_channels: K; found by trying when None.

    Raises:
        ModelError: if the network can't be run, the classifier can't be found or a named module does not exist.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        preprocess: Preprocess | None = None,
        classifier: Sequence[str] | str | None = None,
        class_names: Sequence[str] | None = None,
        output_key: str | int | None = None,
        example_size: tuple[int, int] = (64, 64),
        align_corners: bool = False,
        divisor: int | None = None,
        square: bool | None = None,
        origin: Origin | None = None,
        in_channels: int | None = None,
        pixels: Pixels | None = None,
    ) -> None:
        super().__init__()
        self.model = model
        self.preprocess = preprocess or Preprocess()
        self.pixels = pixels
        self.output_key = output_key
        self.align_corners = align_corners
        self._least: int | None = None
        self.origin = origin or Origin("object", type(model).__name__)
        example, channels = self._try_out(example_size, in_channels)
        self.in_channels = example.shape[1]
        self.preprocess = _of_channels(self.preprocess, self.in_channels)
        if isinstance(classifier, str):
            classifier = [classifier]
        known = classifier or mask_heads(model)
        self.classifier = tuple(known) if known else find_classifier(model, example, output_key)
        modules = dict(model.named_modules())
        for name in self.classifier:
            if name not in modules or next(modules[name].parameters(), None) is None:
                raise ModelError(f"--classifier {name}: the network has no layer with weights of that name")
        if divisor is None or square is None:
            divisor, square = find_sides(model, example, output_key)
        self.divisor, self.square = divisor, square
        self.sigmoid = channels == 1
        self.num_classes = max(2, channels)
        self.class_names = tuple(class_names or (f"class {c}" for c in range(self.num_classes)))
        if len(self.class_names) != self.num_classes:
            raise ModelError(
                f"the network predicts {self.num_classes} classes but {len(self.class_names)} class names were given"
            )

    def _try_out(self, size: tuple[int, int], in_channels: int | None) -> tuple[Tensor, int]:
        """An input that the network takes, of `size` or a larger one or that of its images, and the logits' channels.

        If RGB does not do, the input has as many channels as one of the convolutions takes, the first ones first.
        """
        if in_channels is not None:
            return self._run(size, in_channels)
        try:
            return self._run(size, 3)
        except ModelError as error:
            for channels in [c for c in dict.fromkeys([*_input_channels(self.model), 1]) if c != 3]:
                with contextlib.suppress(ModelError):
                    return self._run(size, channels)
            raise error

    def _run(self, size: tuple[int, int], in_channels: int) -> tuple[Tensor, int]:
        own = self.preprocess.size if isinstance(self.preprocess.size, tuple) else size
        side = getattr(getattr(self.model, "config", None), "image_size", None)  # of a vision transformer
        parameter = next(self.model.parameters(), torch.zeros(()))
        reasons = []
        sizes = (size, (256, 256), own, *([(side, side)] if isinstance(side, int) else []))
        for height, width in dict.fromkeys(sizes):
            shape, generator = (1, in_channels, height, width), torch.Generator().manual_seed(0)
            example = torch.rand(shape, generator=generator).to(parameter)
            try:
                with evaluating(self.model), torch.no_grad():
                    output = self.model(example)
                self.composed = self.output_key is None and mask_queries(output) is not None
                return example, int(main_logits(output, self.output_key).shape[1])
            except ModelError:
                raise
            except Exception as error:  # whatever the user's network raises
                reason = (str(error).strip().splitlines() or [""])[0][:150]
                reasons.append(f"{height}×{width}: {type(error).__name__}: {reason}")
        raise ModelError(
            f"the network can't be run on a batch of one image of {in_channels} channels ({'; '.join(reasons)}); if it "
            "takes one size only, give it with --size, and the channels, if they can't be found, with --in-channels"
        )

    def native_logits(self, images: Tensor) -> Tensor:
        """Logits at the network's own resolution, B×C×h×w float32, for B×K×H×W images in [0, 1].

        One sigmoid logit z becomes the two logits (0, z), whose softmax is (1 − σ(z), σ(z)).
        """
        logits = main_logits(self._call(self.preprocess(images)), self.output_key).float()
        if len(logits) != len(images):
            raise ModelError(
                f"the network {type(self.model).__name__} returns logits of {len(logits)} images for a batch of "
                f"{len(images)}; repair its code"
            )
        return torch.cat([torch.zeros_like(logits), logits], dim=1) if self.sigmoid else logits

    def _call(self, inputs: Tensor) -> Any:
        """The network's output; an error of its own, which is the user's code, is one that names it.

        Errors of the device, such as a lack of memory, and of several processes stay what they are.
        """
        try:
            return self.model(inputs)
        except Exception as error:
            if isinstance(error, (Das3Error, *_OF_DEVICE)) or process_count() > 1:
                raise
            reason = (str(error).strip().splitlines() or [""])[0][:200]
            raise ModelError(
                f"the network {type(self.model).__name__} fails on a batch of shape {tuple(inputs.shape)} "
                f"({type(error).__name__}: {reason}); give images and a --crop that it takes, or repair its code"
            ) from error

    def forward(self, images: Tensor) -> Tensor:
        """Logits B×C×H×W float32 at the size of the images, B×K×H×W in [0, 1], of any H and W.

        A network that takes one size only sees larger images in windows of it. Logits that are composed of masks are
        upsampled as the probabilities they stand for, as the networks' own inference does: between two classes of
        probability 1 beside each other, their logarithms would leave the place to a third.
        """
        if self.one_size and max(images.shape[-2:]) > self.divisor:
            return in_windows(self.forward, images, self.divisor)
        logits = self.native_logits(self.pad(images))
        if self.composed:
            return self.upsample(logits.softmax(dim=1), images).log()
        return self.upsample(logits, images)

    @property
    def one_size(self) -> bool:
        """Whether the network takes squares of `divisor` pixels only."""
        return self.square and self.divisor > _LARGEST_DIVISOR

    def takes(self, height: int, width: int) -> bool:
        """Whether the network can be run on images of this size, which some that take one size only can't."""
        example = next(self.model.parameters()).new_zeros((1, self.in_channels, height, width))
        with contextlib.suppress(ModelError), evaluating(self.model), torch.no_grad():
            self(example)
            return True
        return False

    def pad(self, images: Tensor) -> Tensor:
        """Images, or other maps B×K×H×W of their size, with sides that the network takes; edges are repeated."""
        (height, width), (full_height, full_width) = images.shape[-2:], self._padded(images)
        missing = (0, full_width - width, 0, full_height - height)
        return F.pad(images, missing, mode="replicate") if any(missing) else images

    def upsample(self, values: Tensor, images: Tensor) -> Tensor:
        """Maps B×K×h×w on the network's own grid (logits, features) of padded images, at the size of the images."""
        (height, width), padded = images.shape[-2:], self._padded(images)
        if values.shape[-2:] != padded:
            values = F.interpolate(values, size=padded, mode="bilinear", align_corners=self.align_corners)
        return values[..., :height, :width]

    def _least_side(self) -> int:
        """Smallest side, up to 32 pixels, that the network can be run on: its strides may leave nothing of less.

        Found by trying, when the first image comes that is smaller than 32 pixels.
        """
        if self._least is None:
            like = next(self.model.parameters())
            for side in (1, 2, 4, 8, 16, _SMALL):
                self._least = side
                example = like.new_zeros(
                    (1, self.in_channels, side + -side % self.divisor, side + -side % self.divisor)
                )
                with contextlib.suppress(Exception), evaluating(self.model), torch.no_grad():
                    if main_logits(self.model(example), self.output_key).numel():
                        break
        return self._least or 1

    def _padded(self, images: Tensor) -> tuple[int, int]:
        height, width = images.shape[-2:]
        if min(height, width) < _SMALL:
            height, width = max(height, self._least_side()), max(width, self._least_side())
        if self.square:
            height = width = max(height, width)
        return height + -height % self.divisor, width + -width % self.divisor

    def classifier_parameters(self) -> Iterator[nn.Parameter]:
        """Parameters of g, in the network's order."""
        return (p for name, p in self.model.named_parameters() if self._in_classifier(name))

    def feature_parameters(self) -> Iterator[nn.Parameter]:
        """Parameters of f (and of auxiliary heads, which get no gradient), in the network's order."""
        return (p for name, p in self.model.named_parameters() if not self._in_classifier(name))

    def _in_classifier(self, parameter_name: str) -> bool:
        return any(parameter_name.startswith(f"{module}.") for module in self.classifier)

    def describe(self) -> str:
        """One line: the network, its classes, what was taken as its classifier, and how it is fed and who says so."""
        total = sum(p.numel() for p in self.model.parameters())
        kind = "1 sigmoid logit" if self.sigmoid else f"{self.num_classes} classes"
        size = f"{total / 1e6:.1f} M parameters"
        inputs = "" if self.in_channels == 3 else f"{self.in_channels} input channel{'s' * (self.in_channels > 1)}, "
        network = f"{type(self.model).__name__}, {size}, {inputs}{kind}, classifier: {', '.join(self.classifier)}"
        return f"{network}; preprocessing ({self.origin.preprocess}): {self.preprocess}"
