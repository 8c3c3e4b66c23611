"""From the map of instances to a photograph: colour, texture, light, sensor."""

from __future__ import annotations

import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

from das3.data.streets.classes import ROAD, SIDEWALK
from das3.data.streets.painter import FAR, ZOOM, Painter, mix
from das3.data.streets.styles import Style

__all__ = ["Surfaces", "record", "shade"]

Pixels = NDArray[np.float32]


class Surfaces:
    """The painted map at the final size: what each pixel shows, averaged over the painted pixels in it.

    Attributes:
        color, texture: H×W×3 float32, see `Painter.new`.
        haze: H×W×1, share of the air's colour over upright things.
        ground, floor, sky: H×W×1, share of the pixel that is flat ground, is road or pavement, is sky.
        labels: H×W uint8.
    """

    def __init__(self, p: Painter) -> None:
        depths, kinds = np.array(p.depths, np.float32), np.array(p.classes, np.uint8)
        table = np.zeros((len(kinds), 10), np.float32)
        table[:, :3], table[:, 3:6] = p.colors, p.textures
        flat = depths == 0
        table[:, 6] = np.where(flat, 0, 1 - np.exp(-depths / p.haze))
        table[:, 7] = flat
        table[:, 8] = (kinds == ROAD) | (kinds == SIDEWALK)
        table[0, 6:] = 0, 0, 0, 1
        instances = np.asarray(p.map, np.int32)
        parts = [table[instances[i::ZOOM, j::ZOOM]] for i in range(ZOOM) for j in range(ZOOM)]
        mean = sum(parts[1:], parts[0]) / np.float32(len(parts))
        self.color, self.texture = mean[..., :3], mean[..., 3:6]
        self.haze, self.ground, self.floor, self.sky = (mean[..., k : k + 1] for k in range(6, 10))
        self.labels = kinds[instances[::ZOOM, ::ZOOM]]


def _noise(rng: np.random.Generator, shape: tuple[int, int], cell: float, stretch: float = 1.0) -> Pixels:
    """H×W×1 noise of about unit strength with features of `cell` pixels, `stretch` times as wide as high."""
    height, width = shape
    cells = (int(height / cell) + 2, int(width / cell / stretch) + 2)
    coarse = Image.fromarray(rng.standard_normal(cells, np.float32))
    return np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC))[..., None]


def _sky(p: Painter, rows: Pixels, shape: tuple[int, int]) -> Pixels:
    style, rng = p.style, p.rng
    zenith = np.array(mix(*style.zenith, p.darkness), np.float32)
    skyline = np.array(mix(*style.skyline, p.darkness), np.float32)
    rise = np.clip(1 + rows, 0, 1) ** 1.5
    cover = _noise(rng, shape, 9, 2.5) + 0.5 * _noise(rng, shape, 3.5, 2.0)
    clouds = np.clip(cover * 0.6 + rng.uniform(*style.clouds) - 0.5, 0, 1)
    bright = skyline + (np.float32(245) - skyline) * np.float32(0.7 * (1 - p.darkness * style.lamps))
    sky = zenith + (skyline - zenith) * rise
    return (sky + clouds * (bright - sky) * 0.8).astype(np.float32)


