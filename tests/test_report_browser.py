"""The report in a real browser: `pytest -m slow tests/test_run_report_browser.py`, with Chromium installed."""

import shutil

import numpy as np
import pytest
import torch
from torch import nn

import das3
import worlds
from das3.report import write_comparison

pytestmark = pytest.mark.slow

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
STAGE = {"steps": 3, "color_transforms": False, "upscale": False}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Two finished runs on the same images."""
    root = tmp_path_factory.mktemp("runs")
    world = worlds.write_world(root / "world", "target", count=30, size=(96, 128))
    made = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        layers = (nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 3, 1))
        options = {"stages": ["selftrain", "propagate"], "selftrain": STAGE, "propagate": STAGE, "log_every": 1}
        names = ["sky", "road", "<script>document.title = 'evil'</script>"]
        out = root / f"run {seed}"
        images = world / "images"
        made.append(das3.adapt(nn.Sequential(*layers), images, out=out, quiet=True, class_names=names, **options))
    return made


@pytest.fixture(scope="module")
def browser():
    if CHROMIUM is None:
        pytest.skip("no Chromium on the PATH; install it, e.g. apt-get install chromium")
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed; pip install playwright")
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def visit(browser):
    """Open a page of some width and colour scheme; whatever it complains of or asks the network for fails the test."""
    troubles, contexts = [], []

    def go(path, width=1300, scheme="light"):
        context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: troubles.append(f"console: {message.text}"))
        page.on("pageerror", lambda error: troubles.append(f"error: {error}"))
        own = path.as_uri()
        page.on("request", lambda r: None if r.url == own or r.url.startswith("data:") else troubles.append(r.url))
        page.goto(own)
        return page

    yield go
    for context in contexts:
        context.close()
    assert troubles == []


def test_the_divider_moves_with_the_keyboard(runs, visit):
    page = visit(runs[0].report().path)
    slide, viewer = page.locator(".slide").first, page.locator(".viewer").first
    slide.focus()
    for _ in range(10):
        page.keyboard.press("ArrowRight")
    assert slide.input_value() == "60"
    assert "incoming on the left 60 %" in slide.get_attribute("aria-valuetext")
    clip = viewer.locator(".layer.right[data-mode=classes]").evaluate("e => getComputedStyle(e).clipPath")
    assert "60%" in clip
    page.keyboard.press("Home")
    assert slide.input_value() == "0"
    page.locator("#all-slides").press("End")
    assert set(page.locator(".slide").evaluate_all("all => all.map(s => s.value)")) == {"100"}


def test_everything_is_reached_with_the_tab_key(runs, visit):
    page = visit(runs[0].report().path)
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    reached = set()
    for _ in range(60):
        page.keyboard.press("Tab")
        reached.add(page.evaluate("document.activeElement.id || document.activeElement.className"))
    assert {"class-filter", "all-slides", "opacity", "slide"} <= reached


def test_views_show_their_layers_and_say_what_they_are(runs, visit):
    page = visit(runs[0].report().path)
    expected = {"classes": 2, "changed": 1, "uncertainty": 2, "pseudo": 1}
    for mode, count in expected.items():
        page.check(f"input[name=mode][value={mode}]")
        shown = (
            page.locator(".viewer")
            .first.locator(".layer")
            .evaluate_all(
                "all => all.filter(e => getComputedStyle(e).visibility === 'visible').map(e => e.dataset.mode)"
            )
        )
        assert shown == [mode] * count
        assert page.locator(".viewer .tag-right").first.inner_text()


def test_a_class_is_filtered_and_alone_is_coloured(runs, visit):
    page = visit(runs[0].report().path)
    cards = page.locator(".card")
    assert cards.count() == 24
    cards.first.evaluate("card => { card.dataset.classes = '{}'; }")  # so that at least one has no road
    of_road = cards.evaluate_all("all => all.filter(c => '1' in JSON.parse(c.dataset.classes)).length")
    page.select_option("#class-filter", label="road")
    page.wait_for_function("document.querySelector('.card:not([hidden]) img.labels').src.length > 0")
    assert 0 < of_road < 24
    assert page.locator(".card:visible").count() == of_road
    assert f"{of_road} of 24 pictures show road" in page.inner_text("#filter-status")
    assert page.locator(".legend button[aria-pressed=true]").inner_text() == "road"
    page.wait_for_timeout(500)
    painted = page.locator(".card:visible img.labels[data-mode=classes].right").first.evaluate(
        """image => {
            const canvas = new OffscreenCanvas(image.naturalWidth, image.naturalHeight), c = canvas.getContext('2d');
            c.drawImage(image, 0, 0);
            return [...c.getImageData(0, 0, canvas.width, canvas.height).data];
        }"""
    )
    pixels = np.array(painted).reshape(-1, 4)
    assert len(np.unique(pixels[pixels[:, 3] > 0], axis=0)) <= 1
    page.locator(".legend button[aria-pressed=true]").click()
    assert page.locator(".card:visible").count() == 24
    assert page.input_value("#class-filter") == ""


@pytest.mark.parametrize("width", [320, 390, 768])
def test_a_phone_has_no_sideways_scroll(runs, visit, tmp_path, width):
    compared = write_comparison([run.folder for run in runs], tmp_path / "compared.html")
    for path in (runs[0].report().path, compared.path):
        page = visit(path, width=width)
        page.locator("details").evaluate_all("all => all.forEach(d => d.open = true)")
        assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_dark_and_light_follow_the_system_and_can_be_read(runs, visit):
    for scheme in ("light", "dark"):
        page = visit(runs[0].report().path, scheme=scheme)
        style = "e => { const s = getComputedStyle(e); return [s.backgroundColor, s.color]; }"
        ground, text = page.locator("body").evaluate(style)
        assert (luminance(ground) < 0.05) == (scheme == "dark")
        muted = page.locator(".muted").first.evaluate(style)[1]
        assert contrast(ground, text) > 7
        assert contrast(ground, muted) > 4.5  # WCAG AA


def luminance(color):
    channels = np.array([int(v) for v in color[4:-1].split(",")[:3]]) / 255
    linear = np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)
    return linear @ [0.2126, 0.7152, 0.0722]


def contrast(one, other):
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def test_every_control_and_picture_has_a_name(runs, visit):
    page = visit(runs[0].report().path)
    nameless = page.evaluate(
        """[...document.querySelectorAll('img, input, select, button, svg[role=img], [role=region]')].filter(e =>
            !(e.alt || e.getAttribute('aria-label') || e.labels?.length || e.innerText?.trim()))
            .map(e => e.outerHTML)"""
    )
    assert nameless == []
    assert page.evaluate("[...document.querySelectorAll('table')].every(t => t.caption)")
    assert page.title() == "das3 report: run 0"  # no class name has changed it


def test_a_notebook_s_frame_works(runs, visit, tmp_path):
    path = tmp_path / "notebook.html"
    path.write_text(f"<!doctype html><meta charset=utf-8><title>n</title>{runs[0].report()._repr_html_()}")
    frame = visit(path).frame_locator("iframe")
    frame.locator(".slide").first.press("ArrowLeft")
    assert frame.locator(".slide").first.input_value() == "49"


def test_runs_are_compared_side_by_side(runs, visit, tmp_path):
    page = visit(write_comparison([run.folder for run in runs], tmp_path / "compared.html").path)
    assert page.locator(".card").first.locator("figcaption").all_inner_texts() == ["incoming", "run 0", "run 1"]
    page.check("input[name=mode][value=uncertainty]")
    page.select_option("#class-filter", label="sky")
    assert "pictures show sky" in page.inner_text("#filter-status")
    wide = (
        page.locator(".card").first.locator(".viewer").evaluate_all("all => all.map(v => v.getBoundingClientRect().y)")
    )
    assert len(set(wide)) == 1
