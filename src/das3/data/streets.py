"""Procedural street scenes in two domains: data for the demo that needs no download and no licence.

A scene is laid out in metres (ground plane, objects at a depth), projected by a pinhole camera, painted far to near into
a map of instances, and only then coloured: labels are exact, and texture and light never touch them. The two domains
differ in light, texture, sensor, layout and class frequencies.
"""

from __future__ import annotations

import io
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

from das3.data.images import Images

__all__ = ["CLASS_NAMES", "PALETTE", "Streets", "render"]

Domain = Literal["source", "target"]
Point = tuple[float, float]
Color = tuple[float, float, float]

CLASS_NAMES = ("road", "sidewalk", "building", "fence", "pole", "sign", "vegetation", "sky", "person", "car")
ROAD, SIDEWALK, BUILDING, FENCE, POLE, SIGN, VEGETATION, SKY, PERSON, CAR = range(10)
PALETTE = np.array(
    [
        (120, 80, 130),
        (230, 120, 200),
        (95, 95, 105),
        (190, 160, 120),
        (200, 200, 210),
        (240, 210, 40),
        (80, 150, 50),
        (120, 180, 230),
        (220, 40, 60),
        (30, 50, 170),
    ],
    np.uint8,
)
_ZOOM = 2  # scenes are painted at twice the size, so that edges and thin things are smooth


@dataclass(frozen=True)
class _Style:
    """What makes a domain. Ranges are (low, high) of a uniform draw."""

    camera: tuple[float, float]  # height in metres
    horizon: tuple[float, float]  # share of the picture's height
    road: tuple[float, float]  # half width in metres
    walk: tuple[float, float]  # width of the pavement
    bend: float  # curvature of the street
    floors: tuple[int, int]
    gap: float  # probability that a plot is a garden, not a house
    cars: float  # mean numbers
    people: float
    poles: float
    fences: float
    houses: tuple[Color, ...]
    asphalt: Color
    paving: Color
    leaves: Color
    sky: tuple[Color, Color]  # zenith, horizon
    grain: float  # strength of surface texture
    light: tuple[float, float]  # exposure
    tint: Color
    shade: float  # how much darker the ground gets towards the camera's sides
    blur: tuple[float, float]  # radius in pixels
    noise: float  # of the sensor
    lamps: bool


_STYLES: dict[Domain, _Style] = {
    "source": _Style(
        camera=(1.4, 1.8),
        horizon=(0.42, 0.5),
        road=(3.6, 5.0),
        walk=(2.0, 3.2),
        bend=0.001,
        floors=(2, 5),
        gap=0.2,
        cars=4.0,
        people=3.5,
        poles=4.0,
        fences=0.25,
        houses=((196, 170, 140), (180, 120, 100), (205, 200, 190), (150, 150, 165), (215, 190, 120)),
        asphalt=(105, 105, 110),
        paving=(170, 163, 155),
        leaves=(80, 130, 60),
        sky=((95, 150, 225), (200, 222, 245)),
        grain=8.0,
        light=(0.9, 1.1),
        tint=(1.0, 1.0, 0.97),
        shade=0.1,
        blur=(0.0, 0.4),
        noise=3.0,
        lamps=False,
    ),
    "target": _Style(
        camera=(1.5, 2.3),
        horizon=(0.38, 0.47),
        road=(3.0, 4.2),
        walk=(2.4, 4.5),
        bend=0.004,
        floors=(1, 4),
        gap=0.4,
        cars=2.0,
        people=5.0,
        poles=5.0,
        fences=0.5,
        houses=((165, 115, 95), (150, 142, 135), (180, 155, 120), (125, 130, 145), (150, 100, 88)),
        asphalt=(98, 92, 88),
        paving=(158, 148, 136),
        leaves=(88, 112, 58),
        sky=((120, 128, 160), (225, 180, 140)),
        grain=11.0,
        light=(0.62, 0.85),
        tint=(1.02, 0.96, 1.04),
        shade=0.2,
        blur=(0.3, 0.8),
        noise=5.0,
        lamps=True,
    ),
}


