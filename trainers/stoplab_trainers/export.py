"""Take a trained encoder out of the lab.

    python -m stoplab_trainers.export RUN --to timm|safetensors|onnx|mlflow|official --out PATH

RUN is the path of a checkpoint, a run's or a job's folder, a job's id, `JOB/CELL` of a study, or
the id of a run in MLflow. PATH is a file by its ending, else a folder. Exit codes are those of
`stoplab_platform.exits`.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from stoplab_platform.errors import (
    DataError,
    NotFound,
    SettingsError,
    SpecError,
    StoplabError,
)
from stoplab_platform.exits import Exit
from stoplab_platform.references import find
from stoplab_platform.settings import Settings
from stoplab_trainers.data.loader import MEAN, STD
from stoplab_trainers.weights.card import model_card
from stoplab_trainers.weights.mlflow_model import log_mlflow
from stoplab_trainers.weights.official import to_official
from stoplab_trainers.weights.onnx_encoder import write_onnx
from stoplab_trainers.weights.timm_encoder import SAFETENSORS, TORCH, write_timm
from stoplab_trainers.weights.trained import Trained, open_trained

CARD = "README.md"


@dataclass(frozen=True)
class Kind:
    """A form of weights in files.

    Attributes:
        endings: of files of this form, the usual one first.
        stem: the file's name where a folder was given.
        write: writes the file, and those beside it, into a folder; what there is to say of it.
        beside: names of the other files, from the file's own.
    """

    endings: tuple[str, ...]
    stem: str
    write: Callable[[Trained, Path, Path], dict[str, Any]]
    beside: Callable[[Path], list[str]] = field(default=lambda file: [])


def main(arguments: Sequence[str] | None = None) -> Exit:
    """Parse, export, and say where it is and how to load it."""
    parser = argparse.ArgumentParser(prog="python -m stoplab_trainers.export", description=__doc__)
    parser.add_argument("run", help="a path, a job's id, JOB/CELL, or an MLflow run's id")
    parser.add_argument("--to", choices=[*KINDS, "mlflow"], required=True)
    parser.add_argument("--out", type=Path, help="a file by its ending, else a folder")
    parser.add_argument("--cell", help="which of a study's runs")
    parser.add_argument("--force", action="store_true", help="replace files that are there")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args(arguments)
    try:
        told = _export(options)
    except (StoplabError, OSError) as error:
        if options.json:
            print(json.dumps({"error": str(error)}, indent=1))
        print(error, file=sys.stderr)
        refused = isinstance(error, DataError | NotFound | SettingsError | SpecError)
        return Exit.BAD_INPUT if refused else Exit.FAILED
    print(json.dumps(told, indent=1) if options.json else _spelled(told))
    return Exit.OK


def _export(options: argparse.Namespace) -> dict[str, Any]:
    settings = Settings()
    found = find(options.run, settings, options.cell)
    if options.to == "mlflow":  # it has a place of its own
        trained = open_trained(found)
        uri, difference = log_mlflow(trained, settings)
        loading = f"mlflow.pyfunc.load_model({uri!r})"
        return {"to": "mlflow", "files": [uri], "load": loading, "difference": difference,
                "provenance": trained.provenance}  # fmt: skip
    kind = KINDS[options.to]
    target = _target(options.to, kind, options.out, force=options.force)
    trained = open_trained(found)
    target.parent.mkdir(parents=True, exist_ok=True)
    # What fails its check is never seen, and what is seen is whole.
    with TemporaryDirectory(dir=target.parent, prefix=".stoplab-") as draft:
        told = kind.write(trained, Path(draft) / target.name, target)
        files = [file.replace(target.parent / file.name) for file in sorted(Path(draft).iterdir())]
    return {"to": options.to, "files": [str(file) for file in files], **told,
            "provenance": trained.provenance}  # fmt: skip


def _target(name: str, kind: Kind, out: Path | None, *, force: bool) -> Path:
    """The file to write; DataError where it, or one beside it, is there already."""
    if out is None:
        raise DataError("out: name a file or a folder")
    out = out.absolute()
    every = {ending for one in KINDS.values() for ending in one.endings}
    if out.suffix in every and out.suffix not in kind.endings:
        endings = ", ".join(kind.endings)
        raise DataError(f"out: {out.name}: a file of {name} ends in {endings}; or name a folder")
    target = out if out.suffix in kind.endings else out / f"{kind.stem}{kind.endings[0]}"
    if target.parent.exists() and not target.parent.is_dir():
        raise DataError(f"out: {target.parent} is no folder")
    names = [target.name, *kind.beside(target)]
    there = [name for name in names if (target.parent / name).exists()]
    if there and not force:
        raise DataError(
            f"out: {', '.join(there)} in {target.parent} would be replaced; --force does it"
        )
    return target


def _timm(trained: Trained, file: Path, final: Path) -> dict[str, Any]:
    recipe, difference = write_timm(trained, file)
    told = {
        "model": recipe.name,
        "checkpoint": file.name,
        "arguments": recipe.arguments,
        "mean": MEAN,
        "std": STD,
        "provenance": trained.provenance,
    }
    file.with_suffix(".json").write_text(json.dumps(told, indent=1) + "\n")
    return {"load": recipe.line(final), "difference": difference}


def _safetensors(trained: Trained, file: Path, final: Path) -> dict[str, Any]:
    recipe, difference = write_timm(trained, file)
    card = model_card(trained, recipe.line(file.name), file.name)
    (file.parent / CARD).write_text(card)
    return {"load": recipe.line(final), "difference": difference}


def _onnx(trained: Trained, file: Path, final: Path) -> dict[str, Any]:
    difference = write_onnx(trained, file)
    return {"load": f"onnxruntime.InferenceSession({str(final)!r})", "difference": difference}


def _official(trained: Trained, file: Path, final: Path) -> dict[str, Any]:
    torch.save(to_official(trained.model, trained.target), file)
    return {"load": f"torch.load({str(final)!r}, weights_only=True)", "difference": 0.0}


KINDS = {
    "timm": Kind(SAFETENSORS + TORCH, "encoder", _timm, lambda f: [f.with_suffix(".json").name]),
    "safetensors": Kind(SAFETENSORS, "encoder", _safetensors, lambda file: [CARD]),
    "onnx": Kind((".onnx",), "encoder", _onnx, lambda file: [f"{file.name}.data"]),
    "official": Kind((".pth", ".pt", ".tar"), "checkpoint", _official),
}


def _spelled(told: dict[str, Any]) -> str:
    lines = [*told["files"], f"largest difference from the checkpoint: {told['difference']:.2g}"]
    return "\n".join([*lines, told["load"]])


if __name__ == "__main__":
    sys.exit(main())
