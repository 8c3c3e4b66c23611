"""Leave out images that can't be read, where the user says so."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from das3.data.images import Images
from das3.data.labels import Labelled
from das3.errors import DataError

__all__ = ["SkippedImage", "describe_skipped", "sound_images", "sound_labelled"]


@dataclass(frozen=True)
class SkippedImage:
    """An image that was left out.

    Attributes:
        name: as in `Images.names`.
        reason: why, in one line.
    """

    name: str
    reason: str


def sound_images(images: Images) -> tuple[Images, list[int], list[SkippedImage]]:
    """Decode every image once, and leave out those that can't be read.

    Returns:
        The sound images under their names, their indices in `images`, and what was left out.

    Raises:
        DataError: if none is left.
    """
    kept: list[int] = []
    skipped: list[SkippedImage] = []
    for i, name in enumerate(images.names):
        try:
            images.decode(i)
            kept.append(i)
        except DataError as error:
            skipped.append(SkippedImage(name, str(error)))
    if not kept:
        raise DataError(f"none of the {len(images)} images can be read, the first: {skipped[0].reason}")
    return (images.only(kept) if skipped else images), kept, skipped


def sound_labelled(labelled: Labelled) -> tuple[Labelled, list[SkippedImage]]:
    """`sound_images` of labelled images; bad labels are errors all the same.

    Raises:
        DataError: if none is left.
    """
    _, kept, skipped = sound_images(labelled.images)
    return (labelled.only(kept) if skipped else labelled), skipped


def describe_skipped(skipped: Sequence[SkippedImage]) -> list[str]:
    """What was left out, a line each after a line with the count; none for nothing."""
    if not skipped:
        return []
    whys = [one.reason.partition("; repair the file")[0] for one in skipped]
    return [f"{len(skipped)} images left out (--on-bad-image skip):", *(f"  {why}" for why in whys)]
