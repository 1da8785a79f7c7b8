"""Open explore.ipynb in a real JupyterLab in headless Chromium, run it, move what moves: pictures must change.

    pip install playwright            # drives the browser; no part of the project's environments
    python scripts/lab_check.py OUT   # Debian's `chromium` on the path; screenshots land in OUT

Uses the store of ONESTEP_STORE; the notebook is run on copies, in OUT/lab. Minutes on a busy machine. Ends non-zero
with a line of what did not happen.
"""

import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from playwright.sync_api import Locator, Page, sync_playwright

PATIENCE = 300  # seconds
# At its end, so that Stop has something to stop.
STOPPED = "study.train('edm', images, size='0.2M', kimg=2000, lr=1e-3, track=explore.watch(images, samples=64))"


@contextmanager
def server(root: Path) -> Iterator[str]:
    """JupyterLab on a free port, without a token: nobody else is here."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    options = [f"--port={port}", "--IdentityProvider.token=", f"--notebook-dir={root}", "--no-browser", "--allow-root"]
    with open(root / "server.log", "w") as log:
        process = subprocess.Popen([sys.executable, "-m", "jupyterlab", *options], stdout=log, stderr=log)
        try:
            yield _answering(f"http://localhost:{port}")
        finally:
            process.terminate()
            process.wait(30)


def _answering(url: str) -> str:
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        try:
            urllib.request.urlopen(f"{url}/api", timeout=5)
            return url
        except OSError:
            time.sleep(0.5)
    raise SystemExit("JupyterLab did not come up; see server.log")


def cell(page: Page, source: str) -> Locator:
    """The cell whose code holds a text, in view."""
    found = page.locator(".jp-CodeCell").filter(has=page.locator(".jp-InputArea", has_text=source)).first
    found.scroll_into_view_if_needed()
    return found


def idle(page: Page) -> None:
    """Wait until no cell waits or runs."""
    page.wait_for_timeout(2000)
    script = "() => ![...document.querySelectorAll('.jp-InputPrompt')].some(e => e.textContent.includes('*'))"
    page.wait_for_function(script, timeout=PATIENCE * 1000)


def pictures(panel: Locator) -> list[str]:
    """Sources of the images of a panel."""
    return panel.locator(".widget-html-content img").evaluate_all("all => all.map(one => one.src)")


def changed(page: Page, panel: Locator, before: list[str], what: str) -> list[str]:
    """Wait until a panel shows other pictures; its new ones. Ends the script if it does not."""
    end = time.monotonic() + 60
    while time.monotonic() < end:
        now = pictures(panel)
        if now and now != before:
            print(f"{what}: the picture changed")
            return now
        page.wait_for_timeout(200)
    raise SystemExit(f"{what}: the picture stayed as it was")


def check(page: Page, out: Path) -> None:
    """All of the notebook's panels, then a training that is watched and stopped."""
    page.get_by_role("menuitem", name="Run", exact=True).click()
    page.get_by_text("Run All Cells", exact=True).click()
    idle(page)

    panel = cell(page, "explore.samples(")
    seen = pictures(panel)
    panel.locator(".noUi-handle").first.focus()
    page.keyboard.press("ArrowRight")
    seen = changed(page, panel, seen, "steps")
    panel.get_by_role("spinbutton").first.fill("7")
    page.keyboard.press("Enter")
    changed(page, panel, seen, "seed")
    page.screenshot(path=out / "samples.png")

    panel = cell(page, "explore.morph(")
    seen = pictures(panel)
    panel.locator(".noUi-handle").nth(1).focus()
    page.keyboard.press("ArrowRight")
    changed(page, panel, seen, "second noise")
    page.screenshot(path=out / "morph.png")

    panel = cell(page, "explore.levels(")
    seen = pictures(panel)
    panel.locator(".noUi-handle").first.focus()
    for _ in range(10):
        page.keyboard.press("ArrowRight")
    changed(page, panel, seen, "noise level")
    page.screenshot(path=out / "levels.png")

    panel = cell(page, "explore.figure(")
    panel.locator("svg, canvas").first.wait_for()
    _click_a_point(page, panel)
    changed(page, panel, [], "a point of the figure")
    page.screenshot(path=out / "figure.png")

    panel = cell(page, "explore.designer(")
    text = panel.locator("textarea").last
    before = text.input_value()
    panel.locator("select").first.select_option("kd")
    page.wait_for_function("([area, old]) => area.value !== old", arg=[text.element_handle(), before])
    print("designer: the YAML changed")
    page.screenshot(path=out / "designer.png")
    _watch_and_stop(page, out)


def _click_a_point(page: Page, panel: Locator) -> None:
    """Vega draws on one canvas, or as paths of an SVG: whatever it is, its points are tried from the left."""
    marks = panel.locator("svg .mark-symbol path[aria-roledescription='point']")
    if marks.count():
        marks.first.click(force=True)
        return
    box = panel.locator("canvas").first.bounding_box()
    for down in range(0, int(box["height"]), 12):
        for right in range(0, int(box["width"]), 12):
            page.mouse.move(box["x"] + right, box["y"] + down)
            if panel.locator("canvas").first.evaluate("it => it.style.cursor") == "pointer":
                return page.mouse.click(box["x"] + right, box["y"] + down)
    raise SystemExit("the figure has no point to click")


def _watch_and_stop(page: Page, out: Path) -> None:
    page.locator(".jp-CodeCell").last.click()
    page.keyboard.press("Escape")
    page.keyboard.press("b")
    page.keyboard.press("Enter")
    page.keyboard.insert_text(STOPPED)
    page.keyboard.press("Shift+Enter")
    panel = cell(page, "kimg=2000")
    panel.locator(".jp-OutputArea img").first.wait_for(timeout=PATIENCE * 1000)
    panel.scroll_into_view_if_needed()
    page.screenshot(path=out / "watch.png")
    page.get_by_title("Interrupt the kernel").or_(
        page.locator("[data-command='notebook:interrupt-kernel'], [data-jp-item-name='interrupt']")
    ).first.click()
    idle(page)
    said = panel.locator(".jp-OutputArea-output").all_inner_texts()[-1].strip()
    page.screenshot(path=out / "stopped.png")
    if "\n" in said or "run this again" not in said:
        raise SystemExit(f"Stop says: {said}")
    print(f"Stop: {said}")


def main(out: Path) -> None:
    """Copies, a server, a browser."""
    out.mkdir(parents=True, exist_ok=True)
    lab = out / "lab"
    shutil.rmtree(lab, ignore_errors=True)
    start = [sys.executable, "-m", "onestep_bench.cli", "start", str(lab)]
    subprocess.run(start, check=True)
    os.environ.pop("TQDM_DISABLE", None)
    with server(lab) as url, sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1280, "height": 1000})
        page.set_default_timeout(PATIENCE * 1000)
        page.on("pageerror", lambda error: print(f"page error: {error}"))
        page.goto(f"{url}/lab/tree/notebooks/explore.ipynb?reset")
        page.wait_for_selector(".jp-Notebook .jp-CodeCell")
        page.wait_for_timeout(5000)
        try:
            check(page, out)
        finally:
            page.screenshot(path=out / "last.png")
            browser.close()


if __name__ == "__main__":
    main(Path(sys.argv[1]).absolute())
