"""Pictures of known labels, pixel by pixel."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from das3.data.published.classes import CITYSCAPES, SUBSETS
from das3.data.visualize import _GAP, _HEAD, _lab, colorize, contact_sheet, grid, legend, overlay, palette, strip

LABELS = np.array([[0, 1, 255], [2, 2, 0]], np.uint8)
COLORS = np.array([[10, 20, 30], [200, 0, 0], [0, 0, 250]], np.uint8)


def plain(value: int, height: int = 20, width: int = 60) -> np.ndarray:
    return np.full((height, width, 3), value, np.uint8)


def test_cityscapes_classes_have_their_colours() -> None:
    assert palette(19).tolist() == [list(color) for color in CITYSCAPES.colors or ()]
    some = [CITYSCAPES.names[c] for c in SUBSETS[13]]
    np.testing.assert_array_equal(palette(some), palette(19)[list(SUBSETS[13])])


@given(st.integers(2, 255).filter(lambda count: count != 19))
def test_colours_are_distinct_also_from_ignored_black_and_white(count: int) -> None:
    colors = palette(count)
    assert colors.shape == (count, 3)
    np.testing.assert_array_equal(colors[:2], palette(2))
    lab = _lab(np.concatenate([colors, [[0, 0, 0], [255, 255, 255]]]).astype(float))
    distances = np.linalg.norm(lab[:, None] - lab[None], axis=-1) + 1e9 * np.eye(len(lab))
    assert distances.min() > (40 if count <= 12 else 25 if count <= 40 else 8)  # 2.3 can just be seen


def test_cielab_is_that_of_the_standard() -> None:
    colors = np.array([[255, 255, 255], [0, 0, 0], [255, 0, 0], [0, 0, 255], [119, 119, 119]], float)
    expected = [[100, 0, 0], [0, 0, 0], [53.24, 80.09, 67.20], [32.30, 79.19, -107.86], [50.03, 0, 0]]
    np.testing.assert_allclose(_lab(colors), expected, atol=0.05)


def test_any_names_and_more_classes_than_colours() -> None:
    np.testing.assert_array_equal(palette(["a", "b"]), palette(2))
    mixed = palette(["lane", "road", "car", "b"])  # names that Cityscapes has keep its colours among others
    np.testing.assert_array_equal(mixed[1:3], palette(19)[[0, 13]])
    assert len({tuple(color) for color in mixed.tolist()}) == 4
    np.testing.assert_array_equal(palette([f"class {c}" for c in range(19)]), palette(19))
    assert palette(300).shape == (300, 3)


def test_ids_become_colours_and_ignored_pixels_black() -> None:
    painted = colorize(LABELS, COLORS)
    expected = [[[10, 20, 30], [200, 0, 0], [0, 0, 0]], [[0, 0, 250], [0, 0, 250], [10, 20, 30]]]
    np.testing.assert_array_equal(painted, expected)
    np.testing.assert_array_equal(colorize(LABELS[1:, :2]), palette(3)[LABELS[1:, :2]])


@pytest.mark.parametrize("width", [40, 300, 2000])
def test_a_legend_shows_each_class_in_its_colour(width: int) -> None:
    names = ["road", "a very long name of a class that no narrow picture can hold", "<b>", "sky"]
    colors = palette(names)
    key = legend(names, colors, width)
    assert key.shape[1:] == (width, 3)
    for color in colors:
        assert (key == color).all(axis=-1).sum() > 50


def test_an_overlay_blends_and_shows_the_image_where_ignored() -> None:
    image = np.random.default_rng(0).integers(0, 256, (2, 3, 3), dtype=np.uint8)
    blended = overlay(image, LABELS, COLORS, opacity=0.25)
    np.testing.assert_array_equal(blended[0, 2], image[0, 2])
    np.testing.assert_allclose(blended[0, 1], 0.75 * image[0, 1] + 0.25 * COLORS[1], atol=0.51)
    np.testing.assert_array_equal(overlay(image, LABELS, opacity=0), image)


def test_a_strip_holds_its_images_under_their_titles() -> None:
    sheet = np.asarray(strip([plain(10), plain(99)], ["before", "after"]))
    assert sheet.shape == (_HEAD + 20, 120 + _GAP, 3)
    np.testing.assert_array_equal(sheet[_HEAD:, :60], plain(10))
    np.testing.assert_array_equal(sheet[_HEAD:, 60 + _GAP :], plain(99))
    assert (sheet[_HEAD:, 60 : 60 + _GAP] == 255).all()
    for side in (sheet[:_HEAD, :60], sheet[:_HEAD, 60 + _GAP :]):
        assert (side < 100).any()  # there is writing


def test_a_grid_has_titles_above_its_first_row_alone() -> None:
    sheet = np.asarray(grid([[plain(1), plain(2)], [plain(3), plain(4)]], ["a", "b"], scale=2))
    assert sheet.shape == (_HEAD + 80 + _GAP, 240 + _GAP, 3)
    np.testing.assert_array_equal(sheet[_HEAD : _HEAD + 40, :120], plain(1, 40, 120))
    np.testing.assert_array_equal(sheet[_HEAD + 40 + _GAP :, 120 + _GAP :], plain(4, 40, 120))
    with pytest.raises(ValueError):
        grid([[plain(1), plain(2)]], ["a"])


def test_images_of_other_sizes_are_fitted_and_enlarged_ones_stay_sharp() -> None:
    sheet = np.asarray(strip([plain(10), plain(99, 10, 10)], ["a", "b"]))
    second = sheet[_HEAD:, 60 + _GAP :]
    assert set(np.unique(second)) == {99, 255}
    assert (second[:, :, 0] == 99).sum() == 400
    checks = np.kron([[0, 1], [1, 0]], np.ones((2, 2)))[..., None].repeat(3, axis=2).astype(np.uint8) * 200
    assert set(np.unique(np.asarray(strip([checks], [""], scale=3))[_HEAD:])) == {0, 200}


def test_a_contact_sheet_breaks_into_rows() -> None:
    sheet = np.asarray(contact_sheet([plain(v) for v in (1, 2, 3)], ["x", "y", "z"], columns=2, size=(20, 60)))
    assert sheet.shape == (2 * (_HEAD + 20) + _GAP, 120 + _GAP, 3)
    np.testing.assert_array_equal(sheet[-20:, :60], plain(3))
    assert (sheet[-20:, 60:] == 255).all()
