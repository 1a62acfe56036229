"""Look into one run: pictures, a page that explains them, and all numbers.

    python -m stoplab_trainers.inspecting RUN [--out FOLDER] [--images PATH]... [--draws S] [--json]

RUN is a pretraining job's id, an MLflow run id, or the path of a run's or a checkpoint's folder.
Leaves the pictures, `index.html` and `diagnostics.json`, and prints a table (--json: the document).
"""

from __future__ import annotations

import argparse
import json
import logging
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

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
    TrackerRefused,
)
from stoplab_platform.exits import Exit
from stoplab_platform.jobs.states import STUDIES
from stoplab_platform.paths import JobFolder, RunFolder, write_atomic, write_json
from stoplab_platform.settings import Settings
from stoplab_platform.specs import RunSpec, load_spec
from stoplab_platform.specs.evaluation import CheckpointRef
from stoplab_platform.tracking.mlflow_runs import last_values
from stoplab_trainers import checkpoint
from stoplab_trainers.data.decode import decode, whole
from stoplab_trainers.data.shards import ShardSet
from stoplab_trainers.diagnostics.album import DRAWS, Album, Subject, album
from stoplab_trainers.diagnostics.page import page, table
from stoplab_trainers.diagnostics.probe import Probe, features_stats, first_images
from stoplab_trainers.diagnostics.watching import spooled_series
from stoplab_trainers.evaluation import checkpoint_path
from stoplab_trainers.model.encoder import Encoder
from stoplab_trainers.model.jepa import Jepa
from stoplab_trainers.objective import objective_of

log = logging.getLogger("stoplab.inspect")

IMAGES = 4  # of the run's own data
MOST_IMAGES = 16
MOST_DRAWS = 1024
SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".ppm", ".gif")


class Weights(NamedTuple):
    """A run's weights at a step, and where they lie."""

    spec: RunSpec
    step: int
    model: Jepa
    target: Encoder
    folder: RunFolder


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
    found = weights_of(named(name, settings))
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


def named(name: str, settings: Settings) -> Path:
    """The checkpoint that a job's id, an MLflow run id or a path means; a study's job has none."""
    if Path(name).is_dir():
        folder = JobFolder(Path(name))
        if not folder.runs.is_dir():
            return checkpoint_path(CheckpointRef(path=str(Path(name).absolute())), settings)
    else:
        folder = settings.folders.job(name) if "/" not in name else JobFolder(Path(name))
        if not folder.root.is_dir():
            return _of_mlflow(name, settings)
    kind = load_spec(folder.spec).kind if folder.spec.exists() else "pretrain"
    if kind in STUDIES:
        runs = "\n".join(f"  {run.root}" for run in folder.each_run()) or "  (none has begun)"
        raise NotFound(f"{name} is a {kind} job of many runs; inspect one of them:\n{runs}")
    if kind != "pretrain":
        raise NotFound(f"{name} is a job of kind {kind}: it has no weights of its own")
    return checkpoint_path(CheckpointRef(path=str(folder.run("run").root.absolute())), settings)


def _of_mlflow(name: str, settings: Settings) -> Path:
    if not re.fullmatch("[0-9a-f]{32}", name):
        raise NotFound(f"{name}: no job of this lab, no MLflow run id, and no folder")
    try:
        last_values(settings.tracking_uri, name)
    except TrackerRefused as error:
        raise NotFound(f"MLflow knows no run {name}") from error
    return checkpoint_path(CheckpointRef(mlflow_run=name), settings)


def weights_of(path: Path) -> Weights:
    """What a checkpoint's folder holds, on the CPU."""
    folder = RunFolder(path.parent.parent)
    if not folder.spec.exists():
        raise CheckpointError(f"{path} lies in no run's folder: {folder.spec} is missing")
    spec = load_spec(folder.spec)
    if not isinstance(spec, RunSpec):
        raise CheckpointError(f"{path} belongs to no pretraining run")
    step, state = checkpoint.load(path, identity=None)
    objective = objective_of(spec)
    model = objective.build(spec)
    model.load_state_dict(state["model"])
    target = objective.target(model.encoder)
    target.load_state_dict(state["target"])
    return Weights(spec, step, model, target, folder)


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


def _add_features(made: Album, found: Weights, shards: ShardSet | None) -> None:
    """What tells of collapse, beside the untrained encoder; it takes the run's own images."""
    if shards is None:
        made.absent.append("Rank, spread and drift of features: they need the run's own data.")
        return
    probe = Probe.of(shards, found.spec.data.image_size)
    start = probe.look(objective_of(found.spec).build(found.spec).encoder)
    made.numbers["features"] = features_stats(probe.look(found.target), start)
    made.numbers["untrained"] = features_stats(start, start)


def _told(found: Weights, source: str) -> dict[str, Any]:
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
