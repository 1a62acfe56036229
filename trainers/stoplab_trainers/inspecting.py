"""Look into one run: pictures, a page that explains them, and all numbers.

    python -m stoplab_trainers.inspecting RUN [--out FOLDER] [--force] [--images PATH]...
        [--draws S] [--json]

RUN is a job's id, `JOB/CELL` of a study, an MLflow run's id, or the path of a checkpoint, a run's
or a job's folder.
Leaves the pictures, `index.html` and `diagnostics.json`, and prints a table (--json: the document).
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
from collections.abc import Mapping, Sequence
from math import isfinite
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from jaxtyping import UInt8
from sklearn.datasets import load_sample_images
from torch import Tensor

from stoplab_platform import logs
from stoplab_platform.errors import (
    CheckpointError,
    DataError,
    NotFound,
    SettingsError,
    SpecError,
    StoplabError,
)
from stoplab_platform.exits import Exit
from stoplab_platform.files import write_atomic, write_json
from stoplab_platform.paths import RunFolder
from stoplab_platform.references import find
from stoplab_platform.settings import Settings
from stoplab_platform.specs import RunSpec
from stoplab_trainers.data.decode import decode, whole
from stoplab_trainers.data.shards import ShardSet
from stoplab_trainers.diagnostics.album import DRAWS, PICTURES, Album, Subject, album
from stoplab_trainers.diagnostics.masks import rows_together
from stoplab_trainers.diagnostics.page import page, table
from stoplab_trainers.diagnostics.probe import Probe, features_stats, first_images
from stoplab_trainers.diagnostics.watching import spooled_series
from stoplab_trainers.objective import objective_of
from stoplab_trainers.weights.trained import Trained, open_trained

log = logging.getLogger("stoplab.inspect")

PAGE, NUMBERS = "index.html", "diagnostics.json"
NAMES = (PAGE, NUMBERS, *(one.file for one in PICTURES))
"""All files that a look may leave."""
IMAGES = 4  # of the run's own data
MOST_IMAGES = 16
MOST_DRAWS = 1024
SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".ppm", ".gif")


def main(arguments: list[str] | None = None) -> Exit:
    """Parse, inspect, say where it lies."""
    parser = argparse.ArgumentParser(prog="python -m stoplab_trainers.inspecting")
    parser.add_argument("run")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--force", action="store_true", help="replace files that are there")
    parser.add_argument("--images", type=Path, action="append", default=[])
    parser.add_argument("--draws", type=int, default=DRAWS)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args(arguments)
    if not options.json:
        logs.to_stdout()
    try:
        document, folder = inspect_run(
            options.run, options.out, options.images, options.draws, force=options.force
        )
    except (StoplabError, OSError) as error:
        print(error, file=sys.stderr)
        refused = isinstance(error, SpecError | DataError | SettingsError | NotFound)
        return Exit.BAD_INPUT if refused else Exit.FAILED
    print(json.dumps(document, indent=1) if options.json else table(document))
    if not options.json:
        print(folder / "index.html")
    return Exit.OK


def inspect_run(
    name: str, out: Path | None, files: Sequence[Path], draws: int, *, force: bool = False
) -> tuple[dict[str, Any], Path]:
    """Draw and measure; the document of numbers, and the folder that holds everything.

    ``force``: replace what an earlier look, or somebody else, left under the same names.
    """
    if not 2 <= draws <= MOST_DRAWS:
        raise SpecError.of("draws", f"{draws} must be from 2 to {MOST_DRAWS}")
    settings = Settings()
    found = open_trained(find(name, settings))
    log.info("%s at step %d", found.folder.root, found.step)
    folder = (out or Path(f"inspect-{_label(found.folder)}-step-{found.step}")).absolute()
    _refuse(found, folder, force=force)
    shards = None if files else _own_data(found.spec, settings)
    images, source = _images(found.spec, files, shards)
    subject = Subject(found.spec, found.model, found.target, images, spooled_series(found.folder))
    folder.parent.mkdir(parents=True, exist_ok=True)
    # What fails midway leaves an earlier look as it was.
    with TemporaryDirectory(dir=folder.parent, prefix=".stoplab-") as draft:
        made = album(subject, Path(draft), draws)
        _add_features(made, found, shards)
        made.numbers = _for_json(made.numbers)
        document = {"run": _told(found, source), **made.numbers}
        document |= {"pictures": [one._asdict() for one in made.pictures], "absent": made.absent}
        write_json(Path(draft) / NUMBERS, document)
        title = f"{found.spec.name}, step {found.step}"
        write_atomic(Path(draft) / PAGE, page(title, _lines(document["run"]), made))
        _put(Path(draft), folder)
    return document, folder


def _refuse(found: Trained, folder: Path, *, force: bool) -> None:
    """CheckpointError for weights that are no numbers, DataError for files that would be lost."""
    states = {"model": found.model.state_dict(), "target": found.target.state_dict()}
    wrong = [
        f"{whose}.{name}"
        for whose, state in states.items()
        for name, value in state.items()
        if not value.isfinite().all()
    ]
    if wrong:
        more = f" and {len(wrong) - 1} more" if len(wrong) > 1 else ""
        raise CheckpointError(
            f"the weights at step {found.step} are not all finite numbers, so that there is "
            f"nothing to see: {wrong[0]}{more}"
        )
    if folder.exists() and not folder.is_dir():
        raise DataError(f"out: {folder} is no folder")
    there = [name for name in NAMES if (folder / name).exists()]
    if there and not force:
        raise DataError(f"out: {', '.join(there)} in {folder} would be replaced; --force does it")


def _put(draft: Path, folder: Path) -> None:
    """Move what was drawn; a picture of an earlier look that this one has not goes."""
    folder.mkdir(exist_ok=True)
    for name in NAMES:
        if (draft / name).exists():
            (draft / name).replace(folder / name)
        else:
            (folder / name).unlink(missing_ok=True)


def _for_json(value: Any) -> Any:
    """Numbers as JSON knows them: it has none that are not finite."""
    if isinstance(value, Mapping):
        return {name: _for_json(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [_for_json(one) for one in value]
    return None if isinstance(value, float) and not isfinite(value) else value


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
    size, most = spec.data.image_size, min(MOST_IMAGES, rows_together(spec))
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
