"""The layout of the house: what keeps editable installs, wheels, Ray and the eye working."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from itertools import chain
from pathlib import Path

import pytest

HOUSE = Path(__file__).parents[1]
ROOTS = {
    "platform": "stoplab_platform",
    "trainers": "stoplab_trainers",
    "sweeps": "stoplab_sweeps",
    "api": "stoplab_api",
}
SOURCES = sorted(
    path for root, package in ROOTS.items() for path in (HOUSE / root / package).rglob("*.py")
)
TESTS = sorted((HOUSE / "tests").rglob("*.py"))
PAGES = [
    *sorted(HOUSE.glob("*.md")),
    *sorted((HOUSE / "docs").rglob("*.md")),
]
MOST_LINES = 400


def where(path: Path) -> str:
    """The path below the house."""
    return str(path.relative_to(HOUSE))


def test_no_top_folder_is_a_package() -> None:
    """A top-level `platform` package would hide the standard library's module of that name."""
    assert [path.name for path in HOUSE.glob("*/__init__.py")] == []
    assert list((HOUSE / "tests").rglob("__init__.py")) == []


@pytest.mark.parametrize(("root", "package"), ROOTS.items())
def test_a_source_root_holds_one_package(root: str, package: str) -> None:
    packages = [path.parent.name for path in (HOUSE / root).glob("*/__init__.py")]
    assert packages == [package]
    assert (HOUSE / root / package / "py.typed").exists()
    assert list((HOUSE / root).glob("*.py")) == []


def test_no_module_is_called_like_one_of_the_standard_library() -> None:
    """Only where it could be imported by that name: in a source root, or in tests."""
    roots = [*(HOUSE / root for root in ROOTS), HOUSE / "tests"]
    names = {
        path.stem
        for root in roots
        for path in root.iterdir()
        if path.suffix == ".py" or (path / "__init__.py").exists()
    }
    assert names & sys.stdlib_module_names == set()


def test_every_folder_of_modules_is_a_package() -> None:
    folders = {path.parent for path in SOURCES if "migrations" not in path.parts}
    assert [folder for folder in folders if not (folder / "__init__.py").exists()] == []


def test_the_build_knows_every_root() -> None:
    project = tomllib.loads((HOUSE / "pyproject.toml").read_text())
    build = project["tool"]["hatch"]["build"]
    assert build["dev-mode-dirs"] == list(ROOTS)
    assert build["targets"]["wheel"]["packages"] == [f"{r}/{p}" for r, p in ROOTS.items()]


@pytest.mark.parametrize("path", [*SOURCES, *TESTS], ids=where)
def test_files_are_short(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= MOST_LINES


@pytest.mark.parametrize("path", SOURCES, ids=where)
def test_functions_are_short_and_nothing_is_left_to_do(path: Path) -> None:
    text = path.read_text()
    functions = [
        node
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    ]
    long = [f.name for f in functions if (f.end_lineno or f.lineno) - f.lineno >= 60]
    assert long == []
    assert re.findall(r"\b(TODO|FIXME|XXX|HACK|NotImplementedError)\b", text) == []


def test_settings_is_the_only_reader_of_our_variables() -> None:
    reading = re.compile(r"""(getenv\(|environ\.get\(|environ\[)"STOPLAB_\w+"(?!\] = )""")
    readers = [path.name for path in SOURCES if reading.search(path.read_text())]
    assert readers == []


def test_modules_of_tests_have_names_of_their_own() -> None:
    """They are imported by their bare names."""
    names = [path.name for path in TESTS]
    assert sorted(names) == sorted(set(names))


@pytest.mark.parametrize("page", PAGES, ids=where)
def test_links_lead_somewhere(page: Path) -> None:
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    links = re.findall(r"\]\(([^)\s]+)\)|(?:src|href)=\"([^\"]+)\"", text)
    broken = []
    for link in (a or b for a, b in links):
        file, _, anchor = link.partition("#")
        if "://" in link or link.startswith("mailto:"):
            continue
        target = (page.parent / file).resolve() if file else page
        if not target.exists() or (anchor and anchor not in anchors(target)):
            broken.append(link)
    assert broken == []


def anchors(page: Path) -> set[str]:
    """Names of a page's headings in links, as GitHub and MkDocs make them."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(), flags=re.MULTILINE)
    words = (re.sub(r"[^\w\- ]", "", heading).strip().lower() for heading in headings)
    return {word.replace(" ", "-") for word in words}


def test_constraints_pin_every_dependency() -> None:
    project = tomllib.loads((HOUSE / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"].values()
    wanted = [*project["dependencies"], *chain.from_iterable(extras)]
    pins = dict(
        line.split("==")
        for line in (HOUSE / "constraints.txt").read_text().splitlines()
        if "==" in line
    )
    pinned = {normal(name) for name in pins}
    names = {normal(re.split(r"[\[<>=~! ]", requirement)[0]) for requirement in wanted}
    assert names - pinned - {"stoplab"} == set()
    assert list(pins)[:2] == ["torch", "torchvision"], "they are a pair"


def normal(name: str) -> str:
    """A distribution's name as the index compares it (PEP 503)."""
    return re.sub(r"[-_.]+", "-", name).lower()
