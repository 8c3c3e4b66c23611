"""Pictures of segmentations with Pillow alone: palettes, overlays, titled strips and contact sheets."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont, ImageOps

from das3.data.published.classes import CITYSCAPES
from das3.losses import IGNORE_INDEX

__all__ = ["colorize", "contact_sheet", "grid", "legend", "overlay", "palette", "strip"]

Picture = NDArray[np.uint8]
"""H×W×3 uint8 RGB."""

_CLOSE = 20.0  # CIELAB distance below which two colours are easily confused

_GAP, _HEAD = 4, 18  # pixels between pictures, and for the title above one


def palette(classes: int | Sequence[str]) -> NDArray[np.uint8]:
    """C×3 uint8 RGB colours of classes.

    Args:
        classes: C, or the names of the classes. 19 classes without names, and each name that Cityscapes has too, get
            its colours; others get colours of which each is as far as possible from all before it, and from black and
            white, and not close to those.
    """
    if isinstance(classes, int):
        names: Sequence[str] = CITYSCAPES.names if classes == 19 else [""] * classes
    else:
        names = [*CITYSCAPES.names] if list(classes) == [f"class {c}" for c in range(19)] else classes
    known = dict(zip(CITYSCAPES.names, CITYSCAPES.colors or (), strict=True))
    taken = np.array([known[name] for name in names if name in known], np.float64).reshape(-1, 3)
    far = _distinct()
    if len(taken):
        apart = np.linalg.norm(_lab(far.astype(np.float64))[:, None] - _lab(taken)[None], axis=2).min(axis=1)
        far = far[apart > _CLOSE]
    free = (far[i % len(far)] for i in range(len(names)))
    return np.array([known[name] if name in known else next(free) for name in names], np.uint8).reshape(-1, 3)


@cache
def _distinct() -> NDArray[np.uint8]:
    """255 colours, chosen greedily by their distance in CIELAB (the idea of Glasbey et al. 2007)."""
    levels = np.linspace(0, 255, 11).round()
    colors = np.stack(np.meshgrid(levels, levels, levels), axis=-1).reshape(-1, 3)
    lab = _lab(colors)
    lab[(lab[:, 0] < 35) | (lab[:, 0] > 92)] = np.nan  # too close to black or white
    nearest = np.minimum(*(((lab - _lab(np.full((1, 3), end))) ** 2).sum(axis=1) for end in (0.0, 255.0)))
    chosen = []
    for _ in range(IGNORE_INDEX):
        chosen.append(int(np.nanargmax(nearest)))
        nearest = np.minimum(nearest, ((lab - lab[chosen[-1]]) ** 2).sum(axis=1))
    return colors[chosen].astype(np.uint8)


def _lab(colors: NDArray[np.float64]) -> NDArray[np.float64]:
    """N×3 sRGB colours, 0 … 255, in CIELAB under D65."""
    share = colors / 255
    linear = np.where(share <= 0.04045, share / 12.92, ((share + 0.055) / 1.055) ** 2.4)
    to_xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
    xyz = linear @ (to_xyz / to_xyz.sum(axis=1, keepdims=True)).T
    x, y, z = np.where(xyz > 216 / 24389, np.cbrt(xyz), (24389 / 27 * xyz + 16) / 116).T
    return np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], axis=1)


def colorize(labels: NDArray[np.uint8], colors: NDArray[np.uint8] | None = None) -> Picture:
    """H×W class ids to H×W×3 RGB; `palette` colours when None; ids without a colour, as 255, are black."""
    colors = palette(IGNORE_INDEX) if colors is None else colors
    table = np.zeros((256, 3), np.uint8)
    table[: len(colors)] = colors
    painted: Picture = table[labels]
    return painted


def overlay(
    image: Picture, labels: NDArray[np.uint8], colors: NDArray[np.uint8] | None = None, opacity: float = 0.55
) -> Picture:
    """Class colours over the image, H×W×3; ignored pixels show the image.

    Args:
        image: H×W×3 uint8.
        labels: H×W class ids or 255.
        colors: C×3; see `colorize`.
        opacity: of the colours, in [0, 1].
    """
    painted = colorize(labels, colors).astype(np.float32)
    share = np.where(labels == IGNORE_INDEX, 0.0, opacity).astype(np.float32)[..., None]
    blended: Picture = (image * (1 - share) + painted * share).round().astype(np.uint8)
    return blended


def legend(names: Sequence[str], colors: NDArray[np.uint8], width: int) -> Picture:
    """A strip h×`width`×3 with the classes' colours and names, in as many lines as they need; long names are cut.

    Args:
        names: C class names.
        colors: C×3.
        width: in pixels; at least one class stands in a line, however narrow that is.
    """
    size = int(np.clip(width / 60, 11, 40))
    font, square = ImageFont.load_default(size), size
    cell = min(width, round(max((font.getlength(name) for name in names), default=0)) + 3 * square)
    columns = max(1, width // max(1, cell))
    line = round(1.5 * size)
    strip_ = Image.new("RGB", (width, line * -(-len(names) // columns)), "white")
    draw = ImageDraw.Draw(strip_)
    for i, (name, color) in enumerate(zip(names, colors.tolist(), strict=True)):
        left, top = i % columns * cell + square // 2, i // columns * line + (line - square) // 2
        draw.rectangle((left, top, left + square, top + square), fill=tuple(color))
        draw.text((left + round(1.5 * square), top), name, fill=(20, 20, 20), font=font)
    return np.array(strip_)


def strip(pictures: Sequence[Picture], titles: Sequence[str], scale: int = 1) -> Image.Image:
    """Pictures side by side, each under its title: before and after."""
    return grid([pictures], titles, scale)


def grid(rows: Sequence[Sequence[Picture]], titles: Sequence[str], scale: int = 1) -> Image.Image:
    """Rows of pictures under column titles.

    Args:
        rows: pictures; those of another size than the first one are fitted into it.
        titles: one per column.
        scale: enlarges the pictures.
    """
    height, width = (side * scale for side in rows[0][0].shape[:2])
    cells = [[_fitted(picture, (width, height)) for picture in row] for row in rows]
    cells[0] = [_titled(picture, title) for picture, title in zip(cells[0], titles, strict=True)]
    return _laid_out(cells)


def contact_sheet(
    pictures: Sequence[Picture], titles: Sequence[str], columns: int = 4, size: tuple[int, int] = (160, 240)
) -> Image.Image:
    """Pictures in reading order, each fitted into `size` (height, width) and under its own title."""
    cells = [_titled(_fitted(p, size[::-1]), title) for p, title in zip(pictures, titles, strict=True)]
    return _laid_out([cells[i : i + columns] for i in range(0, len(cells), columns)])


def _fitted(picture: Picture, size: tuple[int, int]) -> Image.Image:
    """As large as fits into (width, height), on white; enlarged pixels stay sharp."""
    enlarged = size[0] > picture.shape[1] and size[1] > picture.shape[0]
    method = Image.Resampling.NEAREST if enlarged else Image.Resampling.BILINEAR
    return ImageOps.pad(Image.fromarray(picture), size, method, color="white")


def _titled(picture: Image.Image, title: str) -> Image.Image:
    cell = Image.new("RGB", (picture.width, _HEAD + picture.height), "white")
    ImageDraw.Draw(cell).text((2, 2), title, fill=(20, 20, 20), font=ImageFont.load_default(12))
    cell.paste(picture, (0, _HEAD))
    return cell


def _laid_out(rows: Sequence[Sequence[Image.Image]]) -> Image.Image:
    """Rows of cells, flush left, on white."""
    width = max(sum(cell.width + _GAP for cell in row) for row in rows) - _GAP
    heights = [max(cell.height for cell in row) + _GAP for row in rows]
    sheet = Image.new("RGB", (width, sum(heights) - _GAP), "white")
    top = 0
    for row, height in zip(rows, heights, strict=True):
        left = 0
        for cell in row:
            sheet.paste(cell, (left, top))
            left += cell.width + _GAP
        top += height
    return sheet
