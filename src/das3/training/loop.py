"""The one training loop: adaptation stages, baselines, source training and the oracle all run here.

Lightning Fabric does device placement, mixed precision and processes: it wraps a loop that stays ours to read, whereas
a Trainer would own it, and its precision plugins also cover fp16 loss scaling with gradient clipping.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from das3.data.samples import Samples
from das3.distributed import average_gradients, process_rank
from das3.ema import ExponentialMovingAverage
from das3.errors import DivergedError, ModelError, RecipeError, Terminated, TrainingError
from das3.heap import keep_freed_memory
from das3.norms import set_norm_mode
from das3.segmenter import Segmenter
from das3.stages.base import Stage, parameter_groups
from das3.stages.options import LoopOptions, StageOptions
from das3.training.batches import Batches
from das3.training.memory_format import channels_last
from das3.training.recompute import recomputed_blocks
from das3.training.sharding import put_optimizer_state, sharded_weights, whole

if TYPE_CHECKING:
    from lightning_fabric import Fabric

__all__ = ["Record", "StepState", "learning_rate", "make_fabric", "train"]


@dataclass(frozen=True)
class StepState:
    """Where a stage stands: everything a resumed run needs besides the model's weights."""

    step: int
    optimizer: dict[str, Any]
    stage: dict[str, Tensor]
    ema: dict[str, Any] | None = None


@dataclass(frozen=True)
class Record:
    """What the loop reports every `log_every` steps: mean losses since the last report."""

    step: int
    steps: int
    losses: dict[str, float]
    lr: float
    images_per_second: float


def make_fabric(device: str = "auto", precision: str = "auto", devices: int | str = 1) -> Fabric:
    """Fabric for a device and a precision. On a CPU the process keeps memory that it frees, see `das3.heap`.

    Args:
        device: "auto", "cpu", "cuda" or "mps".
        precision: "32", "bf16" or "16" (mixed), or "auto": bf16 on a GPU that has it, else 32.
        devices: how many; "auto" for all.

    Raises:
        RecipeError: if the device is not there or the names are unknown.
    """
    from lightning_fabric import Fabric  # takes seconds to import, which `das3 --help` should not

    from das3.training.processes import strategy

    available = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if device == "auto":
        device = next(d for d in ("cuda", "mps", "cpu") if available[d])
    if not available.get(device):
        there = ", ".join(d for d, ok in available.items() if ok)
        raise RecipeError(f"device {device!r} is not available here; choose auto or one of: {there}")
    if device == "cpu":
        keep_freed_memory()
    names = {"32": "32-true", "bf16": "bf16-mixed", "16": "16-mixed"}
    if precision == "auto":
        precision = "bf16" if device == "cuda" and torch.cuda.is_bf16_supported() else "32"
    if precision not in names:
        raise RecipeError(f"precision must be auto, 32, bf16 or 16, got {precision!r}")
    return Fabric(accelerator=device, precision=names[precision], **strategy(devices))


def learning_rate(step: int, steps: int, *, warmup: float, power: float) -> float:
    """Factor on the learning rate at a step: linear warm-up, then (1 − t)^power.

    Source: the "poly" schedule of DeepLab.
    """
    rising = max(1, round(warmup * steps))
    return float(min(1.0, (step + 1) / rising) * max(0.0, 1 - step / steps) ** power)


def step_seed(seed: tuple[int, ...], step: int, process: int = 0) -> int:
    """Seed of the network's own randomness (dropout) at a step, so that a resumed run repeats it.

    Each process has its own, or dropout would drop the same places of each process's images. What all processes must
    draw alike comes from process 0, see `das3.distributed.from_first_process`.
    """
    # Process 0 has what one process has. The others' numbers can't be those of a step, nor of a sample or of
    # `StageContext.random_seed`, which end in (0 or 1, 0 … 3, n).
    own = [0, 4, process, step] if process else [step]
    return int(np.random.SeedSequence([*seed, *own]).generate_state(1, np.uint64)[0]) >> 1


