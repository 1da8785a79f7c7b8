"""Look at a report's page as a browser shows it: screenshots at two widths in both themes, and every console message.

    python scripts/page_shots.py reports/quickstart/report.html /tmp/shots

Needs Debian's chromium and `pip install playwright`, neither of which the project depends on. Exits with 1 if the page
said anything on its console or is wider than the window.
"""

import sys
from pathlib import Path

from playwright.sync_api import Page, sync_playwright

WIDTHS, THEMES = (390, 1280), ("light", "dark")


def look(page: Page, address: str, file: Path) -> list[str]:
    """Open the page, hover a point, open a row and a sample; write screenshots; what is wrong, in words."""
    said: list[str] = []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.goto(address)
    page.locator("#figures .plot svg").first.wait_for(timeout=60_000)
    page.screenshot(path=file, full_page=True)
    point = page.locator("#figures .plot path[aria-roledescription='point']").first
    point.hover(force=True)
    page.screenshot(path=file.with_stem(f"{file.stem}-hover"))
    page.locator("#table tbody tr").first.click()
    if page.locator("#sheet .image").count():
        page.locator("#sheet .image").first.click()
        page.screenshot(path=file.with_stem(f"{file.stem}-sample"))
        page.keyboard.press("Escape")
    for summary in page.locator("section details > summary").all():
        summary.click()
    page.wait_for_timeout(500)
    page.screenshot(path=file.with_stem(f"{file.stem}-unfolded"), full_page=True)
    wide, window = page.evaluate("[document.documentElement.scrollWidth, innerWidth]")
    return said + [f"{wide} pixels wide in a window of {window}"] * (wide > window)


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
    print(*wrong or ["nothing on the console, nothing too wide"], sep="\n")
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())
