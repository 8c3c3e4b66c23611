"""The report of a run: its numbers against plain references, what stands in the page, and what it must not do."""

import json
import math
import shutil
from html.parser import HTMLParser

import numpy as np
import pytest
import torch
from torch import nn

import das3
import das3.training.phases
import worlds
from das3.cli import main
from das3.data.images import Images
from das3.data.label_store import LabelStore, find_labels
from das3.data.open import open_images, open_labelled
from das3.evaluation.predict import predict_labels, predict_probs
from das3.fingerprints import weights_hash
from das3.models import load_segmenter
from das3.report import write_comparison, write_report
from das3.report.capture import BINS, SAMPLE, SIDE, Capture, capture, center_window, evenly_spaced
from das3.report.charts import line_chart, ticks
from das3.report.findings import Findings, compare_captures, points_to_check
from das3.report.headline import headline
from das3.report.pictures import BUDGET, SMALLEST, largest_that_fit
from das3.report.run_folder import RunFolder
from das3.report.statistics import agreement, image_change, largest_flows, pick_images, shares, transitions

STAGE = {"steps": 3, "color_transforms": False, "upscale": False}
QUICK = {"quiet": True, "device": "cpu", "log_every": 1, "selftrain": STAGE, "propagate": STAGE}
EVIL = "<script>alert(1)</script>"


def model(classes=3):
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3, 1, 1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, classes, 1))


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return worlds.write_world(tmp_path_factory.mktemp("world"), "target", count=9)


@pytest.fixture(scope="module")
def result(world, tmp_path_factory):
    """A finished run with its report, only to be read."""
    labelled = open_labelled(world / "images", world / "labels")
    out = tmp_path_factory.mktemp("out") / "run"
    stages = ["selftrain", "propagate"]
    return das3.adapt(model(), world / "images", out=out, evaluation=labelled, stages=stages, **QUICK)


@pytest.fixture
def copied(result, tmp_path):
    """A copy of that run, to be changed."""
    return RunFolder.open(shutil.copytree(result.folder, tmp_path / "run"))


@pytest.fixture
def labels(rng):
    return rng.integers(0, 4, (2, 30, 20)).astype(np.uint8)


# --- numbers of two predictions


def test_transitions_equal_counting_pixel_by_pixel(labels):
    before, after = labels
    expected = np.zeros((5, 5), int)
    for a, b in zip(before.ravel(), after.ravel(), strict=True):
        expected[a, b] += 1
    np.testing.assert_array_equal(transitions(before, after, 5), expected)


def test_shares_agreement_and_flows_equal_plain_counts(labels):
    before, after = labels
    matrix = transitions(before, after, 4)
    for got, told in zip(shares(matrix), labels, strict=True):
        np.testing.assert_allclose(got, [(told == c).mean() for c in range(4)])
    assert agreement(matrix) == pytest.approx((before == after).mean())
    flows = largest_flows(matrix, 100)
    assert len(flows) == 12
    assert [f.share for f in flows] == sorted((f.share for f in flows), reverse=True)
    for flow in flows:
        moved = (before == flow.before) & (after == flow.after)
        assert flow.share == pytest.approx(moved.mean())
        assert flow.of_class == pytest.approx(moved.sum() / (before == flow.before).sum())
    assert sum(f.share for f in flows) == pytest.approx((before != after).mean())
    assert largest_flows(np.diag([3, 4]), 5) == []


def test_an_image_s_change_says_what_left_and_entered_each_class(labels):
    before, after = labels
    change = image_change("a", transitions(before, after, 9), 0.4, 0.2)
    assert change.changed == pytest.approx((before != after).mean())
    assert sorted(change.classes) == [0, 1, 2, 3]
    for c, (share, then, moved) in change.classes.items():
        assert share == pytest.approx((before == c).mean())
        assert then == pytest.approx((after == c).mean())
        assert moved == pytest.approx(((before == c) != (after == c)).mean())


