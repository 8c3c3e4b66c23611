"""Slices of DICOM and NIfTI, written by their own libraries and read through das3."""

from pathlib import Path

import numpy as np
import pytest

from das3.data.open import open_images
from das3.data.volumes import VolumeSlices
from das3.errors import DataError

pydicom = pytest.importorskip("pydicom")
nibabel = pytest.importorskip("nibabel")

RAMP = np.linspace(0, 4095, 24 * 20).round().reshape(24, 20).astype(np.uint16)


def write_dicom(path: Path, pixels: np.ndarray | None, *, colour: str = "MONOCHROME2", **more: object) -> Path:
    from pydicom.dataset import FileDataset, FileMetaDataset
    from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = CTImageStorage
    meta.MediaStorageSOPInstanceUID = generate_uid()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    file = FileDataset(str(path), {}, file_meta=meta, preamble=b"\0" * 128)
    file.SOPClassUID, file.SOPInstanceUID = CTImageStorage, meta.MediaStorageSOPInstanceUID
    if pixels is not None:
        file.Rows, file.Columns = pixels.shape[-2:] if colour != "RGB" else pixels.shape[:2]
        file.SamplesPerPixel = 3 if colour == "RGB" else 1
        file.PhotometricInterpretation = colour
        file.BitsAllocated = 8 * pixels.itemsize
        file.BitsStored, file.HighBit = (8, 7) if pixels.itemsize == 1 else (12, 11)
        file.PixelRepresentation = int(pixels.dtype.kind == "i")
        if colour == "RGB":
            file.PlanarConfiguration = 0
        for name, value in more.items():
            setattr(file, name, value)
        file.PixelData = pixels.tobytes()
    file.save_as(path, enforce_file_format=True)
    return path


def test_a_radiograph_of_12_bits_keeps_its_levels(tmp_path: Path) -> None:
    write_dicom(tmp_path / "a.dcm", RAMP)
    images = open_images(tmp_path)
    assert (images.names, images.size(0)) == (["a"], (24, 20))
    np.testing.assert_allclose(images.fitted(3)[0][..., 1], RAMP / 4095, atol=1e-6)


def test_white_is_low_is_turned_round(tmp_path: Path) -> None:
    write_dicom(tmp_path / "a.dcm", RAMP, colour="MONOCHROME1")
    np.testing.assert_allclose(open_images(tmp_path).fitted(3)[0][..., 0], 1 - RAMP / 4095, atol=1e-6)


def test_a_ct_is_in_hounsfield_units(tmp_path: Path) -> None:
    write_dicom(tmp_path / "a.dcm", RAMP, RescaleSlope=1, RescaleIntercept=-1024)
    image = open_images(tmp_path).fitted(3, pixel_range="-1024,3071")[0]
    np.testing.assert_allclose(image[..., 0], RAMP / 4095, atol=1e-5)
    window = open_images(tmp_path).fitted(3, pixel_range="-160,240")[0]
    np.testing.assert_allclose(window[..., 0], ((RAMP - 1024.0 + 160) / 400).clip(0, 1), atol=1e-5)


def test_of_several_frames_the_first_is_taken_and_said(tmp_path: Path) -> None:
    write_dicom(tmp_path / "a.dcm", np.stack([RAMP, RAMP[::-1], RAMP]), NumberOfFrames=3)
    images = open_images(tmp_path).fitted(3)
    np.testing.assert_allclose(images[0][..., 0], RAMP / 4095, atol=1e-6)
    assert "pages after the first" in str(images.left_out())


def test_a_colour_image_is_rgb(tmp_path: Path) -> None:
    values = np.random.default_rng(0).integers(0, 256, (24, 20, 3)).astype(np.uint8)
    write_dicom(tmp_path / "a.dcm", values, colour="RGB")
    np.testing.assert_allclose(open_images(tmp_path).fitted(3)[0], values)


def test_a_dicom_file_without_pixels_is_named(tmp_path: Path) -> None:
    write_dicom(tmp_path / "report.dcm", None)
    with pytest.raises(DataError, match=r"report\.dcm.*without pixels; take it out"):
        open_images(tmp_path).sizes()


def test_a_damaged_dicom_file_is_named(tmp_path: Path) -> None:
    path = write_dicom(tmp_path / "a.dcm", RAMP)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(DataError, match=r"a\.dcm"):
        open_images(tmp_path).fitted(3)
    path.write_bytes(b"no DICOM")
    with pytest.raises(DataError, match=r"a\.dcm"):
        open_images(tmp_path).sizes()


def volume(shape: tuple[int, ...] = (7, 9, 5)) -> np.ndarray:
    return np.random.default_rng(1).normal(0, 50, shape).astype(np.float32)


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_every_slice_of_a_volume_is_an_image(tmp_path: Path, suffix: str) -> None:
    values = volume()
    nibabel.save(nibabel.Nifti1Image(values, np.eye(4)), tmp_path / f"scan{suffix}")
    images = open_images(tmp_path)
    assert isinstance(images, VolumeSlices)
    assert images.names == [f"scan/{k}" for k in range(5)]
    assert images.sizes() == [(9, 7)] * 5
    fitted = images.fitted(3, pixel_range="-200,200")
    for k in range(5):
        np.testing.assert_allclose(fitted[k][..., 2], (values[:, ::-1, k].T + 200) / 400, atol=1e-5)
    some = fitted.only([3, 1])
    assert some.names == ["scan/3", "scan/1"]
    np.testing.assert_array_equal(some[0], fitted[3])


def test_a_volume_is_turned_to_the_patients_axes(tmp_path: Path) -> None:
    values = volume()
    nibabel.save(nibabel.Nifti1Image(values, np.eye(4)), tmp_path / "a.nii")
    flipped = np.ascontiguousarray(values[::-1].transpose(2, 0, 1))  # slices first, from left to right
    affine = np.array([[0, -1, 0, 6], [0, 0, 1, 0], [1, 0, 0, 0], [0, 0, 0, 1.0]])
    nibabel.save(nibabel.Nifti1Image(flipped, affine), tmp_path / "b.nii")
    images = open_images(tmp_path).fitted(3, pixel_range="-200,200")
    for k in range(5):
        np.testing.assert_allclose(images[k], images[5 + k], atol=1e-6)


def test_the_fourth_side_of_a_volume_is_bands(tmp_path: Path) -> None:
    values = volume((7, 9, 5, 4))
    nibabel.save(nibabel.Nifti1Image(values, np.eye(4)), tmp_path / "a.nii")
    image = open_images(tmp_path).fitted(4, pixel_range="-200,200")[2]
    np.testing.assert_allclose(image, (values[:, ::-1, 2].transpose(1, 0, 2) + 200) / 400, atol=1e-5)


def test_volumes_are_not_mixed_with_pictures(tmp_path: Path) -> None:
    nibabel.save(nibabel.Nifti1Image(volume(), np.eye(4)), tmp_path / "a.nii")
    write_dicom(tmp_path / "b.dcm", RAMP)
    with pytest.raises(DataError, match=r"a\.nii is a NIfTI volume and .*b\.dcm is not"):
        open_images(tmp_path)


def test_a_damaged_volume_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.nii.gz").write_bytes(b"no gzip")
    with pytest.raises(DataError, match=r"a\.nii\.gz"):
        open_images(tmp_path)
