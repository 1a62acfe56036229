"""The local lab of one home: up, look, down.

1. `up` makes the tokens and the store, starts a Ray head, an MLflow server and the API at once,
   each in a session of its own, and waits until each answers. What lives already is adopted;
   only dead parts are started, at their old address.
2. `lab.json` holds addresses, process numbers and their start times, from the first start on.
3. `down` lets running jobs pause, ends the API, then the rest, and takes Ray's temporary folder
   and `lab.json` away.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import psutil
from filelock import FileLock, Timeout

from stoplab_api.bodies import JobBody
from stoplab_api.client import ApiError, Client, Unreachable
from stoplab_api.lab_parts import PARTS, PREFERRED_PORTS, Place
from stoplab_api.lab_processes import LabError, Ports, Started, end, start, tail, wait_reaped
from stoplab_api.lab_secrets import ensure_token
from stoplab_platform.files import read_json, write_json
from stoplab_platform.jobs.states import State
from stoplab_platform.paths import Home
from stoplab_platform.secret_files import ensure_secret
from stoplab_platform.settings import Settings

START_S = 180.0
"""Most seconds that the parts have to answer, on a machine that does much else."""
PAUSE_S = 75.0  # a pause has 60 s to save, then the run is killed
GRACE_S = {"api": 8.0, "mlflow": 2.0, "ray": 2.0}
LOCK_S = 5.0
POLL_S = 0.2
MOVING = (State.STARTING, State.RUNNING, State.RECOVERING, State.STOPPING)

Say = Callable[[str], None]


@dataclass(frozen=True)
class Lab:
    """A lab as its file tells: where it listens and which processes it is."""

    place: Place
    pids: Mapping[str, Started]

    @property
    def home(self) -> Home:
        """Its folder."""
        return self.place.home

    def addresses(self) -> dict[str, str]:
        """What `stoplab up --json` prints."""
        return {
            **{part: self.place.url(part) for part in ("api", "mlflow", "ray")},
            "token_file": str(self.home.token_file),
            "home": str(self.home.root),
        }

    def dead(self) -> list[str]:
        """Parts whose process is gone."""
        return [part for part in PARTS if not self.is_alive(part)]

    def is_alive(self, part: str) -> bool:
        """Whether the part's own process lives."""
        return part in self.pids and self.pids[part].process() is not None

    def client(self) -> Client:
        """A REST client with the local token."""
        return Client(self.place.url("api"), self.home.token_file.read_text().strip())


def find(home: Home) -> Lab | None:
    """The lab that was started in a home, dead parts and all; None when there is none."""
    data = read_json(home.lab)
    if data is None:
        return None
    pids = {part: Started(**process) for part, process in data["pids"].items()}
    return Lab(Place(home, data["ports"]), pids)


def up(
    settings: Settings, wanted: Mapping[str, int | None], say: Say, deadline_s: float = START_S
) -> tuple[Lab, list[str]]:
    """Start what does not live of the home's lab; the lab, and the parts that were started.

    ``wanted``: port of a part; 0 is any free one, None the usual one if it is free. Raises
    LabError; then nothing that was started is left.
    """
    home = settings.folders
    with _locked(home), Ports() as ports:
        lab = find(home)
        started = list(PARTS) if lab is None else lab.dead()
        if not started:
            return _checked(lab, wanted), []
        if lab is None:
            place = _new_place(home, ports, wanted)
        else:
            place = _same_place(lab, ports, wanted, started)
        old = {} if lab is None else lab.pids
        try:
            return _start(settings, place, old, started, say, deadline_s), started
        except BaseException:
            _end_parts(place, old, started)
            if lab is None:
                _forget(place)
            raise


def down(lab: Lab, say: Say, *, pause: bool = True) -> None:
    """End a lab: its jobs pause first (unless ``pause`` is false), then all processes end."""
    with _locked(lab.home):
        if pause and lab.is_alive("api"):
            _pause_jobs(lab, say)
        # First the API: its reconciler would take Ray's end for the jobs' failure.
        ended = _end_parts(lab.place, lab.pids, ["api"])
        ended |= _end_parts(lab.place, lab.pids, ["ray", "mlflow"])
        _forget(lab.place)
        wait_reaped(ended)


def _start(
    settings: Settings,
    place: Place,
    old: Mapping[str, Started],
    parts: list[str],
    say: Say,
    deadline_s: float,
) -> Lab:
    home = place.home
    _end_parts(place, old, parts)  # a killed server may have left children
    for folder in (home.mlflow_artifacts, home.jobs, home.logs):
        folder.mkdir(parents=True, exist_ok=True)
    ensure_secret(home.ray_token_file)
    if "ray" in parts:
        _make_ray_folder(place.ray_folder)
    lab = Lab(place, {part: process for part, process in old.items() if part not in parts})
    for part in parts:
        if part == "api":
            ensure_token(settings)  # while Ray and MLflow are on their way
        lab = Lab(place, {**lab.pids, part: _start_part(place, part)})
        _remember(lab)
    say(f"starting {', '.join(parts)} in {home.root}")
    _wait_for(lab, parts, say, deadline_s)
    return lab