def test_images_are_picked_by_change_then_doubt_then_chance_and_never_twice(rng):
    def one(i):
        return image_change(str(i), np.array([[50, i], [0, 50]]), 0.0, float(rng.random()))

    changes = [one(i) for i in range(40)]
    picked = pick_images(changes, 8)
    assert picked["changed"] == list(range(39, 31, -1))
    assert picked["uncertain"] == sorted(range(32), key=lambda i: -changes[i].entropy_after)[:8]
    every = [i for group in picked.values() for i in group]
    assert len(every) == len(set(every)) == 24
    assert picked == pick_images(changes, 8)
    assert sum(map(len, pick_images(changes[:5], 8).values())) == 5


# --- captures


class Counted(Images):
    """Images of noise, in blocks of `zoom` pixels, that count how often they are asked for."""

    def __init__(self, count, size=(24, 32), zoom=1):
        super().__init__([f"{i:04d}" for i in range(count)])
        self.shape, self.zoom, self.asked = size, zoom, []

    def __getitem__(self, i):
        self.asked.append(i)
        noise = np.random.default_rng(i).integers(0, 256, (*self.shape, 3), dtype=np.uint8)
        return noise.repeat(self.zoom, axis=0).repeat(self.zoom, axis=1)


def test_a_capture_holds_what_the_model_predicts(tmp_path):
    segmenter, images = worlds.pointwise_network(), Counted(3)
    segmenter.train()
    state = torch.get_rng_state()
    made = capture(segmenter, images, tmp_path / "c")
    assert torch.equal(state, torch.get_rng_state())
    assert all(module.training for module in segmenter.modules())
    assert made.info.names == images.names
    for i in range(3):
        one, probs = made[i], predict_probs(segmenter, images[i]).double().numpy()
        np.testing.assert_array_equal(one["labels"], predict_labels(segmenter, images[i]))
        entropy = -(probs * np.log(probs)).sum(axis=0) / math.log(3)
        assert one["mean_entropy"] == pytest.approx(entropy.mean(), abs=1e-6)
        np.testing.assert_array_equal(one["histogram"], np.histogram(entropy, BINS, (0, 1))[0])
        np.testing.assert_allclose(one["entropy"] / 255, entropy, atol=0.003)
        assert made.photo(i)[:2] == b"\xff\xd8"  # JPEG


def test_a_report_of_many_images_looks_at_two_hundred_and_at_the_same_ones_once(tmp_path):
    segmenter, images = worlds.pointwise_network(), Counted(1000)
    made = capture(segmenter, images, tmp_path / "c")
    assert len(images.asked) == len(made) == SAMPLE
    assert (images.asked[0], images.asked[-1]) == (0, 999)
    assert max(np.diff(images.asked)) <= 6
    capture(segmenter, images, tmp_path / "c")
    assert len(images.asked) == SAMPLE
    with torch.no_grad():
        segmenter.model[0].bias += 1
    assert capture(segmenter, images, tmp_path / "c").info.weights == weights_hash(segmenter.model) != made.info.weights
    assert len(images.asked) == 2 * SAMPLE


def test_of_a_large_image_the_center_is_looked_at():
    assert center_window((1000, 2000), 19) == (slice(0, 1000), slice(0, 2000))
    rows, columns = center_window((20_000, 10_000), 19)
    assert (rows.stop - rows.start) * (columns.stop - columns.start) <= 2**21
    assert rows.start + rows.stop == pytest.approx(20_000, abs=1)
    assert (rows.stop - rows.start) / (columns.stop - columns.start) == pytest.approx(2, rel=0.01)
    rows, columns = center_window((1000, 2000), 255)
    assert (rows.stop - rows.start) * (columns.stop - columns.start) * 255 <= 2**27
    assert evenly_spaced(3, 200) == [0, 1, 2]


