"""Pictures of segmentations with Pillow alone: colour maps, overlays, titled strips."""

from __future__ import annotations

import colorsys
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

__all__ = ["colorize", "grid", "overlay", "palette"]

IGNORE = 255


def palette(num_classes: int) -> NDArray[np.uint8]:
    """C×3 RGB colours, neighbours far apart in hue and alternating in lightness."""
    golden = 0.618034
    colors = [
        colorsys.hls_to_rgb((0.58 + c * golden) % 1, (0.35, 0.55, 0.72)[c % 3], (0.55, 0.75)[c % 2])
        for c in range(num_classes)
    ]
    return (np.array(colors) * 255).round().astype(np.uint8)


def colorize(labels: NDArray[np.uint8], colors: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """H×W class ids to H×W×3 RGB; ignored pixels are black."""
    table = np.zeros((256, 3), np.uint8)
    table[: len(colors)] = colors
    painted: NDArray[np.uint8] = table[labels]
    return painted


def overlay(
    image: NDArray[np.uint8], labels: NDArray[np.uint8], colors: NDArray[np.uint8], opacity: float = 0.55
) -> NDArray[np.uint8]:
    """Class colours over the image, H×W×3; ignored pixels show the image."""
    painted = colorize(labels, colors).astype(np.float32)
    share = np.where(labels == IGNORE, 0.0, opacity)[..., None]
    blended: NDArray[np.uint8] = (image * (1 - share) + painted * share).round().astype(np.uint8)
    return blended


def grid(rows: Sequence[Sequence[NDArray[np.uint8]]], titles: Sequence[str], scale: int = 1) -> Image.Image:
    """Rows of equally sized H×W×3 pictures under column titles."""
    height, width = (s * scale for s in rows[0][0].shape[:2])
    gap, head = 4, 18
    sheet = Image.new(
        "RGB", (len(titles) * (width + gap) - gap, head + len(rows) * (height + gap) - gap), (255, 255, 255)
    )
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(12)
    for column, title in enumerate(titles):
        draw.text((column * (width + gap) + 2, 2), title, fill=(20, 20, 20), font=font)
        for line, row in enumerate(rows):
            picture = Image.fromarray(row[column]).resize((width, height), Image.Resampling.NEAREST)
            sheet.paste(picture, (column * (width + gap), head + line * (height + gap)))
    return sheet
