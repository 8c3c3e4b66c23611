import time
from functools import cache

import numpy as np
import pytest

import das3.data.streets as module
from das3.data.open import open_labelled
from das3.data.streets import CLASS_NAMES, PALETTE, Streets, render
from das3.data.streets.painter import Painter
from das3.data.streets.styles import STYLES
from das3.data.streets.traffic import car
from das3.errors import DataError
from das3.evaluation.metrics import ConfusionMatrix

DOMAINS = ("source", "target")


@cache
def streets(domain: str) -> Streets:
    return Streets(domain, 40, seed=5)


@cache
def shares(domain: str) -> dict[str, float]:
    """Share of the labelled pixels of each class."""
    counts = sum(np.bincount(streets(domain).label(i).ravel(), minlength=256) for i in range(len(streets(domain))))
    return dict(zip(CLASS_NAMES, counts[:10] / counts[:10].sum(), strict=True))


@pytest.mark.parametrize("domain", DOMAINS)
def test_a_scene_depends_on_domain_seed_and_number_alone(domain):
    first, again = Streets(domain, 4, seed=1), Streets(domain, 9, seed=1)
    for i in (3, 0, 2):
        np.testing.assert_array_equal(first.image(i), again.image(i))
        np.testing.assert_array_equal(first.label(i), again.label(i))
    others = [first.label(1), Streets(domain, 4, seed=2).label(3), Streets(_other(domain), 4, seed=1).label(3)]
    assert all((first.label(3) != other).mean() > 0.02 for other in others)


def _other(domain):
    return DOMAINS[domain == "source"]


@pytest.mark.parametrize("domain", DOMAINS)
@pytest.mark.parametrize("size", [(96, 192), (61, 90), (16, 16)])
def test_shapes_and_types(domain, size):
    image, label = render(domain, np.random.default_rng(0), size)
    assert image.shape == (*size, 3)
    assert label.shape == size
    assert image.dtype == label.dtype == np.uint8
    assert set(np.unique(label)) <= {*range(len(CLASS_NAMES)), 255}


def test_it_is_a_labelled_set():
    world = streets("target")
    assert len(world) == len(world.images) == 40
    assert world.num_classes == len(CLASS_NAMES) == len(PALETTE) >= 8
    assert world.class_names == CLASS_NAMES
    assert len(set(world.images.names)) == 40
    assert set(world.images.sizes()) == {(96, 192)}
    np.testing.assert_array_equal(world.images[-1], world.image(39))
    with pytest.raises(IndexError):
        world.images[40]
    assert len(list(Streets("source", 2, size=(16, 16)).images)) == 2


@pytest.mark.parametrize("domain", DOMAINS)
def test_classes_are_as_unequal_as_in_real_streets(domain):
    share = shares(domain)
    assert min(share.values()) > 0.003
    assert min(share["road"], share["building"]) > 0.2
    assert share["sky"] > 0.08
    for small in ("pole", "sign", "person", "fence"):
        assert share[small] < 0.04
        assert share[small] < min(share[large] for large in ("road", "sidewalk", "building", "vegetation", "sky")) / 2
    assert share["sign"] < share["car"]
    ignored = np.mean([(streets(domain).label(i) == 255).mean() for i in range(40)])
    assert 0 < ignored < 0.08


@pytest.mark.parametrize("domain", DOMAINS)
def test_the_road_narrows_towards_a_horizon_and_the_sky_is_above(domain):
    labels = np.stack([streets(domain).label(i) for i in range(40)])
    road, sky = (labels == 0).mean(axis=(0, 2)), (labels == 7).mean(axis=(0, 2))
    assert road[:30].max() == 0
    assert (np.diff(road[50:85:5]) > 0).all()
    assert sky[55:].max() < 0.01
    assert sky[0] > 0.15


@pytest.mark.parametrize("domain", DOMAINS)
def test_things_shrink_with_distance_as_a_pinhole_camera_sees_them(domain):
    p = Painter((192, 384), STYLES[domain], np.random.default_rng(0))
    p.bend = 0.0
    right, top = p.at(2.0, 10.0, 3.0)
    assert right == pytest.approx(p.centre + p.focal * (2.0 - p.lane) / 10)
    assert top == pytest.approx(p.horizon - p.focal * (3.0 - p.camera) / 10)
    widths = [p.at(1, z)[0] - p.at(0, z)[0] for z in (5.0, 10.0, 20.0)]
    assert widths[0] == pytest.approx(2 * widths[1]) == pytest.approx(4 * widths[2])
    assert p.at(3, 1e6) == pytest.approx((p.centre, p.horizon), abs=0.01)


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("x", [-3.5, 3.5])
def test_one_can_not_look_through_a_vehicle(x, seed):
    p = Painter((192, 384), STYLES["source"], np.random.default_rng(seed))
    car(p, x, 8.0)
    shape = np.asarray(p.map) > 0
    above_the_sills = shape[: int(p.at(0, 8.0, 0.9)[1])]
    edges = np.diff(above_the_sills.astype(int), axis=1, prepend=0, append=0)
    assert (edges == 1).sum() > 5
    assert ((edges == 1).sum(axis=1) <= 1).all()


