"""The docs hold together: links lead somewhere, the index of decisions is whole, decisions stay short."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = [
    *sorted(ROOT.glob("*.md")),
    *sorted((ROOT / "docs").rglob("*.md")),
    *sorted((ROOT / "benchmarks").rglob("*.md")),
]
MADE = {ROOT / "docs/reference/options.md"}
"""Pages that the docs site makes, see docs/site.py."""
DECISIONS = sorted((ROOT / "docs/decisions").glob("0*.md"))


def anchors(page):
    """Anchors of a page's headings, as GitHub makes them."""
    heads = re.findall(r"^#+ (.*)$", page.read_text(), re.M)
    return {re.sub(r"[^\w\- ]", "", head.lower()).strip().replace(" ", "-") for head in heads}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_to_files_and_headings(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if target.startswith("http"):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.exists() or file in MADE, target
        assert not anchor or anchor in anchors(file), target


@pytest.mark.parametrize("page", DECISIONS, ids=lambda page: page.stem)
def test_a_decision_is_short_and_in_the_index(page):
    text = page.read_text()
    assert len(text.split()) <= 300
    number, title = re.match(r"# (\d{4}) (.+)\n", text).groups()
    assert page.name.startswith(number)
    assert re.search(r"^Status: .*20\d\d-\d\d-\d\d", text, re.M | re.S)
    index = (ROOT / "docs/decisions/README.md").read_text()
    assert f"| [{number}]({page.name}) | {title} |" in index
