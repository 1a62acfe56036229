"""The plug-ins of docs/plugins.md, installed as packages below a folder."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

PAGE = Path(__file__).parents[1] / "docs" / "plugins.md"


def blocks(language: str) -> list[str]:
    """The code of the page."""
    found: list[str] = re.findall(rf"```{language}\n(.*?)```", PAGE.read_text(), flags=re.DOTALL)
    return found


def install_clipped(site: Path) -> None:
    """The positions of the page, with the metadata of its pyproject.toml."""
    (text,) = blocks("toml")
    project = tomllib.loads(text)["project"]
    points = project["entry-points"]["stoplab.plugins"]
    spec, torch_part = blocks("python")[:2]
    modules = {"__init__": spec, "noise": torch_part}
    install(site, project["name"], project["version"], modules, points)


def install(
    site: Path, name: str, version: str, modules: dict[str, str], points: dict[str, str]
) -> None:
    """A package and its metadata, as an installer leaves them."""
    package = site / name.replace("-", "_")
    package.mkdir(parents=True)
    for module, text in modules.items():
        (package / f"{module}.py").write_text(text)
    info = site / f"{package.name}-{version}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    lines = [f"{point} = {target}\n" for point, target in points.items()]
    (info / "entry_points.txt").write_text("[stoplab.plugins]\n" + "".join(lines))
