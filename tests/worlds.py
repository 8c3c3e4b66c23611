"""Small data sets, networks and stage contexts for tests."""

import json
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from das3.data.open import open_images
from das3.models.small import small
from das3.segmenter import Segmenter
from das3.stages.context import StageContext
from das3.training.loop import make_fabric

COLORS = {
    "source": [(200, 200, 255), (90, 90, 90), (200, 30, 30)],
    "target": [(90, 80, 120), (60, 50, 30), (150, 60, 20)],
}


def write_world(folder: Path, domain: str, count: int = 8, seed: int = 0, size: tuple[int, int] = (48, 64)) -> Path:
    """Sky, road and a box: images/, labels/ and classes.json in `folder`."""
    rng = np.random.default_rng([seed, len(domain)])
    height, width = size
    for part in ("images", "labels"):
        (folder / part).mkdir(parents=True)
    for i in range(count):
        label = np.zeros(size, np.uint8)
        label[rng.integers(height // 4, height // 2) :] = 1
        x, y = rng.integers(0, width // 2), rng.integers(0, height // 2)
        label[y : y + height // 3, x : x + width // 4] = 2
        image = np.array(COLORS[domain])[label] + rng.normal(0, 15, (*size, 3))
        Image.fromarray(image.clip(0, 255).astype(np.uint8)).save(folder / "images" / f"{i}.png")
        Image.fromarray(label).save(folder / "labels" / f"{i}.png")
    (folder / "classes.json").write_text(json.dumps({"classes": ["sky", "road", "box"]}))
    return folder


def network(*layers: nn.Module) -> Segmenter:
    """Layers one after the other."""
    return Segmenter(nn.Sequential(*layers), example_size=(8, 8))


def pointwise_network() -> Segmenter:
    """Every pixel is predicted on its own, as one of three classes."""
    return network(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 3, 1))


def stage_context(segmenter: Segmenter, folder: Path, count: int = 3, size: tuple[int, int] = (10, 12)) -> StageContext:
    """A stage's context with images of noise."""
    images = [np.random.default_rng(i).integers(0, 256, (*size, 3), dtype=np.uint8) for i in range(count)]
    return StageContext(make_fabric("cpu", "32"), segmenter, open_images(images), folder, (0, 0), (8, 8), 2)


def synchronised(num_classes: int = 3) -> nn.Module:
    """A network with layers that synchronise themselves, on GPUs, beside usual ones."""
    torch.manual_seed(0)
    model = small(num_classes, width=8)
    model.context = nn.SyncBatchNorm.convert_sync_batchnorm(model.context)
    return model


def memory_for_one_image(module: nn.Module) -> nn.Module:
    """The module, but of several images at once it says that they do not fit into the memory."""

    def check(_: nn.Module, given: tuple[Tensor]) -> None:
        if len(given[0]) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory")

    module.register_forward_pre_hook(check)
    return module


def dark_corners(size: int) -> np.ndarray:
    """Illumination that falls off towards the corners, size × size, of mean 1."""
    y, x = np.mgrid[:size, :size] / (size - 1) - 0.5
    illumination = 1.3 - 2 * (x**2 + y**2)
    return illumination / illumination.mean()
