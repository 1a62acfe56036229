"""Take the pictures of mlflow.md from a lab's MLflow, in a real browser.

    python docs/mlflow_pictures.py http://127.0.0.1:5000 EXPERIMENT_ID JOB_ID

The job is a finished comparison. Needs playwright and a Chromium (CHROMIUM names it).
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from urllib.parse import quote

from playwright.sync_api import Browser, Page, ViewportSize, sync_playwright

PICTURES = Path(__file__).parent / "assets" / "mlflow"
SIZE: ViewportSize = {"width": 1500, "height": 860}
MENU_PX = 200  # MLflow's own menu, left out of the pictures


def main(url: str, experiment: str, job_id: str) -> None:
    """Write the pictures."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=os.environ.get("CHROMIUM", "/usr/bin/chromium"), args=["--no-sandbox"]
        )
        runs = f"{url}/#/experiments/{experiment}/runs?searchFilter=" + quote(
            f"tags.`stoplab.job_id` = '{job_id}'"
        )
        page = _opened(browser, runs)
        shown = ("test/knn_top1", "test/linear_top1", "positions.noise_std")
        _toggle_columns(page, "Dataset", "Source", "Models", *shown)
        _take(page, "by-arm")
        page = _opened(browser, f"{runs}&compareRunsMode=CHART")
        page.get_by_placeholder("Search metric charts").fill("stop/|train/loss|val/")
        page.locator(".js-plotly-plot").nth(2).wait_for()
        _take(page, "curves")
        browser.close()


def _opened(browser: Browser, url: str) -> Page:
    """The page of some runs, grouped by arm."""
    page = browser.new_page(viewport=SIZE)
    page.goto(url)
    page.get_by_text("matching runs").wait_for(timeout=60_000)
    assistant = page.get_by_role("button", name="Close")
    if assistant.count():
        assistant.last.click()
    _group_by(page, "stoplab.arm")
    return page


def _group_by(page: Page, tag: str) -> None:
    page.get_by_role("button", name="Group by").click()
    page.get_by_placeholder("Search").last.fill(tag)
    page.get_by_text(tag, exact=True).last.click()
    page.keyboard.press("Escape")
    page.get_by_text("Group: ").first.wait_for()


def _toggle_columns(page: Page, *names: str) -> None:
    page.get_by_role("button", name="Columns").click()
    for name in names:
        page.get_by_placeholder("Search columns").fill(name)
        page.get_by_text(name, exact=True).last.click()
    page.keyboard.press("Escape")


def _take(page: Page, name: str) -> None:
    page.wait_for_timeout(3_000)  # for a picture only: charts are drawn with a transition
    clip = {**SIZE, "x": MENU_PX, "y": 0, "width": SIZE["width"] - MENU_PX}
    page.screenshot(path=PICTURES / f"{name}.png", clip=clip)  # type: ignore[arg-type]


if __name__ == "__main__":
    main(*sys.argv[1:])
