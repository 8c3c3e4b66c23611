"""The shifts that defaults are chosen on."""

import importlib.util
import json
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from das3.benchmark.suite_file import find_suite

FOLDER = Path(__file__).parents[2] / "benchmarks" / "domains"


def script(name):
    spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # the one imports the other
    spec.loader.exec_module(module)
    return module


render, camvid_dev = script("render"), script("camvid_dev")


@pytest.mark.parametrize("name", render.DOMAINS)
def test_every_class_is_drawn_in_both_domains_which_differ_and_can_be_drawn_again(name):
    draw, classes = render.DOMAINS[name]
    means = []
    for target in (False, True):
        drawn = [draw(np.random.default_rng(seed), target) for seed in range(8)]
        assert {id for _, label in drawn for id in np.unique(label)} == set(range(len(classes)))
        assert all(image.shape == (*label.shape, 3) for image, label in drawn)
        again = draw(np.random.default_rng(0), target)
        assert all(np.array_equal(one, other) for one, other in zip(drawn[0], again, strict=True))
        means.append(np.mean([image.mean(axis=(0, 1)) for image, _ in drawn], axis=0))
    assert np.abs(means[0] - means[1]).max() > 10


def test_a_domain_is_a_suite(tmp_path, monkeypatch):
    monkeypatch.setattr(render, "PARTS", dict.fromkeys(render.PARTS, 2))
    render.write("aerial", tmp_path)
    suite = find_suite(str(tmp_path / "aerial.yaml"))
    assert (len(suite.target().images), len(suite.test().images)) == (2, 2)
    assert list(suite.test().class_names) == render.DOMAINS["aerial"][1]


CLASSES = ("sky", "road", "car")


@pytest.fixture
def data(tmp_path):
    """Five frames of CamVid by day and two images of IDD-Lite."""
    day, train = tmp_path / "camvid" / "day", tmp_path / "idd-lite" / "train"
    for folder in (day / "images", day / "labels", train / "images", train / "labels"):
        folder.mkdir(parents=True)
    table = {"classes": CLASSES, "as_idd_lite": {"map": {"0": 1, "1": 0, "2": 0}}}
    (tmp_path / "camvid/classes.json").write_text(json.dumps(table))
    (tmp_path / "idd-lite/classes.json").write_text(json.dumps({"classes": ["ground", "sky"]}))
    frames = [(day, f) for f in ("0006R0_1", "0016E5_1", "Seq05VD_1", "Seq05VD_2", "Seq05VD_3")]
    for folder, frame in [*frames, (train, "one"), (train, "two")]:
        Image.new("RGB", (24, 18), (200, 180, 160)).save(folder / f"images/{frame}.jpg")
        ids = [0, 2, 255] if folder == day else [1, 1, 255]
        label = np.array(ids, np.uint8).repeat(144).reshape(18, 24)
        Image.fromarray(label).save(folder / f"labels/{frame}.png")
    return tmp_path


def test_the_way_back_has_idd_lites_classes(data, tmp_path):
    camvid_dev.write_back(data, tmp_path / "back")
    suite = find_suite(str(tmp_path / "back/back.yaml"))
    source, target, test = suite.source(), suite.target(), suite.test()
    assert source.images.names == ["one", "two"]
    assert (target.images.names, test.images.names) == (
        ["0006R0_1", "Seq05VD_1", "Seq05VD_3"],
        ["0016E5_1", "Seq05VD_2"],
    )
    assert {*np.unique(source.label(0))} == {1, 255}
    assert {*np.unique(target.label(0))} == {1, 0, 255}
    assert tuple(test.class_names) == ("ground", "sky")


@pytest.mark.parametrize("name", camvid_dev.SHIFTS)
def test_a_sequence_of_camvid_by_day_is_the_target_of_the_others(name, data, tmp_path):
    """One of its frames in two is for testing; labels are kept or merged, and the camera changes the target alone."""
    camvid_dev.write(name, data / "camvid" / "day", tmp_path / name)
    suite = find_suite(str(tmp_path / name / f"{name}.yaml"))
    source, target, test = suite.source(), suite.target(), suite.test()
    assert source.images.names == ["0006R0_1", "0016E5_1"]
    assert (target.images.names, test.images.names) == (["Seq05VD_1", "Seq05VD_3"], ["Seq05VD_2"])
    expected = ({1, 0, 255}, ("ground", "sky")) if name == "haze" else ({0, 2, 255}, CLASSES)
    assert ({*np.unique(target.label(0))}, tuple(target.class_names)) == expected
    assert abs(int(source.images[0].mean()) - 180) < 3
    assert abs(int(target.images[0].mean()) - 180) > 10