class _Painter:
    """Paints instances far to near; every instance has a class, a colour and a grain."""

    def __init__(self, size: tuple[int, int], style: _Style, rng: np.random.Generator) -> None:
        self.height, self.width = size
        self.style, self.rng = style, rng
        self.map = Image.new("I", (self.width, self.height), 0)
        self.draw = ImageDraw.Draw(self.map)
        self.classes, self.colors, self.grains = [SKY], [(0.0, 0.0, 0.0)], [0.0]
        self.camera = rng.uniform(*style.camera)
        self.horizon = self.height * rng.uniform(*style.horizon)
        self.centre = self.width * rng.uniform(0.42, 0.58)
        self.focal = self.width * 0.55
        self.bend = rng.normal(0, style.bend)

    def new(self, kind: int, color: Color, grain: float = 1.0, jitter: float = 0.0) -> int:
        """A new instance."""
        factor = 1 + self.rng.normal(0, jitter) if jitter else 1.0
        self.classes.append(kind)
        self.colors.append(tuple(c * factor for c in color))  # type: ignore[arg-type]
        self.grains.append(grain * self.style.grain)
        return len(self.classes) - 1

    def at(self, x: float, z: float, y: float = 0.0) -> Point:
        """Pixel of a point x metres right, z ahead, y above the ground."""
        sideways = x + self.bend * z * z
        return self.centre + self.focal * sideways / z, self.horizon + self.focal * (self.camera - y) / z

    def polygon(self, instance: int, *points: Point) -> None:
        self.draw.polygon(points, fill=instance)

    def upright(self, instance: int, x: float, z: float, width: float, low: float, high: float) -> None:
        """A rectangle that faces the camera; at least one final pixel wide."""
        (left, bottom), (right, top) = self.at(x - width / 2, z, low), self.at(x + width / 2, z, high)
        right = max(right, left + _ZOOM)
        self.draw.rectangle((left, min(top, bottom), right, max(top, bottom)), fill=instance)

    def ellipse(self, instance: int, x: float, z: float, y: float, wide: float, high: float) -> None:
        """An ellipse that faces the camera."""
        cx, cy = self.at(x, z, y)
        rx, ry = self.focal * wide / z / 2, self.focal * high / z / 2
        self.draw.ellipse((cx - rx, cy - ry, cx + rx, cy + ry), fill=instance)

    def strip(self, instance: int, inner: float, outer: float, near: float = 1.0, far: float = 90.0) -> None:
        """A band of the ground between two distances from the middle of the street."""
        depths = np.geomspace(near, far, 14)
        points = [self.at(inner, z) for z in depths] + [self.at(outer, z) for z in depths[::-1]]
        self.polygon(instance, *points)


def _ground(p: _Painter, road: float, walk: float) -> None:
    meadow = p.new(VEGETATION, p.style.leaves, 1.6, 0.1)
    p.polygon(meadow, (0, p.horizon), (p.width, p.horizon), (p.width, p.height), (0, p.height))
    p.strip(p.new(SIDEWALK, p.style.paving, 1.0, 0.06), -road - walk, road + walk)
    p.strip(p.new(ROAD, p.style.asphalt, 1.0, 0.08), -road, road)
    if p.rng.random() < 0.75:
        paint = p.new(ROAD, (225, 225, 215), 0.5)
        start = p.rng.uniform(0, 4)
        for z in np.arange(2.5 + start, 50, 6):
            p.strip(paint, -0.09, 0.09, z, z + 2.6)
    if p.rng.random() < 0.3:  # a crossing
        paint, z = p.new(ROAD, (215, 215, 205), 0.5), p.rng.uniform(6, 14)
        for x in np.arange(-road + 0.3, road - 0.4, 0.9):
            p.strip(paint, x, x + 0.45, z, z + 2.0)


def _house(p: _Painter, side: int, x: float, near: float, far: float) -> None:
    style, rng = p.style, p.rng
    floors = int(rng.integers(style.floors[0], style.floors[1] + 1))
    top, color = 3.1 * floors + rng.uniform(0.5, 1.5), style.houses[rng.integers(len(style.houses))]
    front = p.new(BUILDING, color, 1.3, 0.12)
    gable = p.new(BUILDING, tuple(0.8 * c for c in p.colors[front]), 1.3)  # type: ignore[arg-type]
    wide = side * (abs(x) + 10)
    p.polygon(gable, p.at(x, near), p.at(wide, near), p.at(wide, near, top), p.at(x, near, top))
    depths = np.linspace(near, far, 6)
    p.polygon(front, *[p.at(x, z) for z in depths], *[p.at(x, z, top) for z in depths[::-1]])
    glass = p.new(BUILDING, (70, 80, 95), 0.5, 0.2)
    lit = p.new(BUILDING, (235, 200, 120), 0.3) if style.lamps else glass
    count = max(1, int((far - near) / 2.6))
    for floor in range(floors):
        low = 3.1 * floor + 1.0
        for i in range(count):
            z0 = near + (far - near) * (i + 0.28) / count
            z1 = near + (far - near) * (i + 0.72) / count
            pane = lit if rng.random() < 0.3 else glass
            p.polygon(pane, p.at(x, z0, low), p.at(x, z1, low), p.at(x, z1, low + 1.4), p.at(x, z0, low + 1.4))


