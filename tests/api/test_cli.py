"""The command line: documents, exit codes, and runs in the foreground."""

from __future__ import annotations

import json
import os
import shlex
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml
from typer.testing import CliRunner, Result

from stoplab_api.cli.main import app
from stoplab_api.cli.run import environment
from stoplab_platform.files import write_json
from stoplab_platform.jobs.states import State
from stoplab_platform.ledger import Cell, CellState, Ledger
from stoplab_platform.settings import Settings
from support_api import COMPARE, SPEC, Api, running_api, secret
from support_lab import Stoplab, living, until
from support_runs import TINY


def stoplab(*words: object) -> Result:
    return CliRunner().invoke(app, [str(word) for word in words])


def document(*words: object, code: int = 0) -> Any:
    """The one JSON document of a command."""
    result = stoplab(*words, "--json")
    assert result.exit_code == code, result.output
    return json.loads(result.stdout)


@pytest.fixture
def spec(tmp_path: Path) -> Path:
    return written(tmp_path / "spec.yaml", SPEC)


@pytest.fixture
def api(home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Api]:
    """A server that the environment names, for its administrator."""
    with running_api(home) as running:
        monkeypatch.setenv("STOPLAB_API_URL", running.url)
        monkeypatch.setenv("STOPLAB_TOKEN", secret("root"))
        yield running


def written(path: Path, spec: dict[str, Any]) -> Path:
    path.write_text(yaml.safe_dump(spec))
    return path


class TestSpec:
    def test_valid(self, spec: Path) -> None:
        assert "valid spec of kind pretrain" in stoplab("spec", "validate", spec).stdout
        told = document("spec", "validate", spec)
        assert told["valid"] is True
        assert told["kind"] == "pretrain"

    def test_every_mistake_at_once(self, spec: Path) -> None:
        changes = ("--set", "optim.lr=-1", "--set", "seeed=2", "--set", "data.image_size=17")
        told = document("spec", "validate", spec, *changes, code=2)
        assert {e["pointer"] for e in told["errors"]} == {
            "/optim/lr", "/seeed", "/data/image_size"
        }  # fmt: skip
        assert all(e["message"] and "/" not in e["path"] for e in told["errors"])
        people = stoplab("spec", "validate", spec, *changes)
        assert people.exit_code == 2
        assert people.stdout == ""
        assert "optim.lr" in people.stderr

    def test_show_fills_defaults_in(self, spec: Path) -> None:
        whole = document("spec", "show", spec, "--set", "positions.noise_std=0.5")
        assert whole["positions"]["noise_std"] == 0.5
        assert whole["masking"]["context_quantile"] == 0.1
        assert yaml.safe_load(stoplab("spec", "show", spec).stdout)["seed"] == 0

    def test_schema(self) -> None:
        schema = document("spec", "schema", "compare")
        assert {"arms", "seeds", "primary"} <= schema["properties"].keys()
        assert stoplab("spec", "schema", "nonsense").exit_code == 2

    @pytest.mark.parametrize("text", [None, "a: [", "- 1"])
    def test_no_spec_at_all(self, tmp_path: Path, text: str | None) -> None:
        path = tmp_path / "odd.yaml"
        if text is not None:
            path.write_text(text)
        assert len(document("spec", "show", path, code=2)["errors"]) == 1


