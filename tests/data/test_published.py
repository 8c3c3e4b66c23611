"""Published data sets: official splits and what every label id means, on small trees in the exact layouts."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from cityscapesscripts.helpers.annotation import Annotation
from cityscapesscripts.helpers.labels import labels as official_labels
from cityscapesscripts.preparation.json2labelImg import createLabelImage
from hypothesis import given, settings
from hypothesis import strategies as st

from das3.data.class_table import ClassTable
from das3.data.images import Images
from das3.data.labels import Labelled
from das3.data.open import open_images, open_labelled
from das3.data.published import DATASETS, find_published, is_spec, open_published, open_spec
from das3.data.published.camvid import split_of
from das3.data.published.cityscapes import POLYGONS
from das3.data.published.classes import CITYSCAPES, CITYSCAPES_NAMES, SUBSETS, TRAIN_IDS
from das3.data.published.mapillary import train_id
from das3.errors import DataError
from data import trees

CITYSCAPES_IDS = {label.id: label.trainId for label in official_labels if label.id >= 0}
NAMES_19 = tuple(label.name for label in sorted(official_labels, key=lambda x: x.trainId) if 0 <= label.trainId < 19)
NAMES_13 = ["road", "sidewalk", "building", "traffic light", "traffic sign", "vegetation", "sky", "person", "rider"]
NAMES_13 += ["car", "bus", "motorcycle", "bicycle"]
# AdaptSegNet's and ADVENT's tables, label id → train id.
GTA5_IDS = {7: 0, 8: 1, 11: 2, 12: 3, 13: 4, 17: 5, 19: 6, 20: 7, 21: 8, 22: 9, 23: 10, 24: 11, 25: 12, 26: 13, 27: 14}
GTA5_IDS |= {28: 15, 31: 16, 32: 17, 33: 18}
SYNTHIA_IDS = {3: 0, 4: 1, 2: 2, 21: 3, 5: 4, 7: 5, 15: 6, 9: 7, 6: 8, 16: 9, 1: 10, 10: 11, 17: 12, 8: 13, 18: 14}
SYNTHIA_IDS |= {19: 15, 20: 16, 12: 17, 11: 18}
CROSSCITY_IDS = {7: 0, 8: 1, 11: 2, 19: 3, 20: 4, 21: 5, 23: 6, 24: 7, 25: 8, 26: 9, 28: 10, 32: 11, 33: 12}
SYNTHIA_16 = (0, 1, 2, 3, 4, 5, 6, 7, 8, 10, 11, 12, 13, 15, 17, 18)


def expected(ids: range | tuple[int, ...], meaning: dict[int, int]) -> np.ndarray:
    lookup = np.array([meaning.get(i, 255) for i in range(256)], np.uint8)
    return lookup[trees.pixels(ids)]


def open_labels(name: str, root: Path, *args: object, **options: object) -> Labelled:
    opened = open_published(name, root, *args, **options)  # type: ignore[arg-type]
    assert isinstance(opened, Labelled)
    opened.check()
    return opened


def test_the_19_classes_are_cityscapesscripts() -> None:
    assert CITYSCAPES.names == NAMES_19
    assert CITYSCAPES.ids == CITYSCAPES_IDS
    by_id = {label.id: label for label in official_labels}
    assert tuple(by_id[i].name for i in range(34)) == CITYSCAPES_NAMES
    trained = {label.trainId: label.color for label in official_labels if 0 <= label.trainId < 19}
    assert CITYSCAPES.colors == tuple(trained[c] for c in range(19))
    assert TRAIN_IDS.ids == {c: c for c in range(19)}
    assert [len(SUBSETS[count]) for count in (19, 16, 13)] == [19, 16, 13]
    assert [CITYSCAPES.names[c] for c in SUBSETS[13]] == NAMES_13
    assert set(range(19)) - set(SUBSETS[16]) == {CITYSCAPES.names.index(n) for n in ("terrain", "truck", "train")}


LABELLED = [
    ("cityscapes", trees.cityscapes, {}, 4, range(34), CITYSCAPES_IDS),
    ("cityscapes", trees.cityscapes, {"split": "val"}, 4, range(34), CITYSCAPES_IDS),
    ("foggy-cityscapes", trees.foggy_cityscapes, {"split": "val"}, 4, range(34), CITYSCAPES_IDS),
    ("foggy-cityscapes", trees.foggy_cityscapes, {"condition": "0.005"}, 4, range(34), CITYSCAPES_IDS),
    ("gta5", trees.gta5, {}, 4, range(35), GTA5_IDS),
    ("synthia", trees.synthia, {"classes": 19}, 3, range(23), SYNTHIA_IDS),
    ("acdc", trees.acdc, {"split": "val"}, 4, range(34), CITYSCAPES_IDS),
    ("acdc", trees.acdc, {"condition": "night"}, 1, range(34), CITYSCAPES_IDS),
    ("dark-zurich", trees.dark_zurich, {"split": "val"}, 1, range(34), CITYSCAPES_IDS),
    ("bdd100k", trees.bdd100k, {"split": "val"}, 2, (*range(19), 255), {c: c for c in range(19)}),
    ("bdd100k", trees.bdd100k_older, {"split": "train"}, 1, (*range(19), 255), {c: c for c in range(19)}),
    ("crosscity", trees.crosscity, {"split": "test"}, 4, (*range(34), 255), CROSSCITY_IDS),
    ("crosscity", trees.crosscity, {"split": "test", "condition": "rome"}, 1, (*range(34), 255), CROSSCITY_IDS),
    ("idd-lite", trees.idd_lite, {"split": "val"}, 1, (*range(7), 255), {c: c for c in range(7)}),
    ("camvid", trees.camvid, {}, 3, range(12), {c: c for c in range(11)}),
    ("camvid", trees.camvid, {"condition": "dusk"}, 1, range(12), {c: c for c in range(11)}),
    ("folders", trees.folders, {"split": "dusk"}, 2, (0, 1, 2, 255), {c: c for c in range(3)}),
]


@pytest.mark.parametrize(("name", "tree", "options", "count", "ids", "meaning"), LABELLED)
def test_every_id_of_every_labelled_split(
    tmp_path: Path,
    name: str,
    tree: Callable[[Path], None],
    options: dict[str, str],
    count: int,
    ids: range | tuple[int, ...],
    meaning: dict[int, int],
) -> None:
    tree(tmp_path)
    labelled = open_labels(name, tmp_path, **options)
    assert len(labelled) == count
    assert len(set(labelled.images.names)) == count
    for i in range(count):
        np.testing.assert_array_equal(labelled.label(i), expected(ids, meaning))
        assert labelled.image(i).shape == (trees.HEIGHT, trees.WIDTH, 3)


@pytest.mark.parametrize(
    ("name", "tree", "options", "count"),
    [
        ("cityscapes", trees.cityscapes, {"split": "test"}, 4),
        ("acdc", trees.acdc, {"split": "test"}, 4),
        ("acdc", trees.acdc, {"split": "train_ref", "condition": "snow"}, 1),
        ("dark-zurich", trees.dark_zurich, {"condition": "night"}, 1),
        ("dark-zurich", trees.dark_zurich, {}, 3),
        ("dark-zurich", trees.dark_zurich, {"split": "val_ref"}, 1),
        ("bdd100k", trees.bdd100k, {"split": "test"}, 2),
        ("crosscity", trees.crosscity, {"condition": "Tokyo"}, 3),
        ("mapillary", trees.mapillary, {"split": "test"}, 1),
        ("idd", trees.idd, {"split": "test"}, 2),
        ("idd-lite", trees.idd_lite, {"split": "test"}, 1),
    ],
)
def test_splits_without_labels_are_images(
    tmp_path: Path, name: str, tree: Callable[[Path], None], options: dict[str, str], count: int
) -> None:
    tree(tmp_path)
    opened = open_published(name, tmp_path, **options)  # type: ignore[arg-type]
    assert isinstance(opened, Images)
    assert len(opened) == count
    opened.verify()


def test_a_target_without_any_labels_on_disk(tmp_path: Path) -> None:
    trees.image(tmp_path / "leftImg8bit/train/bern/bern_000001_000019_leftImg8bit.png")
    opened = open_published("cityscapes", tmp_path)
    assert isinstance(opened, Images)
    assert opened.names == ["leftImg8bit/train/bern/bern_000001_000019_leftImg8bit"]


@pytest.mark.parametrize(("classes", "kept"), [(16, SYNTHIA_16), (13, SUBSETS[13])])
def test_protocols_of_synthia(tmp_path: Path, classes: int, kept: tuple[int, ...]) -> None:
    trees.synthia(tmp_path / "synthia")
    trees.cityscapes(tmp_path / "cityscapes")
    for name, ids, meaning in (("synthia", range(23), SYNTHIA_IDS), ("cityscapes", range(34), CITYSCAPES_IDS)):
        labelled = open_labels(name, tmp_path / name, classes=classes)
        assert labelled.num_classes == classes
        assert labelled.class_names == tuple(NAMES_19[c] for c in kept)
        of_19 = expected(ids, meaning)
        remaining = np.where(np.isin(of_19, kept), np.searchsorted(kept, of_19), 255)
        np.testing.assert_array_equal(labelled.label(0), remaining)
    assert open_labels("synthia", tmp_path / "synthia").num_classes == 16


def test_labels_at_the_root_of_synthia_and_8_bit_copies(tmp_path: Path) -> None:
    trees.synthia(tmp_path)
    root = tmp_path / "RAND_CITYSCAPES"
    trees.label(root / "GT/LABELS/0000000.png", trees.pixels(range(23)))
    labelled = open_labels("synthia", root, classes=19)
    np.testing.assert_array_equal(labelled.label(0), labelled.label(1))


def test_official_split_of_gta5(tmp_path: Path) -> None:
    from scipy.io import savemat

    trees.gta5(tmp_path)
    with pytest.raises(DataError, match=r"split\.mat; put it there, or use split=all"):
        open_published("gta5", tmp_path, "train")
    ids = {"trainIds": [[1], [3], [15188]], "valIds": [[2]], "testIds": [[4], [17705]]}
    savemat(tmp_path / "split.mat", {key: np.array(value) for key, value in ids.items()})
    names = {split: open_published("gta5", tmp_path, split).images.names for split in ("train", "val", "test")}
    assert names == {"train": ["images/00001", "images/00003"], "val": ["images/00002"], "test": ["images/00004"]}


MAPILLARY_19 = {
    **{"construction--flat--road": 0, "marking--general": 0, "object--manhole": 0, "construction--barrier--curb": 1},
    **{"construction--flat--sidewalk": 1, "construction--structure--building": 2, "construction--barrier--wall": 3},
    **{"construction--barrier--fence": 4, "object--support--pole": 5, "object--support--utility-pole": 5},
    **{"object--traffic-light": 6, "object--traffic-sign--front": 7, "nature--vegetation": 8, "nature--terrain": 9},
    **{"nature--sky": 10, "human--person": 11, "human--rider--motorcyclist": 12, "object--vehicle--car": 13},
    **{"object--vehicle--truck": 14, "object--vehicle--bus": 15, "object--vehicle--on-rails": 16},
    **{"object--vehicle--motorcycle": 17, "object--vehicle--bicycle": 18},
    **{"human--person--individual": 11, "marking--continuous--solid": 0, "marking-only--discrete--text": 0},
    **{"object--traffic-light--cyclists": 6, "object--traffic-sign--direction-front": 7},
}


@pytest.mark.parametrize("newer", [False, True])
@pytest.mark.parametrize("condition", [None, "v1.2", "v2.0"])
def test_mapillary(tmp_path: Path, newer: bool, condition: str | None) -> None:
    trees.mapillary(tmp_path, newer)
    if condition == "v2.0" and not newer:
        assert isinstance(open_published("mapillary", tmp_path, "val", condition), Images)
        return
    names = trees.MAPILLARY_20 if newer and condition != "v1.2" else trees.MAPILLARY_12
    labelled = open_labels("mapillary", tmp_path, "val", condition)
    meaning = {i: MAPILLARY_19.get(name, 255) for i, name in enumerate(names)}
    np.testing.assert_array_equal(labelled.label(0), expected(range(len(names)), meaning))


def test_mapillary_without_its_config(tmp_path: Path) -> None:
    trees.mapillary(tmp_path)
    (tmp_path / "config.json").unlink()
    assert len(open_images(f"mapillary:{tmp_path}")) == 1
    with pytest.raises(DataError, match=r"config\.json"):
        open_published("mapillary", tmp_path, "val")


def test_names_of_mapillary_are_not_confused() -> None:
    assert train_id("object--vehicle--caravan") == 255
    assert train_id("construction--flat--road-shoulder") == 255
    assert train_id("object--support--pole-group") == 255
    assert train_id("marking--discrete--crosswalk-zebra") == 255


def test_idd_draws_polygons(tmp_path: Path) -> None:
    trees.idd(tmp_path)
    labelled = open_labels("idd", tmp_path)
    assert len(labelled) == 2
    got = labelled.label(0)
    samples = {(1, 1): 10, (10, 0): 0, (9, 12): 9, (8, 4): 255, (6, 12): 255, (14, 20): 0}
    assert {at: got[at] for at in samples} == samples
    np.testing.assert_array_equal(got, labelled.label(1))


def test_idd_prefers_label_images(tmp_path: Path) -> None:
    trees.idd(tmp_path)
    for stem in ("201/frame0029", "0/005506"):
        trees.label(tmp_path / f"gtFine/train/{stem}_gtFine_labelids.png", trees.pixels(range(40)))
        trees.label(tmp_path / f"gtFine/val/{stem}_gtFine_labelcsTrainIds.png", trees.pixels((*range(19), 255)))
    ids = open_labels("idd", tmp_path, "train").label(0)
    # The authors' helpers/anue_labels.py, id → csTrainId.
    meaning = dict(
        enumerate((0, 255, 255, 1, 255, 9, 11, 255, 12, 17, 18, 255, 13, 14, 15, 255, 255, 16, 255, 255, 3, 4))
    )
    meaning |= {24: 7, 25: 6, 26: 5, 29: 2, 32: 8, 33: 10}
    np.testing.assert_array_equal(ids, expected(range(40), meaning))
    trained = open_labels("idd", tmp_path, "val").label(0)
    np.testing.assert_array_equal(trained, trees.pixels((*range(19), 255)))


POINT = st.tuples(st.integers(-3, trees.WIDTH + 3), st.integers(-3, trees.HEIGHT + 3))


@settings(max_examples=40, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.sampled_from([*CITYSCAPES_NAMES, "cargroup", "persongroup", "license plate"]),
            st.lists(POINT, min_size=3, max_size=6),
        ),
        max_size=5,
    )
)
def test_polygons_are_drawn_as_cityscapesscripts_does(
    tmp_path_factory: pytest.TempPathFactory, shapes: list[tuple[str, list[tuple[float, float]]]]
) -> None:
    path = trees.polygons(tmp_path_factory.mktemp("polygons") / "a.json", shapes)
    annotation = Annotation()
    annotation.fromJsonFile(str(path))
    np.testing.assert_array_equal(POLYGONS(path), np.asarray(createLabelImage(annotation, "ids")))


def test_cityscapes_from_polygons_or_train_ids_alone(tmp_path: Path) -> None:
    trees.cityscapes(tmp_path)
    whole = open_labels("cityscapes", tmp_path, "val").label(0)
    for path in (tmp_path / "gtFine").rglob("*_labelIds.png"):
        trees.label(path.with_name(path.name.replace("labelIds", "labelTrainIds")), whole)
        path.unlink()
    np.testing.assert_array_equal(open_labels("cityscapes", tmp_path, "val").label(0), whole)
    for path in (tmp_path / "gtFine").rglob("*_labelTrainIds.png"):
        path.unlink()
    assert (open_labels("cityscapes", tmp_path, "val").label(0) == 255).all()  # the polygon files draw nothing


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "can't read polygons"),
        ({"imgHeight": 2, "imgWidth": 2}, "can't read polygons"),
        ({"imgHeight": 2, "imgWidth": 2, "objects": [{"label": "ufo", "polygon": []}]}, "'ufo', which is in no class"),
    ],
)
def test_broken_polygons(tmp_path: Path, content: object, message: str) -> None:
    path = tmp_path / "a.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    with pytest.raises(DataError, match=message):
        POLYGONS(path)


def test_camvid_in_both_layouts(tmp_path: Path) -> None:
    trees.camvid_original(tmp_path)
    for split, stems in trees.CAMVID_STEMS.items():
        labelled = open_labels("camvid", tmp_path, split)
        assert sorted(Path(name).name for name in labelled.images.names) == sorted(stems)
        lookup = np.array([0, 1, 2, 3, 8, 10, 255])  # sky, bridge, cone, marking, bus, motorcycle, void
        np.testing.assert_array_equal(labelled.label(0), lookup[trees.pixels(range(7))])


def test_split_of_camvid_has_the_published_sizes() -> None:
    stems = [f"0001TP_{n:06d}" for n in range(6690, 10381, 30)] + [f"0006R0_f{n:05d}" for n in range(930, 3931, 30)]
    stems += [f"0016E5_{n:05d}" for n in [*range(390, 2401, 30), *range(4350, 7921, 30), *range(7959, 8160, 2)]]
    stems += [f"0016E5_{n:05d}" for n in range(8190, 8641, 30)] + [f"Seq05VD_f{n:05d}" for n in range(0, 5101, 30)]
    assert len(stems) == 701
    splits = [split_of(stem) for stem in stems]
    assert {split: splits.count(split) for split in ("train", "val", "test")} == {"train": 367, "val": 101, "test": 233}


def test_folders_without_splits(tmp_path: Path) -> None:
    trees.folders(tmp_path)
    assert find_published("folders", tmp_path).splits == ("day", "dusk")
    labelled = open_labels("folders", tmp_path / "day")
    assert labelled.class_names == ("road", "car", "sky")
    assert labelled.images.names == ["images/a", "images/b"]


@pytest.mark.parametrize(
    ("spec", "count"),
    [("acdc:{}?split=val&condition=night", 1), ("ACDC:{}", 4), ("acdc:{}?condition=fog&split=train&classes=16", 1)],
)
def test_specs(tmp_path: Path, spec: str, count: int) -> None:
    trees.acdc(tmp_path / "a b")
    spec = spec.format(tmp_path / "a b")
    assert is_spec(spec)
    labelled = open_labelled(spec)
    assert len(labelled) == len(open_images(spec)) == count
    assert labelled.num_classes == (16 if "classes" in spec else 19)
    merged = open_labelled(spec, class_map={0: 0, 1: 0})
    assert merged.class_names == ("road+sidewalk",)


def test_a_folder_is_no_spec(tmp_path: Path) -> None:
    assert not is_spec("acdc")
    assert not is_spec("/data/acdc:old")
    assert not is_spec("C:/data")


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("cityscapes:{}?split=dev", "split=dev is not among train, val, test, train_extra"),
        ("cityscapes:{}?condition=night", "condition=night is not among none at all"),
        ("acdc:{}?condition=hail", "condition=hail is not among fog, night, rain, snow"),
        ("cityscapes:{}?classes=12", "classes=12 is not among 19, 16, 13"),
        ("cityscapes:{}?classes=many", "not a number"),
        ("cityscapes:{}?spilt=val", "spilt is no option"),
        ("cityscapes:{}/nowhere", "there is no folder .*nowhere"),
        ("gta5:{}", "no images of split all in .*; looked in images"),
    ],
)
def test_bad_specs(tmp_path: Path, spec: str, message: str) -> None:
    trees.cityscapes(tmp_path)
    for opener in (open_spec, open_images, open_labelled):
        with pytest.raises(DataError, match=message):
            opener(spec.format(tmp_path))
    with pytest.raises(DataError, match="there are acdc, "):
        open_published("kitti", tmp_path)


def test_evaluation_on_a_split_without_labels(tmp_path: Path) -> None:
    trees.acdc(tmp_path)
    with pytest.raises(DataError, match="no labels on disk"):
        open_labelled(f"acdc:{tmp_path}?split=test")


def test_conditions_with_labels_of_two_forms(tmp_path: Path) -> None:
    trees.acdc(tmp_path)
    for path in (tmp_path / "gt/fog/val").rglob("*_gt_labelIds.png"):
        path.unlink()
    with pytest.raises(DataError, match=r"come as _gt_labelTrainIds\.png and _gt_labelIds\.png"):
        open_published("acdc", tmp_path, "val")
    assert len(open_labels("acdc", tmp_path, "val", "night")) == 1


def test_missing_labels_and_unknown_ids(tmp_path: Path) -> None:
    trees.cityscapes(tmp_path)
    gone = tmp_path / "gtFine/val/zurich/zurich_000001_000019_gtFine_labelIds.png"
    trees.label(gone, trees.pixels((7, 77)))
    with pytest.raises(DataError, match=r"zurich_000001_000019_gtFine_labelIds\.png has ids that are in no class: 77"):
        open_labels("cityscapes", tmp_path, "val")
    gone.unlink()
    with pytest.raises(DataError, match=r"cityscapes: 1 of 4 images of val have no label, the first: .*zurich_000001"):
        open_published("cityscapes", tmp_path, "val")
    assert len(open_images(f"cityscapes:{tmp_path}?split=val")) == 4


def test_every_dataset_says_what_it_is() -> None:
    for name, dataset in DATASETS.items():
        assert name == dataset.name
        assert dataset.__doc__
        for key in dataset.counts:
            split, _, condition = key.partition("/")
            assert split in dataset.splits
            assert not condition or condition in dataset.conditions
    assert isinstance(TRAIN_IDS, ClassTable)