def _wait_for(lab: Lab, parts: list[str], say: Say, deadline_s: float) -> None:
    """Until the parts answer; LabError with the end of its log when one dies or is too slow."""
    deadline = time.monotonic() + deadline_s
    waits = [part for part in PARTS if part in parts]
    while waits:
        for part in list(waits):
            if PARTS[part].is_ready(lab.place):
                waits.remove(part)
                say(f"{part} answers at {lab.place.url(part)}")
        # Who answers may be somebody else at its port.
        for part in lab.dead():
            raise LabError(f"{part} died while starting{_last_words(lab.home, part)}")
        if waits and time.monotonic() > deadline:
            words = _last_words(lab.home, waits[0])
            raise LabError(f"{waits[0]} does not answer after {deadline_s:g} s{words}")
        time.sleep(POLL_S if waits else 0)


def _start_part(place: Place, part: str) -> Started:
    return start(
        PARTS[part].command(place),
        PARTS[part].environment(place),
        place.home.root,
        place.home.server_log(part),
        place.mark(part),
    )


def _end_parts(place: Place, pids: Mapping[str, Started], parts: list[str]) -> set[psutil.Process]:
    """End parts, with what they left behind; the file knows more than we do if we were cut off."""
    known = find(place.home)
    both = [*pids.items(), *(known.pids.items() if known else ())]
    roots = [process for part, process in both if part in parts]
    return end(roots, [place.mark(part) for part in parts], max(GRACE_S[part] for part in parts))


def _last_words(home: Home, part: str) -> str:
    log = home.server_log(part)
    return f"; the end of {log}:\n{tail(log)}"


def _new_place(home: Home, ports: Ports, wanted: Mapping[str, int | None]) -> Place:
    names = (*PARTS, "ray_client")
    return Place(
        home, {name: ports.take(wanted.get(name), PREFERRED_PORTS.get(name)) for name in names}
    )


def _checked(lab: Lab | None, wanted: Mapping[str, int | None]) -> Lab:
    """A lab that lives keeps its addresses."""
    assert lab is not None
    for part, port in wanted.items():
        if port and port != lab.place.ports[part]:
            raise LabError(
                f"the lab of {lab.home.root} has its {part} on port {lab.place.ports[part]}; "
                "stop it with `stoplab down` first"
            )
    return lab


def _same_place(
    lab: Lab, ports: Ports, wanted: Mapping[str, int | None], parts: list[str]
) -> Place:
    """Dead parts come back where they were: living ones and jobs know no other address."""
    place = _checked(lab, wanted).place
    _end_parts(place, lab.pids, parts)
    for part in parts:
        try:
            ports.take(place.ports[part])
        except LabError as error:
            raise LabError(
                f"the lab's {part} cannot come back where it was: {error}; "
                "`stoplab down`, then `stoplab up`"
            ) from None
    return place


@contextmanager
def _locked(home: Home) -> Iterator[None]:
    """One `up` or `down` at a time in a home."""
    home.root.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(home.lab_lock, timeout=LOCK_S):
            yield
    except Timeout:
        raise LabError(f"another `stoplab up` or `down` is at work in {home.root}") from None


def _remember(lab: Lab) -> None:
    pids = {
        part: {"pid": process.pid, "create_time": process.create_time}
        for part, process in lab.pids.items()
    }
    write_json(lab.home.lab, {**lab.addresses(), "ports": dict(lab.place.ports), "pids": pids})


def _forget(place: Place) -> None:
    shutil.rmtree(place.ray_folder, ignore_errors=True)
    place.home.lab.unlink(missing_ok=True)


def _make_ray_folder(folder: Path) -> None:
    """For this user alone: sockets and logs lie in it."""
    folder.mkdir(mode=0o700, exist_ok=True)
    if folder.stat().st_uid != os.getuid():
        raise LabError(f"{folder} belongs to somebody else; Ray needs it for its sockets")


def _pause_jobs(lab: Lab, say: Say) -> None:
    """Ask active jobs to pause and wait until they have; what does not is told, and then ends."""
    try:
        with lab.client() as client:
            waits = [job for job in _moving(client) if _pause(client, job, say)]
            deadline = time.monotonic() + PAUSE_S
            while waits and time.monotonic() < deadline:
                time.sleep(0.5)
                moving = {job.id for job in _moving(client)}
                waits = [job for job in waits if job.id in moving]
    except (ApiError, Unreachable, httpx.HTTPError) as error:
        say(f"jobs were not paused: {error}")
        return
    for job in waits:
        say(f"{job.id} did not pause within {PAUSE_S:g} s; it ends with the lab")


def _moving(client: Client) -> list[JobBody]:
    return list(client.list(states=MOVING, limit=200).items)


def _pause(client: Client, job: JobBody, say: Say) -> bool:
    if "pause" not in job.status.allowed_actions:
        return True  # it stops already
    say(f"pausing {job.id}")
    try:
        client.pause(job.id)
    except ApiError as error:
        say(f"{job.id} cannot be paused: {error}")
        return False
    return True
