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
from stoplab_trainers.weights.official import write_official
from stoplab_trainers.weights.onnx_encoder import write_onnx
from stoplab_trainers.weights.timm_encoder import SAFETENSORS, TORCH, write_timm
from stoplab_trainers.weights.trained import Trained, open_trained

CARD = "README.md"


@dataclass(frozen=True)
class Out:
    """Where an export goes.

    Attributes:
        file: the weights'.
        named: by the user, so that its folder may hold other things; else its folder was.
    """

    file: Path
    named: bool

    @property
    def card(self) -> str:
        """Name of the model card beside it."""
        return f"{self.file.stem}.{CARD}" if self.named else CARD

    @property
    def recipe(self) -> str:
        """Name of the file beside it that says how timm loads it."""
        return self.file.with_suffix(".json").name


@dataclass(frozen=True)
class Kind:
    """A form of weights in files.

    Attributes:
        endings: of files of this form, the usual one first.
        stem: the file's name where a folder was given.
        write: writes the file, and those beside it, into a folder; what there is to say of it.
        beside: names of the other files.
    """

    endings: tuple[str, ...]
    stem: str
    write: Callable[[Trained, Path, Out], dict[str, Any]]
    beside: Callable[[Out], list[str]] = field(default=lambda out: [])


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
    out = _out(options.to, kind, options.out, force=options.force)
    target = out.file
    trained = open_trained(found)
    target.parent.mkdir(parents=True, exist_ok=True)
    # What fails its check is never seen, and what is seen is whole.
    with TemporaryDirectory(dir=target.parent, prefix=".stoplab-") as draft:
        told = kind.write(trained, Path(draft) / target.name, out)
        files = [file.replace(target.parent / file.name) for file in sorted(Path(draft).iterdir())]
    return {"to": options.to, "files": [str(file) for file in files], **told,
            "provenance": trained.provenance}  # fmt: skip


def _out(name: str, kind: Kind, given: Path | None, *, force: bool) -> Out:
    """Where to write; DataError where the file, or one beside it, is there already."""
    if given is None:
        raise DataError("out: name a file or a folder")
    out = given.absolute()
    every = {ending for one in KINDS.values() for ending in one.endings}
    if out.suffix in every and out.suffix not in kind.endings:
        endings = ", ".join(kind.endings)
        raise DataError(f"out: {out.name}: a file of {name} ends in {endings}; or name a folder")
    named = out.suffix in kind.endings
    found = Out(out if named else out / f"{kind.stem}{kind.endings[0]}", named)
    target = found.file
    if target.parent.exists() and not target.parent.is_dir():
        raise DataError(f"out: {target.parent} is no folder")
    names = [target.name, *kind.beside(found)]
    there = [name for name in names if (target.parent / name).exists()]
    if there and not force:
        raise DataError(
            f"out: {', '.join(there)} in {target.parent} would be replaced; --force does it"
        )
    return found


def _timm(trained: Trained, file: Path, out: Out) -> dict[str, Any]:
    recipe, difference = write_timm(trained, file)
    told = {
        "model": recipe.name,
        "checkpoint": file.name,
        "arguments": recipe.arguments,
        "mean": MEAN,
        "std": STD,
        "provenance": trained.provenance,
    }
    (file.parent / out.recipe).write_text(json.dumps(told, indent=1) + "\n")
    return {"load": recipe.line(out.file), "difference": difference}


def _safetensors(trained: Trained, file: Path, out: Out) -> dict[str, Any]:
    recipe, difference = write_timm(trained, file)
    card = model_card(trained, recipe.line(file.name), file.name)
    (file.parent / out.card).write_text(card)
    return {"load": recipe.line(out.file), "difference": difference}


def _onnx(trained: Trained, file: Path, out: Out) -> dict[str, Any]:
    difference = write_onnx(trained, file)
    return {"load": f"onnxruntime.InferenceSession({str(out.file)!r})", "difference": difference}


def _official(trained: Trained, file: Path, out: Out) -> dict[str, Any]:
    difference = write_official(trained, file)
    load = f"torch.load({str(out.file)!r}, weights_only=True)"
    return {"load": load, "difference": difference}


KINDS = {
    "timm": Kind(SAFETENSORS + TORCH, "encoder", _timm, lambda out: [out.recipe]),
    "safetensors": Kind(SAFETENSORS, "encoder", _safetensors, lambda out: [out.card]),
    "onnx": Kind((".onnx",), "encoder", _onnx, lambda out: [f"{out.file.name}.data"]),
    "official": Kind((".pth", ".pt", ".tar"), "checkpoint", _official),
}


def _spelled(told: dict[str, Any]) -> str:
    lines = [*told["files"], f"largest difference from the checkpoint: {told['difference']:.2g}"]
    return "\n".join([*lines, told["load"]])


if __name__ == "__main__":
    sys.exit(main())
