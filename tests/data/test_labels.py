"""Labels of every format against maps whose classes are known; matching by name; what users get wrong."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from das3.data.labels import ClassTable, Labelled, read_label
from das3.data.open import open_images, open_labelled
from das3.errors import DataError

IDS = np.array([[0, 1, 2, 255], [2, 1, 0, 0], [1, 1, 255, 2]], np.uint8)
TABLE = ClassTable(("road", "car", "sky"))
COLORS = ((128, 64, 128), (0, 0, 142), (70, 130, 180))


def save(path: Path, array: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)
    return path


def palette_file(path: Path, ids: np.ndarray) -> Path:
    image = Image.fromarray(ids)
    image.putpalette(np.random.default_rng(0).integers(0, 256, 768).tolist())
    image.save(path)
    assert Image.open(path).mode == "P"
    return path


def painted(ids: np.ndarray) -> np.ndarray:
    lookup = np.zeros((256, 3), np.uint8)
    lookup[:3] = COLORS
    return lookup[ids]


@pytest.mark.parametrize(
    ("name", "dtype"),
    [("a.png", "u1"), ("a.png", "u2"), ("a.tif", "u2"), ("a.tif", "i4"), ("a.tif", "f4"), ("a.bmp", "u1")],
)
def test_id_maps(tmp_path: Path, name: str, dtype: str) -> None:
    np.testing.assert_array_equal(read_label(save(tmp_path / name, IDS.astype(dtype)), TABLE), IDS)


def test_palette_files_give_indices_not_colours(tmp_path: Path) -> None:
    np.testing.assert_array_equal(read_label(palette_file(tmp_path / "a.png", IDS), TABLE), IDS)


def test_ids_in_grey_rgb_files(tmp_path: Path) -> None:
    np.testing.assert_array_equal(read_label(save(tmp_path / "a.png", IDS[..., None].repeat(3, 2)), TABLE), IDS)
    np.testing.assert_array_equal(read_label(save(tmp_path / "b.png", np.dstack([IDS, IDS])), TABLE), IDS)


@pytest.mark.parametrize("alpha", [False, True])
def test_colours(tmp_path: Path, alpha: bool) -> None:
    pixels = painted(IDS)
    path = save(tmp_path / "a.png", np.dstack([pixels, IDS]) if alpha else pixels)
    np.testing.assert_array_equal(read_label(path, ClassTable(TABLE.names, colors=COLORS)), IDS)


def test_many_colours_of_a_class_and_colours_to_ignore(tmp_path: Path) -> None:
    table = ClassTable(
        ("a", "b"), colors=((1, 1, 1), (2, 2, 2)), color_ids={(1, 1, 1): 0, (2, 2, 2): 1, (3, 3, 3): 1, (9, 9, 9): 255}
    )
    pixels = np.array([[1, 2, 3, 9, 0]], np.uint8)[..., None].repeat(3, 2)
    assert read_label(save(tmp_path / "a.png", pixels), table).tolist() == [[0, 1, 1, 255, 255]]


@pytest.mark.parametrize("ignore", [0, 254, 70000, -1])
def test_any_ignore_id(tmp_path: Path, ignore: int) -> None:
    values = np.where(IDS == 255, ignore, IDS.astype(np.int32) + 1)
    table = ClassTable(TABLE.names, ids={1: 0, 2: 1, 3: 2}, ignore=frozenset({ignore}))
    np.testing.assert_array_equal(read_label(save(tmp_path / "a.tif", values.astype(np.int32)), table), IDS)


@settings(max_examples=40, deadline=None)
@given(st.dictionaries(st.integers(0, 65535), st.integers(0, 4), min_size=1, max_size=9), st.integers(0, 2**32 - 1))
def test_ids_are_looked_up(tmp_path_factory: pytest.TempPathFactory, ids: dict[int, int], seed: int) -> None:
    rng = np.random.default_rng(seed)
    values = rng.choice(sorted(ids), (5, 7)).astype(np.uint16)
    path = save(tmp_path_factory.mktemp("ids") / "a.png", values)
    expected = [[ids[v] for v in row] for row in values.tolist()]
    assert read_label(path, ClassTable(tuple("abcde"), ids=ids)).tolist() == expected


@pytest.mark.parametrize(
    ("array", "table", "message"),
    [
        (
            IDS + np.uint8(3),
            TABLE,
            r"a\.png has ids that are in no class: 3, 4, 5; there are 3 classes \(road, car, sky\)",
        ),
        (painted(IDS), TABLE, r"a\.png has colours that are in no class: #00008e, #4682b4, #804080; .*--classes"),
        (painted(IDS), ClassTable(("x",), colors=(COLORS[0],)), r"colours that are in no class: #00008e, #4682b4"),
    ],
)
def test_labels_outside_the_classes(tmp_path: Path, array: np.ndarray, table: ClassTable, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_label(save(tmp_path / "a.png", array), table)


def test_unreadable_labels(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"nothing")
    with pytest.raises(DataError, match=r"can't read label .*a\.png \(not an image\)"):
        read_label(tmp_path / "a.png", TABLE)
    with pytest.raises(DataError, match="fractions"):
        read_label(save(tmp_path / "b.tif", np.full((2, 2), 0.5, np.float32)), TABLE)
    noise = np.random.default_rng(0).integers(0, 3, (16, 16)).astype(np.uint8) * 80
    with pytest.raises(DataError, match="export labels as PNG"):
        read_label(save(tmp_path / "c.jpg", noise), ClassTable(("a", "b", "c"), ids={0: 0, 80: 1, 160: 2}))


def folder_pair(root: Path, images: list[str], labels: list[str], array: np.ndarray = IDS) -> tuple[Path, Path]:
    for name in images:
        save(root / "images" / name, np.zeros((*array.shape, 3), np.uint8))
    for name in labels:
        save(root / "labels" / name, array)
    return root / "images", root / "labels"


@pytest.mark.parametrize(
    ("image", "labels", "chosen"),
    [
        ("a/b.jpg", ["a/b.png", "a/b_color.png"], "a/b.png"),
        ("a/b.jpg", ["a/b_labelIds.png"], "a/b_labelIds.png"),
        ("a/b.jpg", ["a/b-mask.tif"], "a/b-mask.tif"),
        ("a/b.jpg", ["b.png"], "b.png"),
        ("b.jpg", ["b_L.png"], "b_L.png"),
        ("f/f_1_leftImg8bit.png", ["f/f_1_gtFine_labelIds.png", "f/f_1_gtFine_color.png"], "f/f_1_gtFine_labelIds.png"),
        (
            "f_1_leftImg8bit.png",
            ["f_1_gtFine_labelIds.png", "f_1_gtFine_labelTrainIds.png"],
            "f_1_gtFine_labelTrainIds.png",
        ),
        ("7_sat.jpg", ["7_mask.png"], "7_mask.png"),
        ("G_rgb_anon.png", ["G_gt_labelIds.png", "G_gt_invIds.png"], "G_gt_labelIds.png"),
    ],
)
def test_matching_by_name(tmp_path: Path, image: str, labels: list[str], chosen: str) -> None:
    images, folder = folder_pair(tmp_path, [image], labels)
    assert open_labelled(images, folder, TABLE).paths == [folder / chosen]


def test_numbered_names_are_not_mistaken_for_endings(tmp_path: Path) -> None:
    images, labels = folder_pair(tmp_path, ["a.jpg", "a_1.jpg"], ["a_1.png", "a_label.png"])
    assert [p.name for p in open_labelled(images, labels, TABLE).paths] == ["a_label.png", "a_1.png"]
    (labels / "a_label.png").unlink()
    with pytest.raises(DataError, match=r"1 of 2 images have no label in .*labels: a$"):
        open_labelled(images, labels, TABLE)


def test_a_list_file_of_images_with_their_labels_elsewhere(tmp_path: Path) -> None:
    images, labels = folder_pair(tmp_path, ["x/a.jpg", "y/a.jpg"], ["x/a.png", "y/a.png"])
    (tmp_path / "list.txt").write_text("images/y/a.jpg\nimages/x/a.jpg\n")
    labelled = open_labelled(tmp_path / "list.txt", labels, TABLE)
    assert labelled.images.names == ["images/y/a", "images/x/a"]
    assert labelled.paths == [labels / "y/a.png", labels / "x/a.png"]
    assert open_labelled([images / "x/a.jpg"], labels / "x", TABLE).paths == [labels / "x/a.png"]


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (["a.jpg", "b.jpg", "c.jpg"], ["a.png"], r"2 of 3 images have no label in .*: b, c$"),
        (["a.jpg"], ["a_x.png", "a_y.png"], r"a \(may be a_x, a_y\)"),
        (["x/a.jpg", "y/a.jpg"], ["a.png"], r"a\.png fits 2 images \(x/a, y/a\)"),
        (["a.jpg", "a.png"], ["a.png"], r"fits 2 images \(a\.jpg, a\.png\)"),
    ],
)
def test_labels_that_do_not_match(tmp_path: Path, images: list[str], labels: list[str], message: str) -> None:
    with pytest.raises(DataError, match=message):
        open_labelled(*folder_pair(tmp_path, images, labels), TABLE)


@settings(max_examples=40, deadline=None)
@given(st.sets(st.text("ab_1", min_size=1, max_size=4), min_size=1, max_size=12), st.data())
def test_exact_names_always_win(tmp_path_factory: pytest.TempPathFactory, names: set[str], data: st.DataObject) -> None:
    root = tmp_path_factory.mktemp("pairs")
    kept = data.draw(st.sets(st.sampled_from(sorted(names))))
    images, labels = folder_pair(root, [f"{n}.png" for n in names], [f"{n}.png" for n in kept])
    labels.mkdir(exist_ok=True)
    if kept == names:
        labelled = open_labelled(images, labels, TABLE)
        assert [p.stem for p in labelled.paths] == labelled.images.names
    else:
        with pytest.raises(DataError, match="have no label"):
            open_labelled(images, labels, TABLE)


def test_label_of_another_size(tmp_path: Path) -> None:
    images, labels = folder_pair(tmp_path, ["a.png", "b.png"], ["a.png", "b.png"])
    save(labels / "b.png", IDS[:, :2])
    labelled = open_labelled(images, labels, TABLE)
    np.testing.assert_array_equal(labelled.label(0), IDS)
    labelled.check(sample=1)
    with pytest.raises(DataError, match=r"b\.png is 2×3 but its image is 4×3"):
        labelled.check()


def test_check_reads_an_even_sample(tmp_path: Path) -> None:
    names = [f"{i}.png" for i in range(9)]
    read: list[str] = []

    def decode(path: Path) -> np.ndarray:
        read.append(path.name)
        return IDS

    images, _ = folder_pair(tmp_path, names, [])
    Labelled(open_images(images), [tmp_path / n for n in names], TABLE, decode).check(sample=3)
    assert read == ["0.png", "4.png", "8.png"]
    Labelled(open_images(images), [tmp_path / n for n in names], TABLE, decode).check()
    assert read[3:] == names


def test_masks_of_0_and_255(tmp_path: Path) -> None:
    mask = np.array([[0, 255, 0]], np.uint8)
    for array in (mask, mask[..., None].repeat(3, 2), mask > 0):
        images, labels = folder_pair(tmp_path, ["a.png"], [])
        save(images / "a.png", np.zeros((1, 3, 3), np.uint8))
        save(labels / "a.png", array)
        assert open_labelled(images, labels, num_classes=2).label(0).tolist() == [[0, 1, 0]]


def test_255_stays_ignored_where_it_is_not_a_mask(tmp_path: Path) -> None:
    images, labels = folder_pair(tmp_path, ["a.png", "b.png"], [], np.zeros((1, 3), np.uint8))
    save(labels / "a.png", np.array([[0, 255, 0]], np.uint8))
    save(labels / "b.png", np.array([[0, 255, 1]], np.uint8))
    labelled = open_labelled(images, labels, num_classes=2)
    assert [labelled.label(i).tolist() for i in range(2)] == [[[0, 255, 0]], [[0, 255, 1]]]
    (labels / "b.png").unlink()
    (images / "b.png").unlink()
    (labels / "classes.json").write_text('{"classes": ["no", "yes"], "ignore_index": 255}')
    assert open_labelled(images, labels).label(0).tolist() == [[0, 255, 0]]


def write_table(path: Path, data: object) -> Path:
    path.write_text(json.dumps(data))  # JSON is YAML as well
    return path


@pytest.mark.parametrize("name", ["classes.json", "classes.yaml"])
def test_class_table_files(tmp_path: Path, name: str) -> None:
    images, labels = folder_pair(tmp_path, ["a.png"], ["a.png"])
    file = write_table(tmp_path / name, {"classes": ["road", "car", "sky"], "ignore_index": 255})
    for given_table in (None, file):
        labelled = open_labelled(images, labels, given_table)
        assert labelled.class_names == ("road", "car", "sky")
        assert labelled.num_classes == 3
        np.testing.assert_array_equal(labelled.label(0), IDS)
    write_table(file, ["road", "car", "sky"])
    np.testing.assert_array_equal(open_labelled(images, labels).label(0), IDS)


def test_class_table_with_ids_and_colours(tmp_path: Path) -> None:
    images, labels = folder_pair(tmp_path, ["a.png", "b.png"], [], np.zeros((1, 5), np.uint8))
    save(labels / "a.png", np.array([[7, 26, 27, 0, 255]], np.uint8))
    red, blue, green, white = (255, 0, 0), (0, 0, 255), (0, 255, 0), (255, 255, 255)
    save(labels / "b.png", np.array([[red, blue, green, white, (0, 0, 0)]], np.uint8))
    classes = [
        {"name": "road", "id": 7, "color": "#ff0000"},
        {"name": "vehicle", "ids": [26, 27], "colors": [[0, 0, 255], "lime"]},
    ]
    file = write_table(tmp_path / "t.yaml", {"classes": classes, "ignore_index": [0, 255], "ignore_colors": ["white"]})
    labelled = open_labelled(images, labels, file)
    assert labelled.label(0).tolist() == [[0, 1, 1, 255, 255]]
    assert labelled.label(1).tolist() == [[0, 1, 1, 255, 255]]
    assert labelled.table.colors == (red, blue)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({}, "no list `classes`"),
        ({"classes": []}, "no list `classes`"),
        ({"classes": [{"name": "a", "id": "x"}]}, "not a class table"),
        ({"classes": [{"name": "a", "color": [1, 2]}]}, "not a class table"),
        ({"classes": [{"name": "a", "color": [1, 2, 300]}]}, "not a colour"),
        ({"classes": [{"name": "a", "color": "red"}, {"name": "b"}]}, "some have none"),
        ({"classes": [{"name": "a", "color": "red"}, {"name": "b", "color": "red"}]}, "same colour"),
        ({"classes": [str(i) for i in range(300)]}, "1 to 255 classes"),
        ("text", "no list `classes`"),
    ],
)
def test_bad_class_tables(tmp_path: Path, data: object, message: str) -> None:
    images, labels = folder_pair(tmp_path, ["a.png"], ["a.png"])
    with pytest.raises(DataError, match=message) as caught:
        open_labelled(images, labels, write_table(tmp_path / "t.json", data))
    assert "t.json" in str(caught.value)


def test_no_table_at_all(tmp_path: Path) -> None:
    images, labels = folder_pair(tmp_path, ["a.png"], ["a.png"])
    with pytest.raises(DataError, match="--classes, or --num-classes"):
        open_labelled(images, labels)
    with pytest.raises(DataError, match="absent"):
        open_labelled(images, labels, tmp_path / "absent.json")
    with pytest.raises(DataError, match="no folder of labels at"):
        open_labelled(images, tmp_path / "nowhere", TABLE)
    with pytest.raises(DataError, match="labels are missing"):
        open_labelled(images)
    (tmp_path / "t.json").write_text("{")
    with pytest.raises(DataError, match="is not JSON"):
        open_labelled(images, labels, tmp_path / "t.json")


@pytest.mark.parametrize("key", [":lite", ":lite.map", ":nested.deep", ""])
def test_class_map(tmp_path: Path, key: str) -> None:
    images, labels = folder_pair(tmp_path, ["a.png"], ["a.png"])
    mapping = {"0": 1, "2": 0, "1": None}
    content = {"lite": {"comment": "…", "map": mapping}, "nested": {"deep": mapping}} if key else mapping
    write_table(tmp_path / "m.json", content)
    labelled = open_labelled(images, labels, TABLE, class_map=f"{tmp_path / 'm.json'}{key}")
    assert labelled.class_names == ("sky", "road")
    assert labelled.label(0).tolist() == [[1, 255, 0, 255], [0, 255, 1, 1], [255, 255, 255, 0]]


def test_class_map_merges_ignores_and_keeps_colours(tmp_path: Path) -> None:
    table = ClassTable(("a", "b", "c"), ids={5: 0, 6: 1, 7: 2}, colors=COLORS, ignore=frozenset({9}))
    merged = table.mapped({0: 1, 1: 1, 2: 255})
    assert merged.names == ("class 0", "a+b")
    assert merged.ids == {5: 1, 6: 1, 7: 255}
    assert merged.ignore == {9}
    assert merged.color_ids == {COLORS[0]: 1, COLORS[1]: 1, COLORS[2]: 255}
    assert table.mapped({0: 0, 2: 1}, count=4).names == ("a", "c", "class 2", "class 3")
    assert table.mapped({0: 0, 2: 1}).colors == (COLORS[0], COLORS[2])
    assert table.mapped({c: c for c in range(3)}) == table


@pytest.mark.parametrize(
    ("content", "key", "message"),
    [
        ({"a": {}}, ":b", "no entry 'b'"),
        ({"a": "x"}, ":a", "not a mapping"),
        ({}, "", "empty"),
        ({"x": 1}, "", "not a mapping"),
    ],
)
def test_bad_class_maps(tmp_path: Path, content: object, key: str, message: str) -> None:
    images, labels = folder_pair(tmp_path, ["a.png"], ["a.png"])
    write_table(tmp_path / "m.json", content)
    with pytest.raises(DataError, match=message):
        open_labelled(images, labels, TABLE, class_map=f"{tmp_path / 'm.json'}{key}")


@pytest.mark.parametrize(
    "make",
    [
        lambda: ClassTable(()),
        lambda: ClassTable(("a",), colors=COLORS),
        lambda: ClassTable(("a", "b"), colors=((1, 1, 1), (1, 1, 1))),
        lambda: ClassTable(("a",), ids={0: 1}),
        lambda: ClassTable(("a",), color_ids={(0, 0, 0): 2}),
    ],
)
def test_impossible_tables(make: Callable[[], ClassTable]) -> None:
    with pytest.raises(DataError, match="class table"):
        make()
