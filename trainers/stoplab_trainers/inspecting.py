"""Look into one run: pictures, a page that explains them, and all numbers.

    python -m stoplab_trainers.inspecting RUN [--out FOLDER] [--images PATH]... [--draws S] [--json]

RUN is a job's id, `JOB/CELL` of a study, an MLflow run's id, or the path of a checkpoint, a run's
or a job's folder.
Leaves the pictures, `index.html` and `diagnostics.json`, and prints a table (--json: the document).
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import UInt8
from sklearn.datasets import load_sample_images
from torch import Tensor

from stoplab_platform import logs
from stoplab_platform.errors import (
    DataError,
    NotFound,
    SettingsError,
    SpecError,
    StoplabError,
)
from stoplab_platform.exits import Exit
from stoplab_platform.paths import RunFolder, write_atomic, write_json
from stoplab_platform.references import find
from stoplab_platform.settings import Settings
from stoplab_platform.specs import RunSpec
from stoplab_trainers.data.decode import decode, whole
from stoplab_trainers.data.shards import ShardSet
from stoplab_trainers.diagnostics.album import DRAWS, Album, Subject, album
from stoplab_trainers.diagnostics.page import page, table
from stoplab_trainers.diagnostics.probe import Probe, features_stats, first_images
from stoplab_trainers.diagnostics.watching import spooled_series
from stoplab_trainers.objective import objective_of
from stoplab_trainers.weights.trained import Trained, open_trained

log = logging.getLogger("stoplab.inspect")

IMAGES = 4  # of the run's own data
MOST_IMAGES = 16
MOST_DRAWS = 1024
SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".ppm", ".gif")


def main(arguments: list[str] | None = None) -> Exit:
    """Parse, inspect, say where it lies."""
    parser = argparse.ArgumentParser(prog="python -m stoplab_trainers.inspecting")
    parser.add_argument("run")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--images", type=Path, action="append", default=[])
    parser.add_argument("--draws", type=int, default=DRAWS)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args(arguments)
    if not options.json:
        logs.to_stdout()
    try:
        document, folder = inspect_run(options.run, options.out, options.images, options.draws)
    except (StoplabError, OSError) as error:
        print(error, file=sys.stderr)
        refused = isinstance(error, SpecError | DataError | SettingsError | NotFound)
        return Exit.BAD_INPUT if refused else Exit.FAILED
    print(json.dumps(document, indent=1) if options.json else table(document))
    if not options.json:
        print(folder / "index.html")
    return Exit.OK


def inspect_run(
    name: str, out: Path | None, files: Sequence[Path], draws: int
) -> tuple[dict[str, Any], Path]:
    """Draw and measure; the document of numbers, and the folder that holds everything."""
    if not 2 <= draws <= MOST_DRAWS:
        raise SpecError.of("draws", f"{draws} must be from 2 to {MOST_DRAWS}")
    settings = Settings()
    found = open_trained(find(name, settings))
    log.info("%s at step %d", found.folder.root, found.step)
    shards = None if files else _own_data(found.spec, settings)
    images, source = _images(found.spec, files, shards)
    folder = out or Path(f"inspect-{_label(found.folder)}")
    subject = Subject(found.spec, found.model, found.target, images, spooled_series(found.folder))
    made = album(subject, folder, draws)
    _add_features(made, found, shards)
    document = {"run": _told(found, source), **made.numbers}
    document |= {"pictures": [one._asdict() for one in made.pictures], "absent": made.absent}
    write_json(folder / "diagnostics.json", document)
    title = f"{found.spec.name}, step {found.step}"
    write_atomic(folder / "index.html", page(title, _lines(document["run"]), made))
    return document, folder


def _own_data(spec: RunSpec, settings: Settings) -> ShardSet | None:
    try:
        return ShardSet.open(spec.data.train, settings.folders.cache, spec.data.storage)
    except (StoplabError, OSError) as error:
        log.warning("the run's own data cannot be read here: %s", error)
        return None


def _images(
    spec: RunSpec, files: Sequence[Path], shards: ShardSet | None
) -> tuple[UInt8[Tensor, "b 3 side side"], str]:
    """The images that are drawn on, and where they come from."""
    size, most = spec.data.image_size, min(MOST_IMAGES, spec.optim.batch_size)
    if shards is not None:
        return first_images(shards, size, min(IMAGES, most)), "the first of the run's own data"
    if not files:
        samples = [np.array(image) for image in load_sample_images().images]
        source = "scikit-learn's sample photographs: the run's own data cannot be read here"
        return torch.stack([whole(image, size) for image in samples[:most]]), source
    paths = [found for file in files for found in _listed(file)]
    if not 1 <= len(paths) <= most:
        raise SpecError.of("images", f"{len(paths)} were given; give 1 to {most}")
    return torch.stack([whole(_read(path), size) for path in paths]), ", ".join(map(str, paths))


def _listed(path: Path) -> list[Path]:
    """An image file, or those of a folder by name."""
    if path.is_dir():
        return sorted(one for one in path.iterdir() if one.suffix.lower() in SUFFIXES)
    return [path]


def _read(path: Path) -> np.ndarray[Any, np.dtype[np.uint8]]:
    try:
        return decode(path.read_bytes())
    except (DataError, OSError) as error:
        raise DataError(f"images: {path}: {error}") from error


def _add_features(made: Album, found: Trained, shards: ShardSet | None) -> None:
    """What tells of collapse, beside the untrained encoder; it takes the run's own images."""
    if shards is None:
        made.absent.append("Rank, spread and drift of features: they need the run's own data.")
        return
    probe = Probe.of(shards, found.spec.data.image_size)
    start = probe.look(objective_of(found.spec).build(found.spec).encoder)
    made.numbers["features"] = features_stats(probe.look(found.target), start)
    made.numbers["untrained"] = features_stats(start, start)


def _told(found: Trained, source: str) -> dict[str, Any]:
    return {
        "name": found.spec.name,
        "step": found.step,
        "seed": found.spec.seed,
        "positions": found.spec.positions.plain(),
        "grid": found.spec.grid,
        "folder": str(found.folder.root),
        "images": source,
    }


def _lines(run: dict[str, Any]) -> list[str]:
    positions = ", ".join(f"{name} {value}" for name, value in run["positions"].items())
    return [
        f"Weights of {run['folder']}, seed {run['seed']}, {run['grid']}x{run['grid']} patches.",
        f"Positions: {positions}. Images: {run['images']}.",
    ]


def _label(folder: RunFolder) -> str:
    """A job's id, and the run's name where it has several."""
    root = folder.root.absolute()
    job = root.parent.parent.name if root.parent.name == "runs" else ""
    return "-".join(part for part in (job, root.name) if part and part != "run") or "run"


if __name__ == "__main__":
    sys.exit(main())