class TestWithoutLab:
    @pytest.mark.parametrize(
        "words", [("env",), ("jobs", "list"), ("jobs", "show", "j_1"), ("tokens", "list")]
    )
    def test_says_so(self, home: Path, words: tuple[str, ...]) -> None:
        told = document(*words, code=1)
        assert str(home) in told["error"]
        assert "stoplab up" in told["error"]

    def test_status_and_down(self, home: Path) -> None:
        assert document("status", code=1) == {"home": str(home), "running": False, "parts": {}}
        assert document("down") == {"home": str(home), "stopped": False}
        assert not (home / "lab.json").exists()

    def test_a_server_that_is_away(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("stoplab_api.exchange.PAUSES_S", ())
        monkeypatch.setenv("STOPLAB_API_URL", "http://127.0.0.1:9")
        assert "does not answer" in document("jobs", "list", code=1)["error"]


def test_env_is_for_shells(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A home with a space in its name; all parts are this very process."""
    home = tmp_path / "my lab"
    home.mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("STOPLAB_HOME", "my lab")
    me = {"pid": os.getpid(), "create_time": psutil.Process().create_time()}
    ports = {"api": 3, "mlflow": 2, "ray": 1, "ray_client": 4}
    pids = {part: me for part in ("api", "mlflow", "ray")}
    write_json(home / "lab.json", {"ports": ports, "pids": pids})
    lines = stoplab("env").stdout.splitlines()
    values = dict(shlex.split(line)[1].split("=", 1) for line in lines)
    assert all(line.startswith("export ") for line in lines)
    assert values == {
        "STOPLAB_HOME": str(home),
        "STOPLAB_API_URL": "http://127.0.0.1:3",
        "MLFLOW_TRACKING_URI": "http://127.0.0.1:2",
        "RAY_ADDRESS": "http://127.0.0.1:1",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(home / "tokens" / "ray"),
    }
    assert document("env") == values
    write_json(home / "lab.json", {"ports": ports, "pids": {**pids, "ray": {**me, "pid": 2**22}}})
    assert stoplab("env").exit_code == 1


class TestJobs:
    def test_submit_show_list(self, api: Api, spec: Path) -> None:
        words = ("submit", spec, "--label", "team=a:b", "--priority", 3, "--set", "seed=7")
        job = document(*words, "--idempotency-key", "k1")
        assert job["spec"]["seed"] == 7
        assert job["labels"] == {"team": "a:b"}
        assert job["priority"] == 3
        assert document(*words, "--idempotency-key", "k1")["id"] == job["id"]
        assert stoplab(*words).stdout.strip().startswith("j_")
        page = document("jobs", "list", "--label", "team=a:b", "--state", "queued")
        assert [one["id"] for one in page["items"]][-1] == job["id"]
        assert len(page["items"]) == 2
        assert job["id"] in stoplab("jobs", "list").stdout
        assert document("jobs", "show", job["id"])["name"] == "tiny"
        assert "QUEUED" in stoplab("jobs", "show", job["id"]).stdout

    def test_relative_data_is_meant_from_here(
        self, api: Api, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spec: Path
    ) -> None:
        monkeypatch.chdir(tmp_path)
        words = ("--set", "data.train=shards/a-{0..3}.tar", "--set", "evals=[]")
        told = document("submit", spec, "--dry-run", *words)
        assert told["spec"]["data"]["train"] == str(tmp_path / "shards/a-{0..3}.tar")
        assert document("jobs", "list")["items"] == []
        people = stoplab("submit", spec, "--dry-run", *words)
        assert people.exit_code == 0, people.output
        assert "pretrain tiny: would be taken, and reserve 1 cpus" in people.stdout

    def test_bad_input(self, api: Api, spec: Path) -> None:
        assert document("submit", spec, "--set", "seed=-1", code=2)["errors"]
        assert stoplab("submit", spec, "--label", "nothing").exit_code == 2
        assert document("jobs", "list", "--state", "odd", code=2)["status"] == 400
        assert document("jobs", "show", "j_none", code=1)["code"] == "not-found"
        assert stoplab("jobs", "logs", "j_1", "-f", "--json").exit_code == 2

    def test_moves_and_history(self, api: Api, spec: Path) -> None:
        job = document("submit", spec)["id"]
        assert document("jobs", "pause", job)["status"]["state"] == "PAUSED"
        assert document("jobs", "resume", job)["status"]["state"] == "QUEUED"
        assert stoplab("jobs", "cancel", job).stdout.strip() == f"{job} CANCELLED"
        verbs = [event["verb"] for event in document("jobs", "events", job)["items"]]
        assert verbs == ["submit", "pause", "resume", "cancel"]
        again = document("jobs", "retry", job)
        assert again["retry_of"] == job
        assert document("jobs", "pause", job, code=1)["code"] == "illegal-move"
        assert document("jobs", "delete", job)["deleted"] is True
        assert document("jobs", "show", job, code=1)["status"] == 404

    def test_logs(self, api: Api) -> None:
        job = api.submitted()["id"]
        api.write_log(job, b"one\ntwo\n")
        assert stoplab("jobs", "logs", job).stdout == "one\ntwo\n"
        assert document("jobs", "logs", job, "--tail", 1)["log"] == "two\n"
        api.moved(job, State.SUCCEEDED)
        assert stoplab("jobs", "logs", job, "-f").stdout == "one\ntwo\n"

    def test_more_of_a_study_and_its_limits(self, api: Api) -> None:
        job = api.submitted(COMPARE)["id"]
        assert document("jobs", "limits", job, "--max-concurrent", 1)["limits"] == {
            "max_concurrent": 1
        }
        lifted = document("jobs", "limits", job, "--max-concurrent", "none")
        assert lifted["limits"] == {"max_concurrent": None}
        assert stoplab("jobs", "limits", job).exit_code == 2
        api.moved(job, State.FAILED)
        more = document("jobs", "extend", job, "--seeds", "71,72", "--trials", 50)
        assert (more["extends"], more["spec"]["seeds"][-2:]) == (job, [71, 72])
        assert more["spec"]["limits"]["trials"] == 50
        assert stoplab("jobs", "extend", job, "--seeds", "some").exit_code == 2

    def test_a_retry_under_other_limits(self, api: Api) -> None:
        job = api.submitted()["id"]
        assert document("jobs", "limits", job, "--gpu-hours", 3)["limits"] == {"gpu_hours": 3}
        api.moved(job, State.FAILED)
        again = document("jobs", "retry", job, "--wall-hours", 12, "--gpu-hours", "none")
        assert again["retry_of"] == job
        assert again["spec"]["limits"] == {"wall_hours": 12, "gpu_hours": None}

    def test_study(self, api: Api) -> None:
        job = api.submitted(COMPARE)["id"]
        cell = Cell(
            id="stochastic-s0", index=0, arm="stochastic", seed=0, state=CellState.SUCCEEDED,
            metrics={"test/knn_top1": 0.5},
        )  # fmt: skip
        Ledger(api.folder(job)).plan([cell])
        assert document("jobs", "trials", job)["items"][0]["metrics"] == {"test/knn_top1": 0.5}
        assert "0.5000" in stoplab("jobs", "trials", job).stdout
        assert document("jobs", "metrics", job)["metrics"] == {
            "stochastic-s0": {"test/knn_top1": 0.5}
        }
        assert document("jobs", "comparison", job, code=1)["status"] == 404
        write_json(api.folder(job).comparison, comparison())
        assert document("jobs", "comparison", job)["delta"] == -0.012
        text = stoplab("jobs", "comparison", job).stdout
        assert "-1.2 points of test/knn_top1, 95 % interval -3.0 to +0.6" in text
        assert "Verdict: inconclusive, these runs do not tell stochastic from deterministic" in text

    def test_watching_ends_as_the_job_does(
        self, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A real job under a reconciler; its data is not there."""
        bad = {**SPEC, "data": {"train": "none-{0..1}.tar", "image_size": 16}, "evals": []}
        with running_api(home, reconcile=True, reconcile_period_s=0.2) as api:
            monkeypatch.setenv("STOPLAB_API_URL", api.url)
            monkeypatch.setenv("STOPLAB_TOKEN", secret("ana"))
            result = stoplab("submit", written(tmp_path / "bad.yaml", bad), "--watch", "--json")
        assert result.exit_code == 1, result.output
        job = json.loads(result.stdout)
        assert job["status"]["state"] == "FAILED"
        assert job["status"]["reason_code"] == "DATA_MISSING"
        assert "2 of 2 shards do not exist" in job["status"]["message"]
        assert "RUNNING" in result.stderr


def test_tokens(api: Api) -> None:
    made = document("tokens", "create", "ci", "--owner", "carl", "--role", "viewer")
    assert len(made["secret"]) > 30
    listed = document("tokens", "list")["items"]
    assert made["id"] in [token["id"] for token in listed]
    assert "secret" not in listed[0]
    assert document("tokens", "revoke", made["id"])["revoked"] is True
    plain = stoplab("tokens", "create", "cd", "--owner", "carl")
    assert plain.stdout.startswith("stl_")


class TestForeground:
    @pytest.mark.parametrize("command", ["sweep", "compare", "evaluate"])
    def test_the_other_kinds_command(self, spec: Path, command: str) -> None:
        (error,) = document(command, spec, code=2)["errors"]
        assert error["path"] == "kind"
        assert "stoplab train" in error["message"]

    def test_resume_needs_the_same_spec(self, spec: Path, home: Path) -> None:
        assert "no job j_x" in stoplab("train", spec, "--resume", "j_x").stderr
        folder = home / "jobs" / "j_x"
        folder.mkdir(parents=True)
        written(folder / "spec.yaml", {**SPEC, "seed": 5})
        result = stoplab("train", spec, "--resume", "j_x")
        assert result.exit_code == 2
        assert "another spec" in result.stderr

    def test_a_run_that_fails_says_why(self, home: Path, tmp_path: Path) -> None:
        """A whole run, refused by itself: its code is ours, its output goes to stderr."""
        bad = {**SPEC, "data": {"train": "none-{0..1}.tar", "image_size": 16}, "evals": []}
        command = Stoplab(home, tmp_path)
        told = command.json("train", written(tmp_path / "bad.yaml", bad), code=2)
        assert told["outcome"] == "FAILED"
        assert "none-0.tar" in told["error"]
        folder = Path(told["folder"])
        assert folder == home / "jobs" / told["job_id"]
        assert yaml.safe_load((folder / "spec.yaml").read_text())["data"]["train"] == str(
            tmp_path / "none-{0..1}.tar"
        )

    @pytest.mark.slow
    def test_interrupt_then_resume(self, home: Path, tmp_path: Path, mlflow_uri: str) -> None:
        """Ctrl-C saves; the same command with --resume goes on and prints one document."""
        run = {**TINY, "evals": [], "optim": {**TINY["optim"], "epochs": 20}}
        spec = written(tmp_path / "run.yaml", run)
        command = Stoplab(home, tmp_path, {"MLFLOW_TRACKING_URI": mlflow_uri})
        process = command.start("train", spec)
        with process:
            progress = until(lambda: next(home.glob("jobs/*/runs/run/progress.json"), None))
            until(lambda: json.loads(progress.read_text())["step"] > 0)
            process.send_signal(signal.SIGINT)
            out, err = process.communicate(timeout=60)
        assert process.returncode == 75, err
        job = progress.parents[2].name
        assert f"--resume {job}" in err
        assert job in out
        steps = 20 * 19
        assert json.loads(progress.read_text())["step"] < steps
        done = command.json("train", spec, "--resume", job)
        assert done["job_id"] == job
        assert done["steps"] == steps

    @pytest.mark.slow
    def test_nothing_outlives_a_killed_command(self, home: Path, tmp_path: Path) -> None:
        run = {**TINY, "evals": [], "optim": {**TINY["optim"], "epochs": 1000}}
        spec, command = written(tmp_path / "run.yaml", run), Stoplab(home, tmp_path)
        with command.start("train", spec) as process:
            progress = until(lambda: next(home.glob("jobs/*/runs/run/progress.json"), None))
            job = progress.parents[2].name
            assert living("STOPLAB_JOB_ID", job.__eq__)
            process.kill()
            process.communicate()
        until(lambda: not living("STOPLAB_JOB_ID", job.__eq__), 15)


def comparison() -> dict[str, Any]:
    one = {"delta": -0.012, "ci95": [-0.03, 0.006], "verdict": "inconclusive", "n_blocks": 3}
    arms = {
        "deterministic": {"mean": 0.71, "std": 0.01, "n": 3},
        "stochastic": {"mean": 0.698, "std": None, "n": 3},
    }
    return {
        "metric": "test/knn_top1", "min_effect": 0.005, "reference": "deterministic",
        "arms": arms, **one,
        "comparisons": {"stochastic": one}, "sentence": "inconclusive",
    }  # fmt: skip


def test_a_ray_of_a_foreground_command_is_guarded(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = environment(Settings())
    token = Path(given["RAY_AUTH_TOKEN_PATH"])
    assert given["RAY_AUTH_MODE"] == "token"
    assert token.stat().st_mode & 0o777 == 0o600
    assert len(token.read_text()) >= 32
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    assert "RAY_AUTH_MODE" not in environment(Settings())