def train(
    fabric: Fabric,
    segmenter: Segmenter,
    stage: Stage[Any],
    samples: Samples,
    options: LoopOptions,
    *,
    seed: tuple[int, ...],
    start: StepState | None = None,
    report: Callable[[Record], None] = lambda record: None,
    save: Callable[[StepState], None] = lambda state: None,
    snapshot: Callable[[int, Mapping[str, Tensor]], None] = lambda step, weights: None,
    snapshots: int = 0,
    stop: Callable[[], bool] = lambda: False,
    say: Callable[[str], None] = lambda text: None,
) -> None:
    """Train `segmenter` in place by `stage` for `stage.options.steps` optimiser steps.

    Args:
        fabric: device, precision and processes.
        segmenter: the model, on the device.
        stage: prepared.
        samples: what `stage.prepare` returned.
        options: the loop's options.
        seed: everything random depends on it and the step's number alone.
        start: where to go on; the segmenter holds the weights of that step.
        report: called every `log_every` steps and at the end.
        save: called every `checkpoint_every` steps with what to save besides the weights.
        snapshot: called so often, evenly spread within the stage, with the step and the (averaged) weights.
        snapshots: how often.
        stop: whether to save and stop after this step.
        say: shows one line.

    Raises:
        TrainingError: if a loss or weights are not finite, or not even one image fits into the GPU's memory.
        ModelError: if there is nothing to train.
        RecipeError: if the batch can't be divided among the processes.
        Terminated: after `stop`.
    """
    settings: StageOptions = stage.options
    if settings.steps == 0:
        return
    coming = Batches(fabric, samples, options, say)
    with _trained(segmenter), _under_options(fabric, segmenter, stage, options), coming as batches:
        groups = parameter_groups(segmenter, stage, options.weight_decay)
        if not groups:
            raise ModelError(
                f"stage {stage.name} has nothing to train: all parameters that it would change are frozen in the model "
                "(or there are none); unfreeze some (requires_grad_(True)), or leave the stage out with --stages"
            )
        model, optimizer = fabric.setup(_compiled(segmenter, fabric, options), _optimizer(groups, options, fabric))
        ema = ExponentialMovingAverage(segmenter, options.ema_decay) if options.ema_decay else None
        first = 0
        if start:
            first = start.step
            _continue(start, optimizer, stage, ema)
        segmenter.train()
        set_norm_mode(segmenter, settings.bn_mode)
        meter = _Meter(options)
        due = {settings.steps * part // (snapshots + 1) for part in range(1, snapshots + 1)}
        for step in range(first, settings.steps):
            factor = learning_rate(step, settings.steps, warmup=options.warmup, power=options.power)
            for group in optimizer.param_groups:
                group["lr"] = group["base_lr"] * factor
            meter.add(batches.add_gradients(stage, model, optimizer, step, step_seed(seed, step, process_rank())))
            average_gradients([p for group in optimizer.param_groups for p in group["params"]])
            if options.clip:
                _clip_gradients(fabric, model, optimizer, options)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            stage.after_step(segmenter)
            if ema:
                ema.update(segmenter)
            done, stopping = step + 1, stop()
            saving = stopping or (done % options.checkpoint_every == 0 and done < settings.steps)
            if done % options.log_every == 0 or saving or done == settings.steps:
                report(meter.record(done, settings.steps, settings.lr * factor, stage.name))
            if done in due:
                snapshot(done, ema.values if ema else segmenter.state_dict())
            if saving:
                _refuse_not_finite(segmenter, stage.name, done)
                averaged = ema.state_dict() if ema else None
                save(StepState(done, whole(optimizer.state_dict()), stage.state_dict(), averaged))
            if stopping:
                raise Terminated
        if ema:
            ema.copy_to(segmenter)


def _continue(start: StepState, optimizer: Any, stage: Stage[Any], ema: ExponentialMovingAverage | None) -> None:
    """Put the optimiser, the stage and the average where they stood."""
    try:
        put_optimizer_state(optimizer, start.optimizer)
        stage.load_state_dict(start.stage)
        if ema and start.ema:
            ema.load_state_dict(start.ema)
    except (ValueError, KeyError, TypeError, AttributeError, RuntimeError) as error:
        raise TrainingError(
            f"the checkpoint does not fit stage {stage.name} ({' '.join(str(error).split())[:200]}); remove last.pt "
            "from the run's checkpoints, and --resume begins it anew; or choose another --out"
        ) from error


def _refuse_not_finite(segmenter: Segmenter, stage: str, step: int) -> None:
    """A checkpoint with NaN in it would make every run that goes on from it fail."""
    for name, value in segmenter.state_dict().items():
        if value.is_floating_point() and not torch.isfinite(value).all():
            raise DivergedError(f"stage {stage}, step {step}: the weights of {name} are not finite; {_remedy(stage)}")


def _remedy(stage: str) -> str:
    return f"start a new run with a lower {stage}.lr, or go on from the last checkpoint with --resume --precision 32"


@contextmanager
def _under_options(fabric: Fabric, segmenter: Segmenter, stage: Stage[Any], options: LoopOptions) -> Iterator[None]:
    """The segmenter as options of the loop change it while it is trained."""
    with ExitStack() as changes:
        if options.shard_weights:
            changes.enter_context(sharded_weights(fabric, segmenter, stage))
        if options.checkpoint_activations:
            changes.enter_context(recomputed_blocks(segmenter.model))
        if options.channels_last:
            changes.enter_context(channels_last(segmenter))
        yield


@contextmanager
def _trained(segmenter: Segmenter) -> Iterator[None]:
    """What is frozen within is thawed afterwards and the segmenter left in evaluation mode, Ctrl-C or not."""
    flags = [(p, p.requires_grad) for p in segmenter.parameters()]
    try:
        yield
    finally:
        for parameter, flag in flags:
            parameter.requires_grad_(flag)
        segmenter.zero_grad(set_to_none=True)
        segmenter.eval()


def _compiled(segmenter: Segmenter, fabric: Fabric, options: LoopOptions) -> nn.Module:
    """The segmenter, or what calls it through compiled code, as is asked for."""
    if options.compile != "on":
        return segmenter
    if fabric.world_size > 1:
        raise RecipeError("compile=on is for one device; leave it out with several")
    return cast(nn.Module, torch.compile(segmenter))


def _optimizer(groups: list[dict[str, Any]], options: LoopOptions, fabric: Fabric) -> torch.optim.Optimizer:
    # One launch for all weights, where a GPU would wait for many. Lightning can't clip for it where losses are scaled.
    fused = True if fabric.device.type == "cuda" and not _scales_losses(fabric) else None
    if options.optimizer == "sgd":
        return torch.optim.SGD(groups, momentum=0.9, fused=fused)
    return torch.optim.AdamW(groups, fused=fused)


@torch.no_grad()
def _clip_gradients(fabric: Fabric, model: nn.Module, optimizer: Any, options: LoopOptions) -> None:
    """Scale the gradients down to a norm; what is not finite is the meter's to tell, with the loss's name."""
    if options.shard_weights or _scales_losses(fabric):
        fabric.clip_gradients(model, optimizer, max_norm=options.clip, error_if_nonfinite=False)
        return
    # As torch.nn.utils.clip_grad_norm_ without what it does for each tensor, which a GPU waits for in short steps.
    gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
    if gradients:
        norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients)))
        torch._foreach_mul_(gradients, (options.clip / (norm + 1e-6)).clamp(max=1))


