"""Check that a stage keeps the rules of das3: `check_stage(MyStage)`, for stages of das3 and of other packages alike.

    from das3.testing import check_stage, stage_checks

    def test_my_stage():
        check_stage(MyStage)

    @pytest.mark.parametrize("check", stage_checks(MyStage), ids=lambda check: check.__name__)
    def test_my_stage_check_by_check(check, tmp_path):
        check(MyStage, tmp_path)

What a stage can't do is said by its `tags` (see `das3.stages.base.StageTags`), and is then not asked of it.
"""

from __future__ import annotations

import dataclasses
import io
import math
import os
import socket
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.multiprocessing.spawn import spawn

from das3.data.open import open_images
from das3.errors import RecipeError
from das3.segmenter import Segmenter
from das3.stages import LoopOptions, Stage, StageContext, StageOptions
from das3.stages.options import bounds_of
from das3.training.loop import Record, StepState, make_fabric, train

__all__ = ["check_stage", "run_small", "small_segmenter", "stage_checks"]

StageType = type[Stage[Any]]
Check = Callable[[StageType, Path], None]

LOOP = LoopOptions(batch_size=4, checkpoint_every=2, log_every=1, ema_decay=0.5)
STEPS = 4
SEED = (0, 0)
TOLERANCE = 1e-5
"""How much weights of two processes may differ from those of one: sums are added up in another order."""


def check_stage(stage: StageType, *, processes: bool = True) -> None:
    """Run every check that the stage's tags allow.

    Args:
        stage: the class.
        processes: also compare two processes with one, which takes about ten seconds.

    Raises:
        AssertionError: saying which rule is broken, and how.
    """
    for check in stage_checks(stage, processes=processes):
        with tempfile.TemporaryDirectory(prefix="das3-check-") as folder:
            check(stage, Path(folder))


def stage_checks(stage: StageType, *, processes: bool = True) -> list[Check]:
    """The checks that hold for a stage: functions of (stage, empty folder)."""
    checks: list[Check] = [
        check_options,
        check_losses_are_finite,
        check_frozen_parts,
        check_model_is_left_as_it_was,
        check_same_seed,
    ]
    if stage.Options().steps:
        checks += [check_resumes_bit_equal, check_two_classes_of_one_logit, check_images_of_five_bands]
        if stage.tags.ignores_padding:
            checks.append(check_padding_changes_no_loss)
    if processes and stage.tags.equal_over_processes:
        checks.append(check_equal_over_processes)
    return checks


# ---------------------------------------------------------------------------------------------- what is run


