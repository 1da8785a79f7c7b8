"""Look at a report's page as a browser shows it: screenshots at two widths in both themes, and every console message.

    python scripts/page_shots.py reports/quickstart/report.html /tmp/shots

It is used as a reader would: filters, a sorted column, a row opened by the keyboard, a point, a sample stepped through
by its arrow keys, everything unfolded, and what a printer gets. Needs Debian's chromium and `pip install playwright`,
neither of which the project depends on. Exits with 1 if the page said anything on its console, did not answer, or is
wider than the window.
"""

import sys
from pathlib import Path

from playwright.sync_api import Page, sync_playwright

WIDTHS, THEMES = (390, 1280), ("light", "dark")


def look(page: Page, address: str, file: Path) -> list[str]:
    """Open the page, use it and write screenshots; what is wrong, in words."""
    wrong: list[str] = []
    page.on("console", lambda message: wrong.append(message.text))
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("request", lambda request: None if request.url == address else wrong.append(f"asks for {request.url[:80]}"))
    page.goto(address)
    page.locator("#figures .plot svg").first.wait_for(timeout=60_000)
    page.screenshot(path=file, full_page=True)
    for part in (_point, _table, _sample, _filters):
        wrong += part(page, file)
    for summary in page.locator("section > details > summary").all():
        summary.click()
    page.wait_for_timeout(500)
    page.screenshot(path=file.with_stem(f"{file.stem}-unfolded"), full_page=True)
    wide, window = page.evaluate("[document.documentElement.scrollWidth, innerWidth]")
    wrong += [f"{wide} pixels wide in a window of {window}"] * (wide > window)
    page.emulate_media(media="print")
    page.screenshot(path=file.with_stem(f"{file.stem}-print"), full_page=True)
    return wrong


def _point(page: Page, file: Path) -> list[str]:
    """A point tells what it is, and opens its row."""
    point = page.locator("#figures .plot path[aria-roledescription='point']").first
    point.hover(force=True)
    page.screenshot(path=file.with_stem(f"{file.stem}-hover"))
    told = page.locator("#tip dl div").count()
    point.click(force=True)
    page.wait_for_timeout(800)  # it scrolls there
    opened = page.locator("#table tr.rest").count()
    return ["a point tells nothing"] * (not told) + ["a point opens no row"] * (not opened)


def _table(page: Page, file: Path) -> list[str]:
    """A column is sorted by the keyboard, and a row opened, and neither loses the focus."""
    head = page.locator("#table th button").first
    head.focus()
    page.keyboard.press("Enter")
    sorted_by = page.evaluate("document.activeElement.closest('th')?.ariaSort")
    row = page.locator("#table tbody tr:not(.rest)").nth(1)
    row.focus()
    page.keyboard.press("Space")
    page.screenshot(path=file.with_stem(f"{file.stem}-row"))
    opened = page.evaluate("document.activeElement.ariaExpanded")
    return ["no head is sorted by"] * (sorted_by != "ascending") + ["no row is opened"] * (opened is None)


def _sample(page: Page, file: Path) -> list[str]:
    """A sample is shown large, and the arrow keys lead to its neighbours."""
    if not page.locator("#sheet .image").count():
        return []
    page.locator("#sheet .image").first.click()
    for _ in range(2):
        page.keyboard.press("ArrowRight")
    page.screenshot(path=file.with_stem(f"{file.stem}-sample"))
    caption = page.locator("#large figcaption").first.text_content()
    page.keyboard.press("Escape")
    return [] if caption.startswith("noise 2 ") else [f"the arrow keys led to {caption!r}"]


def _filters(page: Page, file: Path) -> list[str]:
    """Each choice is changed once; with no method left the figures say so."""
    wrong = []
    for select in page.locator("#filters select").all():
        select.select_option(index=select.locator("option").count() - 1)
    for chips in page.locator("#filters .chips").all():
        chips.locator("input").last.focus()
        page.keyboard.press("Space")
    page.wait_for_timeout(1500)
    page.screenshot(path=file.with_stem(f"{file.stem}-filtered"), full_page=True)
    methods = page.locator("#filters .chips", has_text="method")
    if methods.count():
        methods.get_by_text("none", exact=True).click()
        wrong += ["figures of no method"] * page.locator("#figures .plot:visible").count()
        methods.get_by_text("all", exact=True).click()
    for select in page.locator("#filters select").all():
        select.select_option(index=0)
    for button in page.locator("#filters .chips").get_by_text("all", exact=True).all():
        button.click()
    page.wait_for_timeout(1500)
    shown = page.locator("#figures .plot:visible svg").count()
    return wrong + ["no figures after all was chosen"] * (not shown)


def main() -> int:
    """Screenshots of the page named first into the folder named second."""
    address, folder = Path(sys.argv[1]).resolve().as_uri(), Path(sys.argv[2])
    folder.mkdir(parents=True, exist_ok=True)
    wrong = []
    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path="/usr/bin/chromium", args=["--no-sandbox"])
        for width in WIDTHS:
            for theme in THEMES:
                page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=theme)
                wrong += [f"{width} {theme}: {one}" for one in look(page, address, folder / f"{width}-{theme}.png")]
                page.close()
        browser.close()
    print(*wrong or ["nothing on the console, nothing too wide, and all answers"], sep="\n")
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())