def _scales_losses(fabric: Fabric) -> bool:
    """Whether gradients are those of losses times a factor, as float16 needs."""
    return getattr(fabric._precision, "scaler", None) is not None


class _Meter:
    """Mean losses and speed since the last report; the one place that waits for the device."""

    def __init__(self, options: LoopOptions) -> None:
        self.options = options
        self.reset()

    def reset(self) -> None:
        self.totals: dict[str, Tensor] = {}
        self.counts: dict[str, int] = {}
        self.steps = 0
        self.since = time.perf_counter()

    def add(self, step: Sequence[dict[str, Tensor]]) -> None:
        """Losses of the batches of a step."""
        self.steps += 1
        for losses in step:
            for name, value in losses.items():
                self.totals[name] = self.totals[name] + value.detach() if name in self.totals else value.detach()
                self.counts[name] = self.counts.get(name, 0) + 1

    def record(self, step: int, steps: int, lr: float, stage: str) -> Record:
        losses = {name: float(total) / self.counts[name] for name, total in self.totals.items()}
        for name, value in losses.items():
            if not math.isfinite(value):
                raise DivergedError(f"stage {stage}, step {step}: the loss {name} is {value}; {_remedy(stage)}")
        images = self.steps * self.options.accumulate * self.options.batch_size
        speed = images / max(1e-9, time.perf_counter() - self.since)
        self.reset()
        return Record(step, steps, losses, lr, speed)