def test_weights_are_told_apart_by_value_name_and_type():
    one, other = model(), model()
    assert weights_hash(one) == weights_hash(other)
    with torch.no_grad():
        other[0].bias[0] += 1e-6
    assert weights_hash(one) != weights_hash(other)
    assert weights_hash(one) != weights_hash(model().to(torch.bfloat16))


# --- the run folder


def test_findings_of_a_run_equal_those_of_its_two_models(world, result):
    run, images = RunFolder.open(result.folder), open_images(world / "images")
    before = load_segmenter(model())
    total, pseudo, entropies = np.zeros((3, 3), int), [], []
    for i in range(9):
        a, b = predict_labels(before, images[i]), predict_labels(result.segmenter, images[i])
        total += transitions(a, b, 3)
        pseudo.append(LabelStore(result.folder / "work/0-selftrain/labels", images.names)[i]["labels"])
        probs = predict_probs(before, images[i]).double().numpy()
        entropies.append((-(probs * np.log(probs)).sum(axis=0) / math.log(3)).mean())
    found = compare_captures(Capture(run.incoming), Capture(run.adapted), run.pseudo_labels())
    np.testing.assert_array_equal(found.matrix, total)
    np.testing.assert_allclose(found.pseudo, [*[(np.array(pseudo) == c).mean() for c in range(3)], found.pseudo[-1]])
    assert found.pseudo[-1] > 0
    assert found.pseudo[-1] == pytest.approx((np.array(pseudo) == 255).mean())
    assert found.entropy[0] == pytest.approx(np.mean(entropies), abs=1e-5)
    assert found.histograms.sum(axis=1) == pytest.approx([1, 1])


def test_easy_and_hard_images_are_those_that_stage_three_took(result):
    run = RunFolder.open(result.folder)
    assert run.pseudo_labels().stage == "0-selftrain"
    split = run.difficulty()
    store = find_labels(result.folder / "work/1-propagate/teacher")
    entropies = {name: float(store[i]["entropy"]) for i, name in enumerate(store.names)}
    assert dict(split.entropies) == pytest.approx(entropies)
    assert split.easy == set(sorted(entropies, key=entropies.get)[:3])
    assert split.threshold == pytest.approx(sorted(entropies.values())[2])


def test_curves_are_those_of_the_log_and_a_broken_last_line_is_left_out(copied):
    log = copied.folder / "metrics.jsonl"
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    first = copied.stretches()[0]
    assert first.name == "selftrain"
    expected = [(x["step"], x["losses"]["positive"]) for x in lines if x["stage"] == "selftrain"]
    assert first.losses["positive"] == expected
    long = [
        {"stage": "a", "phase": 0, "step": n, "losses": {"b": n}, "miou": n / 2, "signals": {"nd": 1.0, "text": "x"}}
        for n in range(1, 1001)
    ]
    log.write_text("\n".join(json.dumps(line) for line in long) + '\n{"stage": "a", "ph')
    (only,) = copied.stretches()
    assert len(only.losses["b"]) <= 301
    assert (only.losses["b"][0], only.losses["b"][-1]) == ((1, 1), (1000, 1000))
    assert set(only.signals) == {"miou", "nd"}


