"""The classes of a street scene."""

import numpy as np

__all__ = ["BUILDING", "CAR", "CLASS_NAMES", "FENCE", "PALETTE", "PERSON", "POLE"]
__all__ += ["ROAD", "SIDEWALK", "SIGN", "SKY", "VEGETATION"]

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
"""Colour of each class, to draw it."""
