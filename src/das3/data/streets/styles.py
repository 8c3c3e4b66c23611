"""What makes a domain: the numbers behind layout, frequencies, surfaces, light and sensor."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

__all__ = ["STYLES", "Color", "Domain", "Range", "Style"]

Domain = Literal["source", "target"]
Color = tuple[float, float, float]
Range = tuple[float, float]


@dataclass(frozen=True)
class Style:
    """What makes a domain. A range is (low, high) of a uniform draw per scene; colours are RGB in [0, 255]."""

    # layout
    camera: Range  # height in metres
    lane: Range  # metres that the camera stands right of the street's middle
    horizon: Range  # share of the picture's height
    view: Range  # focal length over the picture's width
    road: Range  # half width in metres
    walk: Range  # width of the pavement
    bend: float  # standard deviation of the street's curvature, 1/m
    floors: tuple[int, int]
    bonnet: Range  # share of the picture's height
    # frequencies: probabilities, and mean numbers per scene
    garden: float
    side_street: float
    fence: float
    shop: float
    cars: float
    people: float
    poles: float
    trees: float
    # surfaces
    houses: tuple[Color, ...]
    roofs: tuple[Color, ...]
    leaves: tuple[Color, ...]
    asphalt: Color
    paving: Color
    cells: tuple[float, float, float]  # size in pixels of fine, leafy and patchy texture
    texture: tuple[float, float, float]  # strength of each
    # light: from the first to the second of a pair as the scene gets darker
    zenith: tuple[Color, Color]
    skyline: tuple[Color, Color]
    exposure: Range
    clouds: Range
    sun: float  # strength of cast shadows and of the difference between the street's sides
    haze: Range  # metres
    lamps: bool  # street lamps, head lamps and windows are lit
    wet: Range  # how much the ground mirrors
    # sensor
    blur: Range  # radius in pixels
    noise: Range
    vignette: float
    jpeg: tuple[int, int] | None  # quality


STYLES: dict[Domain, Style] = {
    "source": Style(
        camera=(1.4, 1.8),
        lane=(0.8, 1.8),
        horizon=(0.42, 0.5),
        view=(0.52, 0.6),
        road=(3.8, 5.2),
        walk=(2.2, 3.6),
        bend=0.001,
        floors=(2, 5),
        bonnet=(0.0, 0.05),
        garden=0.25,
        side_street=0.1,
        fence=0.4,
        shop=0.25,
        cars=5.0,
        people=3.2,
        poles=3.0,
        trees=2.0,
        houses=((196, 170, 140), (180, 120, 100), (205, 200, 190), (150, 150, 165), (215, 190, 120), (226, 214, 196)),
        roofs=((150, 80, 65), (95, 90, 95)),
        leaves=((80, 130, 60), (62, 112, 58), (112, 146, 66)),
        asphalt=(112, 112, 117),
        paving=(172, 165, 157),
        cells=(1, 2.5, 12),
        texture=(9.0, 24.0, 5.0),
        zenith=((80, 140, 222), (135, 165, 210)),
        skyline=((188, 216, 244), (214, 224, 236)),
        exposure=(1.12, 0.8),
        clouds=(0.0, 1.1),
        sun=0.42,
        haze=(250.0, 500.0),
        lamps=False,
        wet=(0.0, 0.0),
        blur=(0.0, 0.4),
        noise=(1.5, 4.0),
        vignette=0.08,
        jpeg=None,
    ),
    "target": Style(
        camera=(1.7, 2.5),
        lane=(-0.5, 1.0),
        horizon=(0.36, 0.46),
        view=(0.47, 0.56),
        road=(2.8, 3.9),
        walk=(2.6, 4.6),
        bend=0.004,
        floors=(1, 4),
        bonnet=(0.03, 0.09),
        garden=0.4,
        side_street=0.15,
        fence=0.5,
        shop=0.5,
        cars=3.0,
        people=5.5,
        poles=3.5,
        trees=2.5,
        houses=((160, 115, 96), (146, 140, 132), (182, 156, 122), (120, 126, 142), (148, 98, 86), (128, 136, 116)),
        roofs=((95, 60, 55), (70, 68, 74)),
        leaves=((104, 100, 48), (78, 84, 50), (128, 92, 50)),
        asphalt=(106, 101, 99),
        paving=(150, 140, 130),
        cells=(1.5, 4, 20),
        texture=(12.0, 28.0, 10.0),
        zenith=((150, 168, 196), (98, 106, 146)),
        skyline=((214, 212, 208), (212, 168, 142)),
        exposure=(1.0, 0.72),
        clouds=(0.2, 1.1),
        sun=0.0,
        haze=(80.0, 240.0),
        lamps=True,
        wet=(0.0, 0.2),
        blur=(0.3, 0.8),
        noise=(3.0, 6.5),
        vignette=0.25,
        jpeg=(50, 85),
    ),
}
