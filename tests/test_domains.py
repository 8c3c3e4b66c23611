"""The rendered shifts that are not streets."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest

from das3.suite_file import find_suite

FILE = Path(__file__).parents[1] / "benchmarks" / "domains" / "render.py"
spec = importlib.util.spec_from_file_location("render", FILE)
render = importlib.util.module_from_spec(spec)
spec.loader.exec_module(render)


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
