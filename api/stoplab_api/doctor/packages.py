"""What is installed, against what stoplab asks for and was tested with."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

from packaging.requirements import Requirement

from stoplab_api.doctor.finding import Finding

SHOWN = ("ray", "mlflow", "fastapi", "uvicorn", "torch", "torchvision", "timm", "optuna")
"""Told also when they fit."""
EXTRAS = {"train": "torch", "sweep": "optuna", "api": "uvicorn"}
"""Extra to the package that nothing else brings: without it the extra was not asked for."""
PINS = Path(__file__).parents[3] / "constraints.txt"
"""Only in a source tree."""
LOAD = (
    "import torch, torchvision\n"
    "print(f'{torch.__version__} and {torchvision.__version__} load, '"
    "f'{torch.cuda.device_count()} GPU(s) seen')"
)
LOAD_S = 120.0


def packages() -> Iterator[Finding]:
    """Versions, by extra; then the pair that loads only together."""
    try:
        wanted = [Requirement(text) for text in requires("stoplab") or ()]
    except PackageNotFoundError:
        yield Finding("stoplab", False, "is not installed, only found on the path",
                      "pip install -e '.[all]' in its folder")  # fmt: skip
        return
    yield Finding("stoplab", True, version("stoplab"))
    core = _of_extra(wanted, "")
    yield from fits(core)
    for extra, mark in EXTRAS.items():
        if installed(mark) is None:
            cure = f"`pip install 'stoplab[{extra}]'` brings it"
            yield Finding(f"extra {extra}", True, f"not installed; {cure}")
        else:
            told = {one.name for one in core}
            yield from fits([one for one in _of_extra(wanted, extra) if one.name not in told])
    if installed("torch") and installed("torchvision"):
        yield pair()
    if PINS.exists():
        yield tested(PINS)


def fits(wanted: list[Requirement]) -> Iterator[Finding]:
    """Each package that is missing or does not fit; some also where they do."""
    for one in wanted:
        found = installed(one.name)
        cure = f"pip install '{one.name}{one.specifier}'"
        if found is None:
            yield Finding(one.name, False, f"not installed; stoplab needs {one}", cure)
        elif not one.specifier.contains(found, prereleases=True):
            yield Finding(one.name, False, f"{found}; stoplab needs {one.specifier}", cure)
        elif one.name in SHOWN:
            yield Finding(one.name, True, found)


def pair() -> Finding:
    """Whether torchvision was made for this torch; a process of its own finds out."""
    name, cure = "torch and torchvision", (
        "they are a pair: install both in one call from one index, as "
        "`pip install -c constraints.txt torch torchvision`"
    )  # fmt: skip
    try:
        told = subprocess.run(
            [sys.executable, "-c", LOAD], capture_output=True, text=True, timeout=LOAD_S
        )
    except subprocess.TimeoutExpired:
        return Finding(name, False, f"do not load within {LOAD_S:.0f} s", "try again")
    words = (told.stdout if told.returncode == 0 else told.stderr).strip().splitlines()
    return Finding(name, told.returncode == 0, words[-1] if words else "do not load", cure)


def tested(pins: Path) -> Finding:
    """How this environment differs from the one that was tested; that alone breaks nothing."""
    pinned = dict(line.split("==") for line in pins.read_text().splitlines() if "==" in line)
    others = [
        f"{name} {found} ({pin})"
        for name, pin in pinned.items()
        if (found := installed(name)) is not None and found.partition("+")[0] != pin
    ]
    told = f"{len(others)} differ: {', '.join(others)}" if others else f"as in {pins.name}"
    return Finding("tested versions", True, told)


def installed(name: str) -> str | None:
    """A package's version."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _of_extra(wanted: list[Requirement], extra: str) -> list[Requirement]:
    """What an extra adds; "" is the core."""

    def holds(one: Requirement, of: str) -> bool:
        return one.marker is None or one.marker.evaluate({"extra": of})

    return [one for one in wanted if holds(one, extra) and (not extra or not holds(one, ""))]