def _tree(p: _Painter, x: float, z: float) -> None:
    high = p.rng.uniform(3.5, 8)
    p.upright(p.new(VEGETATION, (85, 70, 55), 1.0, 0.1), x, z, 0.3, 0, high * 0.6)
    for _ in range(int(p.rng.integers(5, 9))):
        leaf = p.new(VEGETATION, p.style.leaves, 2.2, 0.16)
        wide = p.rng.uniform(1.2, 2.6)
        p.ellipse(leaf, x + p.rng.normal(0, 0.9), z, high * p.rng.uniform(0.6, 1.0), wide, wide * 0.9)


def _fence(p: _Painter, x: float, near: float, far: float) -> None:
    board = p.new(FENCE, (150, 125, 95) if p.rng.random() < 0.5 else (130, 135, 135), 1.2, 0.12)
    depths = np.linspace(near, far, 6)
    p.polygon(board, *[p.at(x, z) for z in depths], *[p.at(x, z, 1.2) for z in depths[::-1]])
    slat = p.new(FENCE, tuple(0.75 * c for c in p.colors[board]), 1.0)  # type: ignore[arg-type]
    for z in np.arange(near, far, 0.8):
        p.polygon(slat, p.at(x, z), p.at(x, z + 0.2), p.at(x, z + 0.2, 1.2), p.at(x, z, 1.2))


def _pole(p: _Painter, x: float, z: float) -> None:
    high = p.rng.uniform(3.0, 6.5)
    p.upright(p.new(POLE, (120, 122, 125), 0.6, 0.2), x, z, 0.28, 0, high)
    if p.rng.random() < 0.65:
        colors = ((200, 40, 40), (40, 80, 180), (235, 200, 40), (60, 60, 62))
        plate = p.new(SIGN, colors[p.rng.integers(4)], 0.4, 0.1)
        y, wide = p.rng.uniform(2.2, high), p.rng.uniform(0.8, 1.3)
        if p.rng.random() < 0.5:
            p.ellipse(plate, x, z, y, wide, wide)
        else:
            p.upright(plate, x, z, wide * 0.8, y - 0.5, y + 0.5)


def _person(p: _Painter, x: float, z: float) -> None:
    size, rng = p.rng.uniform(0.85, 1.1), p.rng
    coats = ((150, 40, 45), (45, 60, 110), (60, 60, 65), (190, 180, 160), (70, 110, 80), (120, 85, 60))
    legs = p.new(PERSON, coats[rng.integers(len(coats))], 0.6, 0.2)
    coat = p.new(PERSON, coats[rng.integers(len(coats))], 0.8, 0.2)
    for step in (-0.13, 0.13):
        p.upright(legs, x + step * size, z, 0.2 * size, 0, 0.85 * size)
    p.ellipse(coat, x, z, 1.1 * size, 0.6 * size, 0.95 * size)
    p.ellipse(p.new(PERSON, (205, 160, 130), 0.4, 0.15), x, z, 1.62 * size, 0.27 * size, 0.32 * size)


def _car(p: _Painter, x: float, z: float, away: bool) -> None:
    paints = ((180, 30, 35), (235, 235, 235), (40, 42, 48), (60, 90, 150), (150, 155, 160), (95, 110, 80))
    color = paints[p.rng.integers(len(paints))]
    body = p.new(CAR, color, 0.5, 0.1)
    side = p.new(CAR, tuple(0.75 * c for c in p.colors[body]), 0.5)  # type: ignore[arg-type]
    dark = p.new(CAR, (35, 38, 45), 0.3)
    back = z + p.rng.uniform(3.6, 4.6)
    edge = -0.85 if x > 0 else 0.85
    p.polygon(
        side, p.at(x + edge, z, 0.25), p.at(x + edge, back, 0.25), p.at(x + edge, back, 1.4), p.at(x + edge, z, 0.95)
    )
    p.upright(dark, x, z, 1.6, 0.0, 0.4)
    p.upright(body, x, z, 1.75, 0.25, 0.95)
    roof = [p.at(x - 0.8, z, 0.95), p.at(x + 0.8, z, 0.95), p.at(x + 0.62, z, 1.5), p.at(x - 0.62, z, 1.5)]
    p.polygon(body, *roof)
    pane = [p.at(x - 0.68, z, 1.0), p.at(x + 0.68, z, 1.0), p.at(x + 0.54, z, 1.4), p.at(x - 0.54, z, 1.4)]
    p.polygon(dark, *pane)
    lamp = p.new(CAR, (225, 60, 50) if away else (255, 245, 210), 0.1)
    for offset in (-0.68, 0.68):
        p.upright(lamp, x + offset, z, 0.28, 0.6, 0.8)


