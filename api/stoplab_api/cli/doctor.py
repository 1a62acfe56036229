"""`stoplab doctor`: what is wrong with this machine or its lab, and how to mend it."""

from __future__ import annotations

import platform
import shutil
import stat
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import psutil
import typer

from stoplab_api import local
from stoplab_api.cli.show import AsJson, print_json, print_text, reported
from stoplab_api.lab_parts import OBJECT_STORE_BYTES, PARTS, PREFERRED_PORTS
from stoplab_api.lab_processes import is_free
from stoplab_platform.exits import Exit
from stoplab_platform.paths import Home
from stoplab_platform.settings import Settings

# Distribution to the extra that brings it.
PACKAGES = {
    "ray": None, "mlflow": None, "fastapi": "api", "uvicorn": "api",
    "torch": "train", "torchvision": "train", "timm": "train", "optuna": "sweep",
}  # fmt: skip
DISK_BYTES = 5 * 1024**3
MEMORY_BYTES = 3 * 1024**3  # of a lab that does nothing yet


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at."""

    name: str
    ok: bool
    detail: str
    cure: str | None = None
    """What to do, where it is not ok."""


@reported
def doctor(as_json: AsJson = False) -> None:
    """Look for what is wrong, and say how to mend it; exit code 1 if something is."""
    settings = Settings()
    found = [*_machine(settings.folders), *_packages(), *_tokens(settings.folders)]
    found += _lab(settings)
    ok = all(finding.ok for finding in found)
    if as_json:
        print_json({"ok": ok, "checks": [asdict(finding) for finding in found]})
    else:
        for finding in found:
            print_text(f"{'ok   ' if finding.ok else 'WRONG'} {finding.name}: {finding.detail}")
            if not finding.ok and finding.cure:
                print_text(f"      mend: {finding.cure}")
    raise typer.Exit(Exit.OK if ok else Exit.FAILED)


def _machine(home: Home) -> Iterator[Finding]:
    yield Finding("python", True, platform.python_version())
    folder = _existing(home.root)
    free = shutil.disk_usage(folder).free
    yield Finding(
        "disk", free > DISK_BYTES, f"{_gib(free)} free below {folder}",
        f"free some, or set STOPLAB_HOME to a disk with {_gib(DISK_BYTES)}",
    )  # fmt: skip
    memory = psutil.virtual_memory().available
    yield Finding(
        "memory", memory > MEMORY_BYTES, f"{_gib(memory)} available",
        f"a lab needs {_gib(MEMORY_BYTES)}; end something else",
    )  # fmt: skip
    shm = Path("/dev/shm")
    if shm.is_dir():
        total = shutil.disk_usage(shm).total
        yield Finding(
            "shared memory", total > OBJECT_STORE_BYTES, f"{_gib(total)} at {shm}",
            "Ray will use slow files instead; start the container with --shm-size=1g",
        )  # fmt: skip


def _packages() -> Iterator[Finding]:
    for name, extra in PACKAGES.items():
        try:
            yield Finding(name, True, version(name))
        except PackageNotFoundError:
            wanted = f"stoplab[{extra}]" if extra else "stoplab"
            yield Finding(name, False, "not installed", f"pip install '{wanted}'")


def _tokens(home: Home) -> Iterator[Finding]:
    for path in (home.token_file, home.ray_token_file):
        if path.exists():
            mode = stat.S_IMODE(path.stat().st_mode)
            yield Finding(
                f"token {path.name}", mode & 0o077 == 0, f"{path} has mode {mode:o}",
                f"others can read it: chmod 600 {path}",
            )  # fmt: skip


def _lab(settings: Settings) -> Iterator[Finding]:
    home = settings.folders
    lab = local.find(home)
    if lab is None:
        taken = [f"{part} {port}" for part, port in PREFERRED_PORTS.items() if not is_free(port)]
        detail = f"taken, so `up` draws others: {', '.join(taken)}" if taken else "free"
        yield Finding("ports", True, detail)
        yield Finding("lab", True, f"none runs in {home.root}; `stoplab up` starts one")
        return
    for part in PARTS:
        alive = lab.is_alive(part)
        ready = alive and PARTS[part].is_ready(lab.place)
        state = "answers" if ready else "does not answer" if alive else "is dead"
        cure = f"see {home.server_log(part)}; " + (
            "`stoplab down`, then `stoplab up`" if alive else "`stoplab up` starts it again"
        )
        yield Finding(f"lab {part}", ready, f"{state} at {lab.place.url(part)}", cure)
    named = {"RAY_ADDRESS": ("ray", settings.ray_address)}
    named["STOPLAB_API_URL"] = ("api", settings.api_url)
    for variable, (part, url) in named.items():
        if url is not None:
            yield Finding(
                "environment", url == lab.place.url(part), f"{variable} is {url}",
                'it names another lab than this home\'s: eval "$(stoplab env)"',
            )  # fmt: skip


def _existing(path: Path) -> Path:
    return path if path.exists() else _existing(path.parent)


def _gib(number: float) -> str:
    return f"{number / 1024**3:.1f} GiB"
