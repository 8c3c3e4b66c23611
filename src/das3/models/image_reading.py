"""How image files are read for a model: by what a user says, what the model has recorded, and what the images show."""

from __future__ import annotations

import math
from dataclasses import replace

from das3.data.images import FittedImages, Images
from das3.data.pixels import band_index
from das3.data.value_ranges import described
from das3.errors import RecipeError
from das3.recipe import ImageOptions
from das3.segmenter import Segmenter

__all__ = ["fit_images", "how_read", "read_as_fitted"]


def fit_images(images: Images, segmenter: Segmenter, options: ImageOptions) -> Images:
    """Read images as the network needs them, and record with the model how.

    Args:
        images: of the run, as `open_images` gives them.
        segmenter: its `pixels` and, where RGB bands are named, its `preprocess` are changed.
        options: what the user says; the model's record counts where that is nothing.

    Returns:
        The images with as many bands as the network takes.

    Raises:
        DataError: if an image does not have the bands, or can't be read.
        RecipeError: if an option can't be used.
    """
    if options.nodata is not None and not math.isfinite(options.nodata):
        raise RecipeError(f"--nodata {options.nodata}: NaN and infinite values never count; leave the option out")
    if options.bands is not None and not options.bands:
        raise RecipeError("--bands names no band; leave it out to take the bands as they come")
    fitted = images.fitted(
        segmenter.in_channels,
        pixel_range=options.pixel_range,
        nodata=options.nodata,
        bands=options.bands,
        recorded=segmenter.pixels,
    )
    if isinstance(fitted, FittedImages):
        segmenter.pixels = fitted.pixels
    if options.rgb_bands is not None:
        segmenter.preprocess = replace(segmenter.preprocess, rgb=_rgb(fitted, options))
    return fitted


def how_read(images: Images) -> list[str]:
    """What a user should know of how images are read and what of them is left out, a line each; none for 8-bit RGB."""
    lines = [described(images.pixels)] if images.pixels is not None else []
    return [*lines, *filter(None, [images.left_out()])]


def read_as_fitted(images: Images, segmenter: Segmenter) -> Images:
    """Other images, read as those that were fitted to the model."""
    return images.fitted(segmenter.in_channels, recorded=segmenter.pixels)


def _rgb(images: Images, options: ImageOptions) -> tuple[int, int, int]:
    """Where red, green and blue are among the bands that the network sees."""
    wanted = options.rgb_bands or []
    if len(wanted) != 3:
        raise RecipeError(f"--rgb-bands names red, green and blue, so three bands, got {len(wanted)}")
    name, form, bands = images.seen_bands()
    found = [band_index(form, band, name) for band in wanted]
    outside = [str(band) for band, index in zip(wanted, found, strict=True) if index not in bands]
    if outside:
        raise RecipeError(f"--rgb-bands: the network does not see band {outside[0]}; name bands that it does")
    red, green, blue = (bands.index(index) for index in found)
    return red, green, blue
