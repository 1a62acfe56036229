"""Specs that come with the product: inside its packages, or beside them in a source tree."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

WINGS = ("stoplab_trainers", "stoplab_sweeps")


def ready_spec(name: str) -> Path | None:
    """The file of a ready spec, as `digits.yaml` or `baselines/ijepa.yaml`; None: there is none.

    Found without importing its wing: that needs torch, and not every process has it.
    """
    if Path(name).is_absolute() or ".." in Path(name).parts:
        return None
    for wing in WINGS:
        spec = find_spec(wing)
        for folder in map(Path, (spec.submodule_search_locations or ()) if spec else ()):
            for path in (folder / "configs" / name, folder.parent / "configs" / name):
                if path.is_file():
                    return path
    return None
