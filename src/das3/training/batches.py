"""Batches of samples in order, and the gradients of a step over them."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Sampler

from das3.data.pixels import to_unit
from das3.data.samples import Sample, Samples
from das3.distributed import spare_cores
from das3.errors import ModelError, RecipeError, TrainingError
from das3.norms import training_norms
from das3.stages.base import Stage
from das3.stages.options import LoopOptions
from das3.training.memory_format import as_channels_last

if TYPE_CHECKING:
    from lightning_fabric import Fabric

__all__ = ["Batches"]

_ALIGNMENT = 256
"""Bytes; kernels of GPUs read tensors that begin at multiples of so many at once."""


class _Range(Sampler[list[int]]):
    """Numbers of the samples of batch after batch; each process takes its part of every batch."""

    def __init__(self, first: int, batch_size: int, rank: int, world: int) -> None:
        self.first, self.batch_size, self.part = first, batch_size, batch_size // world
        self.offset = rank * self.part

    def __iter__(self) -> Iterator[list[int]]:
        for batch in itertools.count(self.first):
            begin = batch * self.batch_size + self.offset
            yield list(range(begin, begin + self.part))


class Batches:
    """Batches in order, and their gradients. If a GPU's memory does not hold a batch, it is gone through in parts.

    To be used in a `with`, with which the processes end that load images.
    """

    def __init__(self, fabric: Fabric, samples: Samples, options: LoopOptions, say: Callable[[str], None]) -> None:
        if options.batch_size % fabric.world_size:
            raise RecipeError(f"batch_size {options.batch_size} can't be divided among {fabric.world_size} processes")
        self.fabric, self.samples, self.options, self.say = fabric, samples, options, say
        self.size = options.batch_size // fabric.world_size
        self.micro = self.size
        self.coming: Generator[Sample, None, None] | None = None

    def __enter__(self) -> Batches:
        return self

    def __exit__(self, *error: object) -> None:
        if self.coming:
            self.coming.close()

    def add_gradients(
        self, stage: Stage[Any], model: Any, optimizer: Any, step: int, seed: int
    ) -> list[dict[str, Tensor]]:
        """Add up the gradients of a step; returns its losses.

        Raises:
            TrainingError: if not even one image fits into the memory.
        """
        while True:
            _seed(self.fabric.device, seed)
            if self.coming is None:
                self.coming = self._from(step * self.options.accumulate)
            try:
                return [losses for _ in range(self.options.accumulate) for losses in self._batch(stage, model)]
            except torch.OutOfMemoryError as error:
                self._halve(error)
            except (RuntimeError, ModelError) as error:
                explained = self._explained(error)
                if explained:
                    raise TrainingError(explained) from error
                raise
            # Beyond the except, which holds the tensors that did not fit.
            optimizer.zero_grad(set_to_none=True)
            torch.cuda.empty_cache()

    def _explained(self, error: Exception) -> str | None:
        """What an error of the network means if an option brought it about."""
        if self.options.compile == "on" and type(error).__module__.startswith("torch._"):
            return f"the network can't be compiled ({' '.join(str(error).split())[:200]}); leave compile=on out"
        if self.options.channels_last and "view size is not compatible" in str(error):
            return "the network can't be trained in the memory format channels_last; leave channels_last out"
        return None

    def _batch(self, stage: Stage[Any], model: Any) -> Iterator[dict[str, Tensor]]:
        assert self.coming is not None
        batch = next(self.coming)
        for begin in range(0, self.size, self.micro):
            count = min(self.micro, self.size - begin)
            part = {key: value[begin : begin + count] for key, value in batch.items()}
            with training_norms(count):
                losses = stage.loss(model, part)
                total = torch.stack(list(losses.values())).sum() * (count / self.size)
                self.fabric.backward(total / self.options.accumulate)
            yield losses

    def _halve(self, error: torch.OutOfMemoryError) -> None:
        if self.fabric.world_size > 1 or self.micro == 1:
            raise TrainingError(
                f"the GPU's memory does not hold {self.micro} image(s) of a batch at once; start a new run with a "
                "smaller --batch-size or --crop, or with --precision bf16"
            ) from error
        self.micro = -(-self.micro // 2)
        if self.coming:
            self.coming.close()
        self.coming = None  # a sample is a function of its number: the step begins anew
        self.say(
            f"the GPU's memory does not hold a batch: {self.micro} images of its {self.size} are gone through at a "
            "time; gradients are those of the whole batch, batch-norm statistics those of a part"
        )

    def _from(self, first: int) -> Generator[Sample, None, None]:
        options, fabric = self.options, self.fabric
        workers = spare_cores(fabric.device) if options.workers == "auto" else options.workers
        loader = DataLoader(
            self.samples,
            batch_sampler=_Range(first, options.batch_size, fabric.global_rank, fabric.world_size),
            collate_fn=_packed if workers else None,
            num_workers=workers,
            pin_memory=fabric.device.type == "cuda",
            generator=torch.Generator(),  # it would draw from the network's own, but only where a run begins or goes on
        )
        coming = iter(loader)
        try:
            for loaded in coming:
                if isinstance(loaded, _Packed):
                    batch = loaded.unpacked(fabric.device)
                else:
                    batch = {key: value.to(fabric.device, non_blocking=True) for key, value in loaded.items()}
                batch["image"] = to_unit(batch["image"])
                if options.channels_last:
                    batch["image"] = as_channels_last(batch["image"])
                yield batch
        finally:
            # Its processes end now. The garbage collector, if it finds it, takes away their queues first and then waits
            # 5 s for each of them.
            getattr(coming, "_shutdown_workers", lambda: None)()


def _seed(device: torch.device, seed: int) -> None:
    """`torch.manual_seed` for this device alone: all kinds of devices take it a hundredth of a short step."""
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.manual_seed(seed)
    elif device.type == "mps":
        torch.mps.manual_seed(seed)


@dataclass(frozen=True)
class _Packed:
    """A batch as the bytes of one tensor.

    Each tensor that comes from another process takes Python, which no other thread runs meanwhile, so that a GPU waits.
    """

    content: Tensor
    fields: tuple[tuple[str, torch.dtype, torch.Size, int], ...]
    """Name, type, shape and first byte of each of its tensors."""

    @classmethod
    def of(cls, batch: Sample) -> _Packed:
        """From tensors on the CPU."""
        sizes = [-(-value.nbytes // _ALIGNMENT) * _ALIGNMENT for value in batch.values()]
        content = torch.empty(sum(sizes), dtype=torch.uint8)
        fields = []
        for (name, value), begin in zip(batch.items(), itertools.accumulate([0, *sizes]), strict=False):
            content[begin : begin + value.nbytes] = value.contiguous().flatten().view(torch.uint8)
            fields.append((name, value.dtype, value.shape, begin))
        return cls(content, tuple(fields))

    def pin_memory(self) -> _Packed:
        """As the loader asks for it."""
        return replace(self, content=self.content.pin_memory())

    def unpacked(self, device: torch.device) -> Sample:
        """The tensors, on a device."""
        content = self.content.to(device, non_blocking=True)
        return {
            name: content[begin : begin + dtype.itemsize * shape.numel()].view(dtype).view(shape)
            for name, dtype, shape, begin in self.fields
        }


def _packed(samples: list[Sample]) -> _Packed:
    """A batch, its images as uint8 where nothing is lost by it: a quarter of the bytes."""
    images = [one["image"] for one in samples]
    eight_bits = [image.mul(255).round_().to(torch.uint8) for image in images]
    if all(map(torch.equal, images, map(to_unit, eight_bits))):
        samples = [{**one, "image": image} for one, image in zip(samples, eight_bits, strict=True)]
    # Not default_collate, which would make of each tensor a file in memory.
    return _Packed.of({key: torch.stack([one[key] for one in samples]) for key in samples[0]})
