"""`stoplab up`, `down`, `status`, `env`: the local lab of one home."""

from __future__ import annotations

import shlex
import time
from typing import Annotated

import typer

from stoplab_api import local
from stoplab_api.cli.interrupts import interruptible
from stoplab_api.cli.show import (
    AsJson,
    print_json,
    print_table,
    print_text,
    reported,
    say,
)
from stoplab_api.lab_parts import PARTS, shell_exports
from stoplab_api.lab_processes import LabError, tail
from stoplab_platform.exits import Exit
from stoplab_platform.settings import Settings

WATCH_S = 1.0

Port = Annotated[int | None, typer.Option(min=0, max=65535, help="Port of the API; 0: any free.")]
MlflowPort = Annotated[int | None, typer.Option(min=0, max=65535, help="Port of MLflow.")]
RayPort = Annotated[
    int | None,
    typer.Option(min=0, max=65535, help="Port of Ray's dashboard, which Ray Jobs talks to."),
]
Detach = Annotated[bool, typer.Option("--detach", help="Return once everything answers.")]


@reported
def up(
    port: Port = None,
    mlflow_port: MlflowPort = None,
    ray_port: RayPort = None,
    detach: Detach = False,
    as_json: AsJson = False,
) -> None:
    """Start the local lab: a Ray head, MLflow and the API.

    What lives already is kept, what died is started again. Without --detach a lab that was
    started here stays until Ctrl-C.
    """
    ports = {"api": port, "mlflow": mlflow_port, "ray": ray_port}
    with interruptible():
        lab, started = local.up(Settings(), ports, say)
        try:
            if as_json:
                print_json(lab.addresses())
            else:
                _print_addresses(lab, started)
            if not detach and len(started) == len(PARTS):
                say("Ctrl-C stops the lab")
                _stay(lab)
        except KeyboardInterrupt:
            _leave(lab)


@reported
def down(as_json: AsJson = False) -> None:
    """Stop the local lab; running jobs pause first."""
    home = Settings().folders
    lab = local.find(home)
    if lab is not None:
        with interruptible():
            local.down(lab, say)
    if as_json:
        print_json({"home": str(home.root), "stopped": lab is not None})
    elif lab is None:
        print_text(f"no lab runs in {home.root}")
    else:
        print_text(f"the lab of {home.root} is stopped")


@reported
def status(as_json: AsJson = False) -> None:
    """Tell which parts of the local lab live and answer; exit code 1 if one does not."""
    home = Settings().folders
    lab = local.find(home)
    parts = {} if lab is None else {name: _look(lab, name) for name in PARTS}
    running = bool(parts) and all(part["ready"] for part in parts.values())
    if as_json:
        print_json({"home": str(home.root), "running": running, "parts": parts})
    elif lab is None:
        print_text(f"no lab runs in {home.root}; `stoplab up` starts one")
    else:
        print_table(
            ("part", "address", "pid", "state"),
            [(name, part["url"], part["pid"], _state(part)) for name, part in parts.items()],
        )
        if not running:
            say("`stoplab up` starts again what is dead; `stoplab doctor` says more")
    raise typer.Exit(Exit.OK if running else Exit.FAILED)


@reported
def env(as_json: AsJson = False) -> None:
    """Print shell lines that point `ray job submit`, notebooks and stoplab at the lab.

    eval "$(stoplab env)"
    """
    home = Settings().folders
    lab = local.find(home)
    if lab is None or lab.dead():
        raise LabError(f"no lab runs in {home.root}; `stoplab up --detach` starts one")
    exports = shell_exports(lab.place)
    if as_json:
        print_json(exports)
    else:
        for name, value in exports.items():
            print_text(f"export {name}={shlex.quote(value)}")


def _print_addresses(lab: local.Lab, started: list[str]) -> None:
    if not started:
        say("the lab runs already")
    names = {"api": "API", "mlflow": "MLflow", "ray": "Ray", "token_file": "token", "home": "home"}
    for key, value in lab.addresses().items():
        print_text(f"{names[key]:<8} {value}")


def _stay(lab: local.Lab) -> None:
    """Until the lab is stopped elsewhere; tells of parts that die, once each."""
    told: dict[str, int] = {}
    while (now := local.find(lab.home)) is not None:
        for part in now.dead():
            pid = now.pids[part].pid
            if told.get(part) != pid:
                told[part] = pid
                log = lab.home.server_log(part)
                say(f"{part} died; `stoplab up` elsewhere starts it again\n{log}:\n{tail(log)}")
        time.sleep(WATCH_S)


def _leave(lab: local.Lab) -> None:
    """Stop; who interrupts again does not want to wait for the jobs."""
    now = local.find(lab.home) or lab
    try:
        say("stopping the lab")
        local.down(now, say)
    except KeyboardInterrupt:
        local.down(now, say, pause=False)


def _look(lab: local.Lab, name: str) -> dict[str, object]:
    alive = lab.is_alive(name)
    return {
        "url": lab.place.url(name),
        "pid": lab.pids[name].pid if name in lab.pids else None,
        "alive": alive,
        "ready": alive and PARTS[name].is_ready(lab.place),
        "log": str(lab.home.server_log(name)),
    }


def _state(part: dict[str, object]) -> str:
    if part["ready"]:
        return "answers"
    return "lives, does not answer" if part["alive"] else "dead"
