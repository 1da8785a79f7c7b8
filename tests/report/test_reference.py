"""The reports that are committed: what they lead to is committed too, and they stay small."""

import re
from pathlib import Path
from urllib.parse import unquote

import pytest

REFERENCE = Path(__file__).parents[2] / "reports" / "reference"
PAGES = sorted(path for path in REFERENCE.rglob("*") if path.name == "README.md" or path.suffix == ".html")
MIB = 2**20


def targets(page: Path) -> list[str]:
    """Relative addresses in a page, whose scripts only hold names."""
    text = page.read_text(encoding="utf-8")
    if page.suffix == ".md":
        found = re.findall(r"\]\(([^)\s]+)\)", text)
    else:
        found = re.findall(r'(?:href|src)="([^"]+)"', re.sub(r"<script.*?</script>", "", text, flags=re.DOTALL))
    return [one for one in found if not re.match(r"[a-z]+:|#", one)]


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(REFERENCE)))
def test_every_link_leads_to_a_file(page):
    places = {one: page.parent / unquote(one.partition("#")[0]) for one in targets(page)}
    assert [one for one, path in places.items() if not path.exists()] == []


def test_there_are_pages_with_links():
    reports = {page.parent.name for page in PAGES if page.name == "report.html" and targets(page)}
    assert reports >= {"digits", "distributions", "flowmaps", "mnist", "quickstart"}


def test_a_page_can_be_sent_and_all_of_them_kept():
    assert max(page.stat().st_size for page in PAGES) < 3 * MIB
    assert sum(path.stat().st_size for path in REFERENCE.rglob("*") if path.is_file()) < 25 * MIB
