"""Any user's segmentation network, seen as the paper sees it: a classifier g after a feature extractor f.

The network itself is never rewritten. `Segmenter` wraps it, feeds it images the way it was trained to see them
(`Preprocess`), takes the logits out of whatever it returns, and knows which parameters are g (`find_classifier`).
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from das3.data.pixels import Pixels
from das3.distributed import process_count
from das3.errors import Das3Error, ModelError
from das3.segmenter.calling import evaluating, main_logits
from das3.segmenter.classifier import find_classifier
from das3.segmenter.mask_classification import mask_heads, mask_queries
from das3.segmenter.preprocess import Preprocess, preprocess_of_channels
from das3.segmenter.sides import LARGEST_DIVISOR, find_sides
from das3.segmenter.windows import in_windows

__all__ = ["Origin", "Segmenter"]

_TRIED = 4
"""Numbers of channels that are tried if the network does not take RGB."""

_OF_DEVICE = (torch.OutOfMemoryError, getattr(torch, "AcceleratorError", torch.OutOfMemoryError))

_SMALL = 32  # images whose sides are at least this long are not padded unless a divisor wants it


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
        self.preprocess = preprocess_of_channels(self.preprocess, self.in_channels)
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
        return self.square and self.divisor > LARGEST_DIVISOR

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


def _input_channels(model: nn.Module) -> list[int]:
    """How many channels the network's first few convolutions take, and its linear layers."""
    layers = (nn.Conv2d, nn.Linear)
    found = [
        m.in_channels if isinstance(m, nn.Conv2d) else m.in_features for m in model.modules() if isinstance(m, layers)
    ]
    return list(dict.fromkeys(found))[:_TRIED]