def small_segmenter(channels: int = 3, *, bands: int = 3, pointwise: bool = False, dropout: float = 0.1) -> Segmenter:
    """A network with batch norm and dropout for three classes, always with the same weights.

    Args:
        channels: of its logits; 1 makes two classes of one sigmoid logit.
        bands: of the images it takes.
        pointwise: every pixel is predicted on its own.
        dropout: its probability.
    """
    stride, kernel = (1, 1) if pointwise else (2, 3)
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        first = [nn.Conv2d(bands, 8, kernel, stride, kernel // 2), nn.BatchNorm2d(8), nn.ReLU()]
        second = [nn.Conv2d(8, 8, kernel, stride, kernel // 2), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout(dropout)]
        last = nn.Conv2d(8, channels, 1)
        with torch.no_grad():
            last.weight *= 10  # some pixels are sure
        return Segmenter(nn.Sequential(*first, *second, last), example_size=(16, 16))


def _stripes(size: tuple[int, int], bands: int) -> list[np.ndarray[Any, np.dtype[np.uint8]]]:
    """Four images of stripes in three colours, with some noise; bands after the third repeat the first ones."""
    colors = np.array([(200, 40, 40), (40, 200, 40), (40, 40, 200)])
    images = []
    for i in range(4):
        stripes = colors[(np.arange(size[1]) // 8 + i) % 3]
        noise = np.random.default_rng(i).normal(0, 20, (*size, 3))
        images.append((stripes + noise)[..., np.arange(bands) % 3].clip(0, 255).astype(np.uint8))
    return images


def _prepared(
    stage: StageType,
    folder: Path,
    segmenter: Segmenter,
    fabric: Any,
    *,
    size: tuple[int, int] = (32, 40),
    loop: LoopOptions = LOOP,
    **options: Any,
) -> tuple[Stage[Any], Any, StageContext]:
    """The stage after `prepare`, its samples, its context."""
    steps = STEPS if stage.Options().steps else 0
    short = stage.Options(**{"lr": 1e-2, "steps": steps, **options})
    batch_size = loop.batch_size // fabric.world_size
    images = open_images(_stripes(size, segmenter.in_channels)).fitted(segmenter.in_channels)
    context = StageContext(fabric, segmenter, images, folder, SEED, (32, 32), batch_size)
    made = stage(short)
    if short.bn_mode != "frozen":
        context.reestimate_bn()
    return made, made.prepare(context), context


@dataclasses.dataclass
class SmallRun:
    """What `run_small` leaves: the trained network, what was reported, the state after half of the steps."""

    segmenter: Segmenter
    records: list[Record]
    states: list[dict[str, Any]]


def run_small(
    stage: StageType,
    folder: Path,
    *,
    channels: int = 3,
    bands: int = 3,
    start: dict[str, Any] | None = None,
    devices: int = 1,
    dropout: float = 0.1,
    loop: LoopOptions = LOOP,
    **options: Any,
) -> SmallRun:
    """Train `small_segmenter` by a stage for four steps on four small images.

    Args:
        stage: the class.
        folder: of the stage's files.
        channels: of the network's logits.
        bands: of the images.
        start: a state of an earlier run to go on from.
        devices: number of processes; this is one of them.
        dropout: of the network.
        loop: options of the training loop.
        options: of the stage.
    """
    fabric = make_fabric("cpu", "32", devices)
    fabric.launch()
    run = SmallRun(small_segmenter(channels, bands=bands, dropout=dropout), [], [])
    made, samples, context = _prepared(stage, folder, run.segmenter, fabric, loop=loop, **options)
    resumed = None
    if start:
        run.segmenter.load_state_dict(start["segmenter"])
        resumed = StepState(start["step"], start["optimizer"], start["stage"], start["ema"])

    def save(state: StepState) -> None:
        buffer = io.BytesIO()
        torch.save({"segmenter": run.segmenter.state_dict(), **dataclasses.asdict(state)}, buffer)
        run.states.append(torch.load(io.BytesIO(buffer.getvalue()), weights_only=True))

    train(fabric, run.segmenter, made, samples, loop, seed=SEED, start=resumed, report=run.records.append, save=save)
    made.finish(context)
    return run


def _different(one: nn.Module, other: nn.Module, tolerance: float = 0.0) -> list[str]:
    """Names of the tensors of two networks that are not equal."""
    pairs = zip(one.state_dict().items(), other.state_dict().values(), strict=True)
    return [name for (name, a), b in pairs if not _close(a, b, tolerance)]


def _close(a: Tensor, b: Tensor, tolerance: float) -> bool:
    return (
        torch.equal(a, b) if not tolerance else torch.allclose(a.double(), b.double(), rtol=tolerance, atol=tolerance)
    )


# ---------------------------------------------------------------------------------------------- the checks


def check_options(stage: StageType, folder: Path) -> None:
    """Options have defaults, every number has a range, and a value out of the range is refused."""
    assert stage.name, f"{stage.__name__} has no name"
    assert stage.__doc__, f"{stage.__name__} has no docstring"
    options = stage.Options()
    assert isinstance(options, StageOptions), f"{stage.__name__}.Options must inherit from StageOptions"
    for field in dataclasses.fields(options):
        value = getattr(options, field.name)
        if isinstance(value, bool) or not isinstance(value, int | float):
            continue
        for wrong in _just_outside(bounds_of(stage.Options, field.name)):
            complaint = _complaint(options, {field.name: wrong})
            assert complaint, f"{stage.name}: {field.name}={wrong} is out of its range, and is not refused"
            assert field.name in complaint, f"the error for {field.name}={wrong} does not name the option: {complaint}"


def _complaint(options: StageOptions, change: dict[str, Any]) -> str | None:
    try:
        dataclasses.replace(options, **change)
    except RecipeError as error:
        return str(error)
    return None


def _just_outside(bounds: Any) -> Iterator[float]:
    if "low" in bounds:
        yield bounds["low"] - 1
    if "high" in bounds:
        yield bounds["high"] + 1
    yield from (bounds[name] for name in ("above", "below") if name in bounds)
    yield math.nan


def check_losses_are_finite(stage: StageType, folder: Path) -> None:
    """Every step reports finite losses, and the weights stay finite."""
    run = run_small(stage, folder)
    expected = list(range(1, STEPS + 1)) if stage.Options().steps else []
    assert [record.step for record in run.records] == expected, f"{stage.name} did not take {STEPS} steps"
    for record in run.records:
        for name, value in record.losses.items():
            assert math.isfinite(value), f"{stage.name}, step {record.step}: the loss {name} is {value}"
    for name, tensor in run.segmenter.state_dict().items():
        assert torch.isfinite(tensor).all(), f"{stage.name}: {name} is not finite after training"


def check_frozen_parts(stage: StageType, folder: Path) -> None:
    """Parameters that `trainable` does not name stay bit-equal; some of those that it names move."""
    run, before = run_small(stage, folder), small_segmenter()
    named = {id(p) for p in stage(stage.Options()).trainable(run.segmenter)}
    frozen = {name for name, p in run.segmenter.named_parameters() if id(p) not in named}
    moved = set(_different(before, run.segmenter)) & {name for name, _ in before.named_parameters()}
    assert not moved & frozen, f"{stage.name} changed what it does not train: {sorted(moved & frozen)}"
    if stage.Options().steps:
        assert moved, f"{stage.name} trained nothing"


def check_model_is_left_as_it_was(stage: StageType, folder: Path) -> None:
    """The network keeps its layers, its tensors' names, shapes and types, and which parameters require gradients."""
    run, before = run_small(stage, folder), small_segmenter()
    layers = [[(name, type(module)) for name, module in one.named_modules()] for one in (before, run.segmenter)]
    assert layers[0] == layers[1], f"{stage.name} changed the network's layers"
    tensors = [{k: (v.shape, v.dtype) for k, v in one.state_dict().items()} for one in (before, run.segmenter)]
    assert tensors[0] == tensors[1], f"{stage.name} changed names, shapes or types of the network's tensors"
    flags = [[p.requires_grad for p in one.parameters()] for one in (before, run.segmenter)]
    assert flags[0] == flags[1], f"{stage.name} left parameters frozen, or trainable, that came otherwise"
    hooked = [name for name, module in run.segmenter.named_modules() if module._forward_hooks]
    assert not hooked, f"{stage.name} left forward hooks on {hooked}"


def check_same_seed(stage: StageType, folder: Path) -> None:
    """Two runs of one seed end bit-equal: randomness comes from torch, which every step seeds, or `context.seed`."""
    one, other = (run_small(stage, folder / name).segmenter for name in ("one", "other"))
    assert not (wrong := _different(one, other)), f"{stage.name}: two runs of one seed differ in {wrong}"


def check_resumes_bit_equal(stage: StageType, folder: Path) -> None:
    """A run that goes on from its state after two steps ends as one that was not interrupted."""
    whole = run_small(stage, folder)
    assert [state["step"] for state in whole.states] == [2]
    resumed = run_small(stage, folder, start=whole.states[0])
    wrong = _different(whole.segmenter, resumed.segmenter)
    assert not wrong, f"{stage.name}: a resumed run differs in {wrong}; carry state in buffers, seed from the context"


def check_two_classes_of_one_logit(stage: StageType, folder: Path) -> None:
    """A network with one sigmoid logit, two classes, can be trained."""
    for record in run_small(stage, folder, channels=1).records:
        assert all(math.isfinite(v) for v in record.losses.values()), f"{stage.name}: {record.losses} with one logit"


def check_images_of_five_bands(stage: StageType, folder: Path) -> None:
    """A network that takes images of other bands than RGB can be trained; what the stage builds takes as many."""
    for record in run_small(stage, folder, bands=5).records:
        assert all(math.isfinite(v) for v in record.losses.values()), f"{stage.name}: {record.losses} with five bands"


def check_padding_changes_no_loss(stage: StageType, folder: Path) -> None:
    """What the padding of a crop shows does not matter: leave pixels out of the loss where `valid` is false."""
    segmenter = small_segmenter(pointwise=True)
    made, samples, _ = _prepared(stage, folder, segmenter, make_fabric("cpu", "32"), size=(20, 24))
    batch = torch.utils.data.default_collate([samples[n] for n in range(4)])
    padding = ~batch["valid"].unsqueeze(1)
    segmenter.eval()
    found = []
    for value in (0.0, 0.9):
        shown = {k: v.masked_fill(padding, value) if v.is_floating_point() else v for k, v in batch.items()}
        torch.manual_seed(0)
        found.append({name: loss.item() for name, loss in made.loss(segmenter, shown).items()})
    for name, value in found[0].items():
        close = math.isclose(value, found[1][name], rel_tol=1e-5, abs_tol=1e-7)
        assert close, f"{stage.name}: the loss {name} sees the padding ({value} and {found[1][name]})"


def check_equal_over_processes(stage: StageType, folder: Path) -> None:
    """Two processes with half of each batch end as one process with all of it."""
    one = run_small(stage, folder / "one", dropout=0.0).segmenter  # dropout draws for each half of a batch anew
    state = _in_two_processes(stage, folder / "two")
    other = small_segmenter()
    other.load_state_dict(state)
    wrong = _different(one, other, TOLERANCE)
    assert not wrong, f"{stage.name}: weights of two processes differ from those of one in {wrong}"


def _in_two_processes(stage: StageType, folder: Path) -> dict[str, Tensor]:
    folder.mkdir(parents=True)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    spawn(_process, (stage, folder, port), nprocs=2)
    state: dict[str, Tensor] = torch.load(folder / "weights.pt", weights_only=True)
    return state


def _process(rank: int, stage: StageType, folder: Path, port: int) -> None:
    torch.set_num_threads(1)
    where = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2"}
    with _environment({**where, "LOCAL_RANK": str(rank), "RANK": str(rank), "NODE_RANK": "0"}):
        run = run_small(stage, folder / "stage", devices=2, dropout=0.0)
    if rank == 0:
        torch.save(run.segmenter.state_dict(), folder / "weights.pt")


@contextmanager
def _environment(values: dict[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
