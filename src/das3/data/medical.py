"""Slices of DICOM and NIfTI files as samples, by their own libraries, pydicom and nibabel (`das3[medical]`)."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from das3.data.formats import Form
from das3.errors import DataError

__all__ = ["DICOM", "NIFTI", "dicom_form", "dicom_samples", "is_nifti", "nifti_shape", "nifti_slice", "slice_names"]

DICOM = (".dcm", ".dicom")
"""Suffixes of a DICOM file, which is one image, or several frames of which the first is taken."""
NIFTI = (".nii", ".nii.gz")
"""Suffixes of a NIfTI volume, each slice of which is an image."""


def is_nifti(path: str | Path) -> bool:
    """Whether a file is a NIfTI volume, by its name."""
    return str(path).lower().endswith(NIFTI)


def dicom_form(path: Path) -> Form:
    """What a DICOM file holds, from its header.

    Raises:
        DataError: without pydicom, or if the file has no pixels (a report, a structure set).
        Exception: of any other kind, if the header is damaged.
    """
    header = _library("pydicom").dcmread(path, stop_before_pixels=True)
    if "Rows" not in header or "Columns" not in header:
        kind = getattr(getattr(header, "SOPClassUID", None), "name", "DICOM file")
        raise DataError(f"can't read image {path}: it is a {kind} without pixels; take it out")
    signed, bright_is_low = bool(header.get("PixelRepresentation")), _is_inverted(header)
    floating = _is_rescaled(header) or (signed and bright_is_low)
    dtype = f"{'' if signed else 'u'}int{8 if header.get('BitsAllocated') == 8 else 16}"
    return Form(
        (int(header.Rows), int(header.Columns)),
        "float32" if floating else dtype,
        int(header.get("SamplesPerPixel", 1)),
        int(header.get("NumberOfFrames", 1) or 1),
        names=("red", "green", "blue") if header.get("SamplesPerPixel", 1) == 3 else (),
        reader="dicom",
        inverted=bright_is_low,
        bits=int(header.get("BitsStored", 16)),
        plain=False,
    )


def dicom_samples(path: Path, form: Form) -> NDArray[Any]:
    """H×W×B of the first frame: in Hounsfield units or what else the file's rescaling says, dark is low."""
    pydicom = _library("pydicom")
    pixels = importlib.import_module("pydicom.pixels")
    file = pydicom.dcmread(path)
    frame = pixels.pixel_array(file, index=0)
    if form.bands == 3 and str(file.get("PhotometricInterpretation", "")).startswith("YBR_FULL"):
        frame = pixels.convert_color_space(frame, file.PhotometricInterpretation, "RGB")
    if form.dtype == "float32":
        frame = pixels.apply_modality_lut(frame, file).astype(np.float32)
    if form.inverted:
        frame = -frame if form.dtype == "float32" else 2**form.bits - 1 - frame
    return np.asarray(frame.reshape(*form.size, form.bands), dtype=form.dtype)


def _is_inverted(header: Any) -> bool:
    """0 is white, as radiographs are often stored."""
    return bool(header.get("PhotometricInterpretation") == "MONOCHROME1")


def _is_rescaled(header: Any) -> bool:
    slope, intercept = header.get("RescaleSlope", 1), header.get("RescaleIntercept", 0)
    return (float(slope or 1), float(intercept or 0)) != (1.0, 0.0) or "ModalityLUTSequence" in header


def nifti_shape(path: Path) -> tuple[int, int, int, int]:
    """Height, width, slices and bands (the fourth side) of a volume as `nifti_slice` shows it, from its header.

    Raises:
        DataError: without nibabel, or if it has no three sides.
        Exception: of any other kind, if the header is damaged.
    """
    shape = _opened(path, path.stat().st_mtime_ns).shape
    if not 2 <= len(shape) <= 4 or 0 in shape:
        raise DataError(f"can't read image {path}: a volume of {len(shape)} sides ({'×'.join(map(str, shape))})")
    width, height, slices, bands = (*shape, 1, 1)[:4]
    return height, width, slices, bands


def nifti_slice(path: Path, number: int) -> NDArray[np.float32]:
    """H×W×B float32 of an axial slice, in the file's units: anterior on top, the patient's right side on the left.

    Args:
        path: the volume; it is turned to the nearest axes first, so that the third one runs from feet to head.
        number: of the slice, from the feet.
    """
    volume = _opened(path, path.stat().st_mtime_ns)
    flat = len(volume.shape) == 2
    values = np.asarray(volume.dataobj) if flat else np.asarray(volume.dataobj[:, :, number])
    bands = values.reshape(*volume.shape[:2], -1)  # x from the patient's right to the left, y from back to front
    return np.ascontiguousarray(bands.transpose(1, 0, 2)[::-1], dtype=np.float32)


@lru_cache(maxsize=2)
def _opened(path: Path, changed: int) -> Any:
    """The volume with its axes from right to left, back to front, feet to head; kept for its next slices."""
    nibabel = _library("nibabel")
    volume = nibabel.as_closest_canonical(nibabel.load(path))
    if path.name.lower().endswith(".gz"):  # each slice would be unpacked from the beginning
        volume = nibabel.Nifti1Image(volume.get_fdata(dtype=np.float32), volume.affine)
    return volume


def _library(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError:
        kind = "DICOM" if name == "pydicom" else "NIfTI"
        raise DataError(f"{kind} files need {name}; pip install 'das3[medical]'") from None


def slice_names(name: str, slices: int) -> Sequence[str]:
    """Names of a volume's slices, in order."""
    return [f"{name}/{k:0{len(str(slices - 1))}d}" for k in range(slices)]