def test_a_folder_without_a_run_is_refused_in_one_line(tmp_path, capsys):
    assert main(["report", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert "recipe.yaml" in error
    assert error.count("\n") == 1


# --- words


def row(name, miou):
    return {"name": name, "miou": miou, "per_class_iou": None, "seconds": 1.0}


@pytest.mark.parametrize(
    ("rows", "verdict", "unchanged", "tone", "title"),
    [
        ([row("source", 50.0), row("align", 55.5)], None, False, "good", "50.0 to 55.5"),
        ([row("source", 67.1), row("align", 64.2)], None, False, "bad", "Worse: mIoU from 67.1 to 64.2\u00a0% (−2.9)"),
        ([row("source", 50.0), row("align", 50.01)], None, False, "same", "As good as before"),
        ([row("source", None), row("align", None)], None, False, "open", "not measured"),
        ([row("source", None), row("align", None)], None, True, "same", "the model that came in"),
        ([row("source", None), row("a", None)], {"reason": "align is surer", "x": 1}, False, "open", "align is surer"),
        ([row("s", 50.0), row("a", 60.0), row("b", 40.0)], {"chosen": "a"}, False, "good", "50.0 to 60.0"),
        ([], "in words alone", False, "open", "in words alone"),
    ],
)
def test_the_headline_says_better_worse_or_unknown(tmp_path, rows, verdict, unchanged, tone, title):
    run = RunFolder(tmp_path, {}, {"stages": rows, "verdict": verdict})
    found = headline(run, unchanged=unchanged)
    assert found.tone == tone
    assert title in found.title


def test_points_to_check_name_classes_that_vanish_or_multiply():
    matrix = np.array([[500, 0, 0], [300, 1, 99], [0, 0, 100]])
    changes = [image_change("a", matrix, 0.1, 0.3)]
    points = points_to_check(Findings(matrix, changes, np.zeros((2, BINS)), None), ["sky", "road", "box"])
    assert any("road all but vanished" in p for p in points)
    assert any("less certain" in p for p in points)
    assert not any("sky" in p or "box" in p for p in points)
    grown = np.array([[500, 300, 0], [0, 50, 0], [0, 0, 100]])
    points = points_to_check(Findings(grown, [image_change("a", grown, 0.3, 0.1)], np.zeros((2, BINS)), None), "abc")
    assert points == ["b grew from 5.26\u00a0% of the pixels to 36.8\u00a0%."]


# --- charts and pictures


@pytest.mark.parametrize(("low", "high"), [(0, 1), (0.1, 0.12), (-3, 1200), (5, 5), (0, 0), (1e-7, 3e-7)])
def test_ticks_are_round_few_and_enclose_the_values(low, high):
    found = ticks(low, high)
    assert found[0] <= low <= high <= found[-1]
    assert 2 <= len(found) <= 8
    assert len(set(found)) == len(found)


def test_a_chart_leaves_out_what_is_not_finite_and_is_none_without_values():
    chart = line_chart("t", {"a": [(0, 1.0), (1, math.nan), (2, 3.0)], "b": [(0, math.inf)]}, "x", "y")
    (line,) = chart.lines
    assert (line.first, line.last, line.path.count("L")) == (1.0, 3.0, 1)
    assert line_chart("t", {"b": [(0, math.nan)]}, "x", "y") is None
    places = [tuple(map(float, p.split(","))) for p in line.path[1:].split("L")]
    assert places[0][1] > places[1][1]  # upwards is up


def test_pictures_become_smaller_until_they_fit():
    assert largest_that_fit(lambda side: "x" * side) == "x" * SIDE
    for weight in (20, 40, 100):
        assert BUDGET / 2 < len(largest_that_fit(lambda side, weight=weight: "x" * (weight * side**2))) <= BUDGET
    assert largest_that_fit(lambda side: "x" * 10**7 + str(side)).endswith(str(SMALLEST))


# --- the page


class Page(HTMLParser):
    """Tags, attributes and text of a page."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.text, self.inside = [], "", None
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self.inside = tag

    def handle_data(self, data):
        self.text += "" if self.inside in ("script", "style") else data


def test_adapt_writes_a_page_that_says_what_happened_and_loads_nothing(result):
    page = Page(result.report().html())
    before, after = (r["miou"] for r in (result.metrics["stages"][0], result.metrics["stages"][-1]))
    assert f"{before:.1f}" in page.text
    assert f"{after:.1f}" in page.text
    assert ("Worse" in page.text) == (after < before - 0.05)
    for word in ("Transitions", "Pseudo labels", "1-propagate", "safetensors"):
        assert word in page.text
    assert weights_hash(result.model) in page.text
    assert len([a for t, a in page.tags if t == "li" and a.get("class") == "card"]) == 9
    links = [a[k] for _, a in page.tags for k in ("src", "href") if a.get(k)]
    assert all(link.startswith(("data:", "#")) for link in links)
    assert all(a.get("alt") for t, a in page.tags if t == "img")
    ids = {a["id"] for _, a in page.tags if "id" in a}
    assert {link[1:] for link in links if link.startswith("#")} <= ids


def test_a_notebook_shows_the_page_in_a_frame(result):
    shown = Page(result.report()._repr_html_())
    ((tag, attributes),) = shown.tags
    assert tag == "iframe"
    assert attributes["srcdoc"] == result.report().html()


def test_names_of_classes_and_files_are_inert(world, tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    for i, name in enumerate(("a'\"><img src=x onerror=alert(1)>", "<script>b", "{{ 7 * 7 }}")):
        shutil.copy(world / "images" / f"{i}.png", folder / f"{name}.png")
    names = [EVIL, "</script><b>", "' onclick='alert(1)"]
    result = das3.adapt(model(), folder, out=tmp_path / "run", class_names=names, stages=["selftrain"], **QUICK)
    text = result.report().html()
    assert EVIL not in text
    page = Page(text)
    assert [t for t, _ in page.tags].count("script") == 2
    assert not [t for t, _ in page.tags if t == "b"]
    assert not [a for _, a in page.tags if any(key.startswith("on") for key in a)]
    assert EVIL in page.text
    assert "{{ 7 * 7 }}" in page.text
    compared = write_comparison([result.folder, result.folder], tmp_path / "compared.html").html()
    assert EVIL not in compared
    assert [t for t, _ in Page(compared).tags].count("script") == 2


@pytest.mark.parametrize(("count", "size", "zoom"), [(1000, (60, 80), 1), (24, (48, 64), 8)])
def test_a_report_of_many_images_or_of_noise_stays_below_five_megabytes(tmp_path, count, size, zoom):
    images = Counted(count, size, zoom)
    images.names = [f"drive_{i // 100}/camera_front_left/{i:06d}_leftImg8bit" for i in range(count)]
    (tmp_path / "recipe.yaml").write_text("stages: [selftrain]\n")
    path = write_report(
        tmp_path, incoming=worlds.pointwise_network(), adapted=worlds.pointwise_network(), images=images
    ).path
    assert 5e5 < path.stat().st_size < 5e6
    page = Page(path.read_text())
    assert len([a for t, a in page.tags if t == "li" and a.get("class") == "card"]) == 24
    assert "looked at" in page.text


def test_the_guard_s_verdict_is_shown_and_its_names_are_inert(copied):
    path = copied.folder / "summary.json"
    summary = json.loads(path.read_text())
    candidates = [
        {"name": "incoming", "signals": {"consistency": 0.91}},
        {"name": EVIL, "signals": {"consistency": 0.95, "mutual_information": 0.5}, "note": "late"},
    ]
    reason = "agreement with the ensemble is highest"
    summary["verdict"] = {"chosen": "selftrain", "reason": reason, "confidence": 0.8, "candidates": candidates}
    path.write_text(json.dumps(summary))
    page = Page(write_report(copied.folder).html())
    for text in (reason, "0.91", "0.95", "mutual information", EVIL, "late", "Confidence: 0.8"):
        assert text in page.text
    assert [t for t, _ in page.tags].count("script") == 2


def test_a_run_without_a_report_gets_one_from_the_model_and_the_images(world, tmp_path, capsys):
    out, incoming = tmp_path / "run", tmp_path / "in"
    torch.manual_seed(0)
    das3.save_segmenter(load_segmenter("das3:small", num_classes=3, model_args={"width": 8}), incoming)
    given = [
        f"--model={incoming}",
        f"--images={world / 'images'}",
        f"--out={out}",
        "--stages=selftrain",
        "--guard=off",
        "--quiet",
    ]
    steps = ["--selftrain.steps=2", "--selftrain.color-transforms=false", "--selftrain.upscale=false", "--device=cpu"]
    assert main(["adapt", *given, *steps, "--report=false"]) == 0
    assert "report.html" not in capsys.readouterr().out
    assert not (out / "work/report").exists()
    assert main(["compare", str(out), str(out), "--out", str(tmp_path / "c.html")]) == 2
    assert "das3 report" in capsys.readouterr().err
    assert main(["report", str(out), "--quiet"]) == 0
    assert (out / "report.html").is_file()
    before, after = (Capture(out / "work/report" / which).info for which in ("incoming", "adapted"))
    assert before.weights == weights_hash(load_segmenter(incoming).model)
    assert after.weights == weights_hash(load_segmenter(out).model) != before.weights
    (out / "report.html").unlink()
    assert main(["adapt", *given, *steps, "--resume"]) == 0
    assert "report.html" in capsys.readouterr().out


def test_a_report_that_fails_says_so_in_one_line_and_the_run_goes_on(world, tmp_path, monkeypatch, capsys):
    def broken(*args, **kwargs):
        raise RuntimeError("CUDA out of memory.\nTried to allocate much")

    monkeypatch.setattr("das3.report.report.capture", broken)
    options = {**QUICK, "quiet": False, "stages": ["selftrain"], "guard": "off"}
    made = das3.adapt(model(), world / "images", out=tmp_path / "run", **options)
    said = [line for line in capsys.readouterr().err.splitlines() if "report:" in line]
    assert len(said) == 1
    assert "CUDA out of memory. Tried" in said[0]
    assert not (made.folder / "report.html").exists()
    with pytest.raises(das3.RecipeError, match="predictions"):
        made.report()


def test_a_resumed_run_is_compared_with_the_model_that_came_in(world, tmp_path, monkeypatch):
    options = {**QUICK, "stages": ["selftrain", "propagate"], "guard": "off", "out": tmp_path / "run"}
    real, begun = das3.training.phases.train, []

    def interrupted(*args, **kwargs):
        begun.append(1)
        if len(begun) == 2:
            raise KeyboardInterrupt
        real(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr("das3.training.phases.train", interrupted)
        with pytest.raises(KeyboardInterrupt):
            das3.adapt(model(), world / "images", **options)
    shutil.rmtree(tmp_path / "run/work/report")  # as if it had been killed before they were complete
    resumed = das3.adapt(model(), world / "images", resume=True, **options)
    run = RunFolder.open(resumed.folder)
    assert Capture(run.incoming).info.weights == weights_hash(model())
    assert Capture(run.adapted).info.weights == weights_hash(resumed.model)
    assert "Transitions" in resumed.report().html()


def test_a_report_changes_nothing_of_what_comes_out(world, tmp_path):
    options = {**QUICK, "stages": ["selftrain"], "guard": "off"}
    one, other = (das3.adapt(model(), world / "images", report=on, **options).model for on in (True, False))
    assert weights_hash(one) == weights_hash(other)


# --- several runs


def test_a_comparison_shows_runs_side_by_side(world, result, tmp_path, capsys):
    options = {**QUICK, "selftrain": {**STAGE, "lr": 0.01}, "stages": ["selftrain"], "guard": "off"}
    other = das3.adapt(model(), world / "images", out=tmp_path / "other", **options)
    out = tmp_path / "compared.html"
    assert main(["compare", str(result.folder), str(other.folder), "--out", str(out)]) == 0
    page = Page(out.read_text())
    for text in ("run", "other", "selftrain.lr", "0.01", "selftrain: positive"):
        assert text in page.text
    captures = [Capture(folder / "work/report/adapted") for folder in (result.folder, other.folder)]
    same = np.mean([(captures[0][i]["labels"] == captures[1][i]["labels"]).mean() for i in range(9)])
    assert f"{100 * same:.1f}\u00a0%" in page.text
    capsys.readouterr()
    assert main(["compare", str(result.folder), "--out", str(out)]) == 2
    assert "two runs" in capsys.readouterr().err