@pytest.mark.parametrize("domain", DOMAINS)
def test_labels_lie_on_the_picture(domain):
    """Neighbouring pixels differ more where the label changes, and most so when label and picture are not shifted."""
    contrast = {shift: np.mean([_edge_contrast(i, domain, shift) for i in range(30)]) for shift in (-2, -1, 0, 1, 2)}
    assert contrast[0] == max(contrast.values())
    assert contrast[0] > 2 * np.mean([_steps(streets(domain).image(i)).mean() for i in range(30)])


def _steps(image):
    return np.abs(np.diff(image.astype(float).mean(axis=2), axis=1))


def _edge_contrast(i, domain, shift):
    world = streets(domain)
    edges = np.roll(np.diff(world.label(i).astype(int), axis=1) != 0, shift, axis=1)
    return _steps(world.image(i))[:, 4:-4][edges[:, 4:-4]].mean()


def test_domains_differ_in_light_sensor_and_frequencies():
    source, target = shares("source"), shares("target")
    assert target["person"] > 1.5 * source["person"]
    assert target["sidewalk"] > 1.4 * source["sidewalk"]
    assert target["car"] < source["car"]
    assert target["building"] < source["building"]
    light = {d: np.mean([streets(d).image(i).mean() for i in range(40)]) for d in DOMAINS}
    assert light["target"] < 0.9 * light["source"]
    assert _warmth("target") > _warmth("source") + 10


def _warmth(domain):
    """Red minus blue of the sky."""
    sky = np.concatenate([streets(domain).image(i)[streets(domain).label(i) == 7] for i in range(40)]).astype(float)
    return (sky[:, 0] - sky[:, 2]).mean()


def test_colour_alone_does_not_tell_the_class():
    """The nearest of the classes' mean colours: poor where it was learned, poorer in the other domain."""
    world = streets("source")
    pixels = np.concatenate([world.image(i).reshape(-1, 3) for i in range(40)]).astype(float)
    labels = np.concatenate([world.label(i).ravel() for i in range(40)])
    means = np.stack([pixels[labels == c].mean(axis=0) for c in range(10)])
    scores = {}
    for domain in DOMAINS:
        confusion = ConfusionMatrix(10)
        for i in range(30):
            distance = ((streets(domain).image(i)[..., None, :] - means) ** 2).sum(axis=-1)
            confusion.update(distance.argmin(axis=-1), streets(domain).label(i))
        scores[domain] = confusion.miou()
    assert scores["source"] < 30
    assert scores["target"] < 0.8 * scores["source"]


def test_written_scenes_open_as_user_data(tmp_path):
    world = Streets("target", 3, seed=4, size=(32, 48))
    world.write(tmp_path)
    read = open_labelled(tmp_path / "images", tmp_path / "labels")
    assert read.class_names == world.class_names
    assert read.images.names == world.images.names
    for i in range(3):
        np.testing.assert_array_equal(read.image(i), world.image(i))
        np.testing.assert_array_equal(read.label(i), world.label(i))


def test_large_sets_are_not_kept_in_memory(monkeypatch):
    kept = Streets("source", 2, size=(32, 48))
    assert kept.image(1) is kept.image(1)
    monkeypatch.setattr(module, "LARGEST_MEMORY", 0)
    fresh = Streets("source", 2, size=(32, 48))
    assert fresh.image(1) is not fresh.image(1)
    np.testing.assert_array_equal(fresh.image(1), kept.image(1))


def test_wrong_arguments_are_told():
    with pytest.raises(DataError, match="source, target"):
        Streets("night", 3)
    with pytest.raises(DataError, match="16×16"):
        Streets("source", 3, size=(8, 100))


def test_it_is_fast_enough_for_a_demo():
    start = time.process_time()
    for i in range(10):
        render("target", np.random.default_rng(i))
    assert time.process_time() - start < 2.0  # about 0.13 s; the margin is for slow machines