def shade(p: Painter, seen: Surfaces) -> Pixels:
    """Colour, texture, haze, sky, shadows, mirroring and light: H×W×3 of about 0 to 255."""
    style, rng, shape = p.style, p.rng, seen.labels.shape
    rows = ((np.arange(shape[0], dtype=np.float32) * ZOOM - p.horizon) / p.horizon)[:, None, None]  # −1 top, 0 horizon
    texture = sum(
        seen.texture[..., k : k + 1] * _noise(rng, shape, cell) * np.float32(strength / 110)
        for k, (cell, strength) in enumerate(zip(style.cells, style.texture, strict=True))
    )
    picture = seen.color * (1 + texture)
    depth = p.focal * p.camera / np.maximum(rows * p.horizon, 1)
    veil = seen.haze + seen.ground * (1 - np.exp(-np.minimum(depth, FAR) / np.float32(p.haze)))
    picture += veil * (np.array(mix(*style.skyline, p.darkness), np.float32) * (1 - seen.sky) - picture)
    picture += seen.sky * _sky(p, rows, shape)
    shadow = p.shadows.resize(shape[::-1], Image.Resampling.BOX).filter(ImageFilter.BoxBlur(0.5 if style.sun else 2))
    picture *= 1 - np.float32((style.sun or 0.45) / 255) * np.asarray(shadow, np.float32)[..., None] * seen.ground
    if style.wet[1]:
        mirror = np.float32(rng.uniform(*style.wet))
        picture += mirror * seen.floor * (_mirrored(picture, int(p.horizon / ZOOM)) - picture)
    picture *= np.float32(style.exposure[0] + (style.exposure[1] - style.exposure[0]) * p.darkness)
    return picture + _glow(p, shape) if style.lamps else picture


def _mirrored(picture: Pixels, horizon: int) -> Pixels:
    """What wet ground mirrors: the picture turned over at the horizon, smeared."""
    height, width, _ = picture.shape
    source = np.clip(2 * horizon - np.arange(height), 0, height - 1)
    small = Image.fromarray(picture[source].clip(0, 255).astype(np.uint8)).resize((width // 2, height // 8))
    return np.asarray(small.resize((width, height), Image.Resampling.BICUBIC), np.float32)


def _glow(p: Painter, shape: tuple[int, int]) -> Pixels:
    """Light of lamps, and of the own head lamps on the road, spread by the air; brighter the darker it is."""
    height, width = shape
    small, part = Image.new("RGB", (width // 2, height // 2)), 2 * ZOOM
    draw = ImageDraw.Draw(small)
    for (x, y), radius, color in p.lights:
        x, y, r = x / part, y / part, min(max(radius / part, 0.4), 2.5)
        draw.ellipse((x - r, y - r, x + r, y + r), fill=tuple(int(c) for c in color))
    glow = np.asarray(small.filter(ImageFilter.GaussianBlur(0.8)), np.float32) * 0.6
    glow += np.asarray(small.filter(ImageFilter.GaussianBlur(3.5)), np.float32) * 1.2
    rows, columns = np.ogrid[0 : glow.shape[0], 0 : glow.shape[1]]
    across, down = (columns * part - p.centre) / p.width, (rows * part - p.horizon) / p.height
    beam = np.exp(-((across / 0.28) ** 2) - ((down - 0.28) / 0.14) ** 2)[..., None]
    glow += beam * np.array((46, 43, 35), np.float32)
    spread = Image.fromarray(glow.clip(0, 255).astype(np.uint8)).resize((width, height), Image.Resampling.BILINEAR)
    return np.asarray(spread, np.float32) * np.float32(0.3 + 0.8 * p.darkness)


def record(picture: Pixels, style: Style, rng: np.random.Generator) -> NDArray[np.uint8]:
    """What the camera makes of the light: lens, sensor, compression."""
    height, width, _ = picture.shape
    image = Image.fromarray(picture.clip(0, 255).astype(np.uint8))
    image = image.filter(ImageFilter.GaussianBlur(rng.uniform(*style.blur)))
    y, x = np.ogrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j]
    light = np.asarray(image, np.float32) * (1 - style.vignette * (x**2 + y**2) / 2).astype(np.float32)[..., None]
    grain = rng.uniform(*style.noise) * rng.standard_normal((height, width, 3), np.float32)
    pixels = (light + grain).clip(0, 255).astype(np.uint8)
    return _jpeg(pixels, int(rng.integers(*style.jpeg))) if style.jpeg else pixels


def _jpeg(pixels: NDArray[np.uint8], quality: int) -> NDArray[np.uint8]:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=quality)
    return np.array(Image.open(buffer))