def _lay_out(p: _Painter) -> None:
    """Everything of one scene, far to near."""
    rng, style = p.rng, p.style
    road, walk = rng.uniform(*style.road), rng.uniform(*style.walk)
    _ground(p, road, walk)
    things: list[tuple[float, int, tuple[float, ...]]] = []
    for side in (-1, 1):
        z = rng.uniform(1.5, 6)
        while z < 70:
            length = rng.uniform(7, 16)
            x = side * (road + walk + rng.uniform(0.2, 1.5))
            if rng.random() < style.gap:
                things += [(z + d, 1, (x + side * rng.uniform(0.5, 4), z + d)) for d in rng.uniform(0, length, 3)]
                if rng.random() < style.fences * 2:
                    things.append((z, 2, (side * (road + walk + 0.1), z, z + length)))
            else:
                things.append((z, 0, (side, x, z, z + length)))
            z += length + rng.uniform(0, 1.5)
        if rng.random() < style.fences:
            near = rng.uniform(4, 20)
            things.append((near, 2, (side * (road + 0.25), near, near + rng.uniform(4, 12))))
    for kind, mean in ((3, style.poles), (4, style.people), (5, style.cars)):
        for _ in range(rng.poisson(mean)):
            z, side = float(np.exp(rng.uniform(np.log(4.0), np.log(28)))), rng.choice((-1, 1))
            if kind == 5:
                parked = rng.random() < 0.5
                x = side * (road - 1.0 if parked else road / 2)
                things.append((max(z, 5.5), 5, (x, max(z, 5.5), float(side > 0))))
            else:
                across = kind == 4 and rng.random() < 0.25
                x = rng.uniform(-road, road) if across else side * (road + rng.uniform(0.3, walk))
                things.append((z, kind, (x, z)))
    makers = (_house, _tree, _fence, _pole, _person, _car)
    for _, kind, arguments in sorted(things, key=lambda t: -t[0]):
        makers[kind](p, *arguments)  # type: ignore[operator]


