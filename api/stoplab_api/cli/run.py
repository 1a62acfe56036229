"""`stoplab train`, `sweep`, `compare`, `evaluate`: run a spec here and now, without a server."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from stoplab_api import local
from stoplab_api.cli.interrupts import interruptible
from stoplab_api.cli.show import AsJson, Sets, SpecFile, print_json, reported, say
from stoplab_api.cli.submit import load_here
from stoplab_platform.errors import SpecError
from stoplab_platform.exits import Exit
from stoplab_platform.fence import own, owner
from stoplab_platform.files import read_json, write_atomic
from stoplab_platform.handoff import clear_stop, request_stop
from stoplab_platform.ids import new_job_id
from stoplab_platform.jobs.models import Intent
from stoplab_platform.ledger import Ledger
from stoplab_platform.paths import JobFolder
from stoplab_platform.secret_files import ensure_secret
from stoplab_platform.settings import Settings
from stoplab_platform.specs import AnySpec, load_spec

Resume = Annotated[
    str | None,
    typer.Option(metavar="JOB", help="Go on with this job: what it has done stays done."),
]
STDERR = 2
COMMANDS = {"pretrain": "train", "sweep": "sweep", "compare": "compare", "evaluate": "evaluate"}


@reported
def train(
    file: SpecFile, changes: Sets = None, resume: Resume = None, as_json: AsJson = False
) -> None:
    """Pretrain: one run, in the foreground."""
    _run("pretrain", file, changes, resume, as_json)


@reported
def sweep(
    file: SpecFile, changes: Sets = None, resume: Resume = None, as_json: AsJson = False
) -> None:
    """Run a sweep in the foreground."""
    _run("sweep", file, changes, resume, as_json)


@reported
def compare(
    file: SpecFile, changes: Sets = None, resume: Resume = None, as_json: AsJson = False
) -> None:
    """Run a comparison in the foreground."""
    _run("compare", file, changes, resume, as_json)


@reported
def evaluate(
    file: SpecFile, changes: Sets = None, resume: Resume = None, as_json: AsJson = False
) -> None:
    """Evaluate a checkpoint in the foreground."""
    _run("evaluate", file, changes, resume, as_json)


def environment(settings: Settings) -> dict[str, str]:
    """The home, absolute, and the MLflow of the home's lab.

    A Ray that the command starts answers on every address: the home's token guards it.
    """
    env = {"STOPLAB_HOME": str(settings.home)}
    if settings.ray_auth_mode is None:
        token = settings.folders.ray_token_file
        ensure_secret(token)
        env |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token)}
    return env | lab_tracking(settings)


def hand_over(module: str, words: list[str]) -> NoReturn:
    """Run a command of the trainers for this home, and end as it does.

    In a process of its own: it needs torch, which this one does without.
    """
    settings = Settings()
    env = {**os.environ, "STOPLAB_HOME": str(settings.home), **lab_tracking(settings)}
    command = [sys.executable, "-P", "-m", f"stoplab_trainers.{module}", *words]
    raise typer.Exit(subprocess.run(command, check=False, env=env).returncode)


def lab_tracking(settings: Settings) -> dict[str, str]:
    """The address of the home's MLflow, if it lives and no other is named."""
    lab = local.find(settings.folders)
    if settings.mlflow_tracking_uri is None and lab is not None and lab.is_alive("mlflow"):
        return {"MLFLOW_TRACKING_URI": lab.place.url("mlflow")}
    return {}


def _run(
    kind: str, file: Path, changes: list[str] | None, resume: str | None, as_json: bool
) -> None:
    spec = load_here(file, changes)
    if spec.kind != kind:
        raise SpecError.of("kind", f"this is a spec for `stoplab {COMMANDS[spec.kind]}`")
    if spec.kind in ("pretrain", "evaluate") and spec.limits.plain(defaults=False):
        say("its limits hold for submitted jobs; here it runs until it is done, or you stop it")
    settings = Settings()
    job_id = resume or new_job_id()
    folder = settings.folders.job(job_id)
    _claim(spec, folder, resume)
    attempt = owner(folder) + 1
    clear_stop(folder, attempt)
    own(folder, attempt)
    code = _supervised(settings, job_id, attempt, as_json)
    if code == Exit.STOPPED:
        say(f"stopped; go on with `stoplab {COMMANDS[kind]} {file} --resume {job_id}`")
    if as_json:
        print_json({"job_id": job_id, "folder": str(folder.root), **_result(kind, folder)})
    raise typer.Exit(Exit.BAD_INPUT if code == Exit.NO_DATA else code)


def _claim(spec: AnySpec, folder: JobFolder, resume: str | None) -> None:
    """The folder of a job holds one spec for good."""
    if resume is None:
        write_atomic(folder.spec, spec.to_yaml())
    elif not folder.spec.exists():
        raise SpecError.of("name", f"there is no job {resume} in {folder.root.parent}")
    elif load_spec(folder.spec).digest() != spec.digest():
        raise SpecError.of("name", f"{resume} has another spec: {folder.spec}; start a new job")


def _supervised(settings: Settings, job_id: str, attempt: int, as_json: bool) -> int:
    """Run the attempt; its output is ours (on stderr beside --json), its exit code too.

    The supervisor keeps the log and the fence, and ends with us however we end.
    """
    command = [
        sys.executable, "-P", "-m", "stoplab_platform.supervisor",
        "--job", job_id, "--attempt", str(attempt), "--leave-with-parent",
    ]  # fmt: skip
    sys.stdout.flush()
    with (
        interruptible(),
        subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=STDERR if as_json else None,
            start_new_session=True,  # Ctrl-C is for us: we ask the run to save first
            env={**os.environ, **environment(settings)},
        ) as process,
    ):
        intents = [Intent.PAUSED, Intent.CANCELLED]
        while True:
            try:
                return process.wait()
            except KeyboardInterrupt:
                if not intents:
                    process.terminate()
                    continue
                intent = intents.pop(0)
                request_stop(settings.folders.job(job_id), attempt, intent)
                again = "; again: within 5 s" if intent is Intent.PAUSED else ""
                say(f"stopping: the step is finished and saved{again}")


def _result(kind: str, folder: JobFolder) -> dict[str, Any]:
    """What the run left: its summary, a comparison's result, a sweep's runs."""
    if kind == "sweep":
        return {"trials": [cell.model_dump(mode="json") for cell in Ledger(folder).cells()]}
    left = folder.comparison if kind == "compare" else folder.run("run").summary
    return read_json(left) or _end(folder)


def _end(folder: JobFolder) -> dict[str, Any]:
    """How it ended without one."""
    result = read_json(folder.result) or {}
    return {"outcome": result.get("outcome"), "error": result.get("message")}
