"""The reports in a real browser: their plots are drawn, nothing complains, nobody is called."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from stoplab_platform.paths import JobFolder
from support_api import COMPARE, running_api, secret
from support_reports import compared, swept

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser"))), None)

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium: apt-get install chromium"),
]


@dataclass
class Seen:
    """A page that was opened, and what it did meanwhile."""

    page: Any
    complaints: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)

    def open(self, address: str) -> Any:
        """Go there, and wait until every plot has been drawn."""
        answer = self.page.goto(address)
        self.page.wait_for_function(
            "() => { const plots = [...document.querySelectorAll('.plot')];"
            " return plots.length > 0 && plots.every(p => p.querySelector('.main-svg')); }",
            timeout=60_000,
        )
        return answer

    def count(self, selector: str) -> int:
        """Drawn nodes of that kind that have a size."""
        found: int = self.page.evaluate(
            "s => [...document.querySelectorAll(s)].filter(node => { const box ="
            " node.getBoundingClientRect(); return box.width + box.height > 1; }).length",
            selector,
        )
        return found

    def plots(self) -> int:
        """Plots that are as large as a plot has to be."""
        found: int = self.page.evaluate(
            "() => [...document.querySelectorAll('.plot .main-svg:first-child')].filter(node =>"
            " node.getBoundingClientRect().width > 300 &&"
            " node.getBoundingClientRect().height > 100).length"
        )
        return found


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    # Chromium's sandbox refuses to run as root.
    words = ["--no-sandbox"] if os.geteuid() == 0 else []
    with sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=CHROMIUM, args=words)
        yield launched
        launched.close()


@pytest.fixture
def seen(browser: Any, request: pytest.FixtureRequest) -> Iterator[Seen]:
    context = browser.new_context(
        viewport={"width": 1000, "height": 800}, **getattr(request, "param", {})
    )
    found = Seen(context.new_page())
    found.page.on("console", lambda message: found.complaints.append(message.text))
    found.page.on("pageerror", lambda error: found.complaints.append(str(error)))
    found.page.on("request", lambda asked: found.requests.append(asked.url))
    yield found
    context.close()


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> JobFolder:
    return compared(tmp_path_factory.mktemp("pair"))[1]


@pytest.fixture(scope="module")
def grid(tmp_path_factory: pytest.TempPathFactory) -> JobFolder:
    return swept(tmp_path_factory.mktemp("grid"))[1]


def address(path: Path) -> str:
    return path.as_uri()


@pytest.mark.parametrize(
    "seen", [{"color_scheme": "light"}, {"color_scheme": "dark"}], indirect=True
)
def test_a_comparison_opens_from_a_file(seen: Seen, pair: JobFolder) -> None:
    seen.open(address(pair.comparison_html))
    assert seen.plots() == 4
    assert seen.count(".scatterlayer .trace path") >= 8, "points, lines and intervals"
    assert seen.page.inner_text("h1") == "pairs"
    assert "stochastic is better than deterministic" in seen.page.inner_text(".verdict")
    assert seen.complaints == []
    assert seen.requests == [address(pair.comparison_html)]


def test_its_plots_take_the_colours_of_the_reader(seen: Seen, pair: JobFolder) -> None:
    def ink() -> str:
        tick = "getComputedStyle(document.querySelector('.plot .xtick text')).fill"
        return str(seen.page.evaluate(tick))

    seen.page.emulate_media(color_scheme="light")
    seen.open(address(pair.comparison_html))
    light = ink()
    seen.page.emulate_media(color_scheme="dark")
    seen.page.wait_for_function(
        "before => getComputedStyle(document.querySelector('.plot .xtick text')).fill !== before",
        arg=light,
    )
    assert seen.complaints == []


def test_a_surface_opens_from_a_file(seen: Seen, grid: JobFolder) -> None:
    seen.open(address(grid.surface_html))
    assert seen.plots() == 4
    assert seen.count(".contourlayer .contourfill path") >= 15
    assert seen.count(".scatterlayer .point") >= 6
    assert seen.count(".barlayer .point path") == 2
    assert "Best measured" in seen.page.inner_text(".verdict")
    assert seen.complaints == []
    assert seen.requests == [address(grid.surface_html)]


def test_a_script_from_elsewhere_does_not_run(seen: Seen, pair: JobFolder, tmp_path: Path) -> None:
    """The page's own policy knows its scripts by their hashes."""
    page = pair.comparison_html.read_text()
    bad = tmp_path / "bad.html"
    bad.write_text(page.replace("<h1>", "<script>document.title = 'taken'</script><h1>", 1))
    seen.open(address(bad))
    assert seen.page.title() != "taken"
    assert any("Content Security Policy" in text for text in seen.complaints)


def test_a_comparison_opens_over_rest(browser: Any, pair: JobFolder, tmp_path: Path) -> None:
    with running_api(tmp_path / "home") as api:
        made = api.submitted(COMPARE)
        folder = api.folder(made["id"])
        for name in ("comparison", "comparison_html"):
            to = getattr(folder, name)
            to.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(getattr(pair, name), to)
        headers = {"Authorization": f"Bearer {secret('vera')}"}
        context = browser.new_context(extra_http_headers=headers)
        seen = Seen(context.new_page())
        seen.page.on("console", lambda message: seen.complaints.append(message.text))
        seen.page.on("request", lambda asked: seen.requests.append(asked.url))
        # A browser's own Accept asks for a page.
        answer = seen.open(f"{api.url}/v1/jobs/{made['id']}/comparison")
        assert "sandbox" in answer.headers["content-security-policy"]
        assert seen.plots() == 4
        assert seen.complaints == []
        assert seen.requests == [f"{api.url}/v1/jobs/{made['id']}/comparison"]
        context.close()