def _smooth_noise(rng: np.random.Generator, height: int, width: int, cell: int) -> NDArray[np.float32]:
    """Noise of about unit strength with features of `cell` pixels."""
    coarse = rng.normal(0, 1, (-(-height // cell) + 1, -(-width // cell) + 1)).astype(np.float32)
    image = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
    return np.asarray(image)


def _shade(p: _Painter, instances: NDArray[np.int32]) -> NDArray[np.float32]:
    """Colours of the painted instances: base colour, grain, sky, light."""
    style, rng = p.style, p.rng
    height, width = instances.shape
    colors = np.array(p.colors, np.float32)[instances]
    rows = np.arange(height, dtype=np.float32)[:, None]
    zenith, low = (np.array(c, np.float32) for c in style.sky)
    rise = np.clip(rows / max(p.horizon, 1), 0, 1)[..., None]
    clouds = np.clip(_smooth_noise(rng, height, width, 40) + rng.normal(0, 0.6), 0, 1.5)[..., None]
    sky = zenith + (low - zenith) * rise + clouds * (np.float32(225) - zenith) * 0.35
    picture = np.where((instances == 0)[..., None], sky, colors)
    grain = 0.6 * _smooth_noise(rng, height, width, 2) + 0.7 * _smooth_noise(rng, height, width, 9)
    picture = picture + (grain * np.array(p.grains, np.float32)[instances])[..., None]
    distance = np.clip((rows - p.horizon) / (height - p.horizon), 0, 1)
    columns = np.abs(np.linspace(-1, 1, width, dtype=np.float32))[None]
    light = rng.uniform(*style.light) * (1 - style.shade * columns**2) * (1 - style.shade * 0.5 * distance)
    shadows = np.clip(_smooth_noise(rng, height, width, 60), -1, 1) * style.shade * 0.6
    picture = picture * (light * (1 + shadows))[..., None] * np.array(style.tint, np.float32)
    if style.lamps:
        picture += _glow(p, height, width)
    return picture


def _glow(p: _Painter, height: int, width: int) -> NDArray[np.float32]:
    """Light of street lamps and head lamps, blurred by the air."""
    small = Image.new("L", (width // 4, height // 4), 0)
    draw = ImageDraw.Draw(small)
    for _ in range(int(p.rng.integers(2, 6))):
        x, y, r = p.rng.uniform(0, width / 4), p.rng.uniform(0.3, 0.8) * height / 4, p.rng.uniform(1, 3)
        draw.ellipse((x - r, y - r, x + r, y + r), fill=255)
    soft = small.filter(ImageFilter.GaussianBlur(4)).resize((width, height), Image.Resampling.BILINEAR)
    return np.asarray(soft, np.float32)[..., None] * np.array((1.0, 0.85, 0.6), np.float32) * 0.9


def render(
    domain: Domain, rng: np.random.Generator, size: tuple[int, int] = (96, 192)
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """One scene.

    Args:
        domain: "source", sunny and tidy, or "target", a crowded old town at dusk through a poor camera.
        rng: all that differs from scene to scene.
        size: (height, width) in pixels.

    Returns:
        H×W×3 uint8 RGB, and H×W uint8 class ids, see `CLASS_NAMES`.
    """
    style = _STYLES[domain]
    painter = _Painter((size[0] * _ZOOM, size[1] * _ZOOM), style, rng)
    _lay_out(painter)
    instances = np.asarray(painter.map, np.int32)
    picture = Image.fromarray(_shade(painter, instances).clip(0, 255).astype(np.uint8))
    picture = picture.resize((size[1], size[0]), Image.Resampling.BOX)
    picture = picture.filter(ImageFilter.GaussianBlur(rng.uniform(*style.blur)))
    pixels = np.asarray(picture, np.float32) + rng.normal(0, style.noise, (*size, 3)).astype(np.float32)
    pixels = pixels.clip(0, 255).astype(np.uint8)
    if style.lamps:
        pixels = _jpeg(pixels, int(rng.integers(55, 85)))
    labels = np.array(painter.classes, np.uint8)[instances[::_ZOOM, ::_ZOOM]]
    return pixels, labels


def _jpeg(pixels: NDArray[np.uint8], quality: int) -> NDArray[np.uint8]:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=quality)
    return np.array(Image.open(buffer))


class _StreetImages(Images):
    def __init__(self, streets: Streets) -> None:
        super().__init__([f"{streets.domain}_{i:05d}" for i in range(len(streets))])
        self.streets = streets

    def __getitem__(self, i: int) -> NDArray[np.uint8]:  # type: ignore[override]
        return self.streets.image(i)

    def sizes(self) -> list[tuple[int, int]]:
        """All of the same size."""
        return [self.streets.size] * len(self)


class Streets:
    """A labelled data set of scenes; scene i depends on (domain, seed, i) alone.

    Args:
        domain: "source" or "target".
        count: number of scenes.
        seed: of all scenes.
        size: (height, width) in pixels.

    Attributes:
        images: the pictures alone, as adaptation takes them.
        num_classes, class_names: of the labels.
    """

    num_classes = len(CLASS_NAMES)
    class_names = CLASS_NAMES

    def __init__(self, domain: Domain, count: int, seed: int = 0, size: tuple[int, int] = (96, 192)) -> None:
        self.domain, self.count, self.seed, self.size = domain, count, seed, size
        self.images: Images = _StreetImages(self)
        self._kept: dict[int, tuple[NDArray[np.uint8], NDArray[np.uint8]]] = {}

    def __len__(self) -> int:
        return self.count

    def scene(self, i: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        """Picture and labels of scene i; rendered once and kept."""
        if not 0 <= i < self.count:
            raise IndexError(i)
        if i not in self._kept:
            rng = np.random.default_rng([self.seed, len(self.domain), ord(self.domain[0]), i])
            self._kept[i] = render(self.domain, rng, self.size)
        return self._kept[i]

    def image(self, i: int) -> NDArray[np.uint8]:
        """H×W×3 uint8 RGB."""
        return self.scene(i)[0]

    def label(self, i: int) -> NDArray[np.uint8]:
        """H×W uint8 class ids."""
        return self.scene(i)[1]

    def check(self, sample: int | None = None) -> None:
        """Nothing can be wrong with rendered labels."""

    def write(self, folder: Path) -> None:
        """Write images/NAME.png, labels/NAME.png and classes.json, as a user's own data would lie."""
        for part in ("images", "labels"):
            (folder / part).mkdir(parents=True, exist_ok=True)
        for i, name in enumerate(self.images.names):
            Image.fromarray(self.image(i)).save(folder / "images" / f"{name}.png")
            Image.fromarray(self.label(i)).save(folder / "labels" / f"{name}.png")
        classes = [{"name": n, "color": c} for n, c in zip(CLASS_NAMES, PALETTE.tolist(), strict=True)]
        (folder / "classes.json").write_text(json.dumps({"classes": classes, "ignore_index": 255}))
