"""docs/observing.md and docs/clients.md say what is so: names, rules, and programs that run."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from stoplab_api.probes import PARTS
from stoplab_platform.jobs.states import State
from support_api import SPEC, Api, running_api, secret

DOCS = Path(__file__).parents[2] / "docs"
OBSERVING = (DOCS / "observing.md").read_text()


@pytest.fixture
def api(tmp_path: Path) -> Iterator[Api]:
    with running_api(tmp_path / "lab") as running:
        yield running


def blocks(page: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page, flags=re.DOTALL | re.MULTILINE)


def documented() -> set[str]:
    """Names of our metrics in the table's first column."""
    rows = re.findall(r"^\| (`stoplab_.*?) \|", OBSERVING, flags=re.MULTILINE)
    return {name for row in rows for name in re.findall(r"stoplab_\w+", row)}


class TestObserving:
    def test_every_metric_is_in_the_table(self, tmp_path: Path) -> None:
        with running_api(tmp_path, reconcile=True) as api, api.http(None) as http:
            text = http.get("/metrics").text
        told = set(re.findall(r"^# TYPE (stoplab_\w+)", text, flags=re.MULTILINE))
        assert told == documented()

    def test_alerts_are_about_metrics_that_there_are(self) -> None:
        (scrape, rules) = map(yaml.safe_load, blocks(OBSERVING, "yaml"))
        assert scrape["scrape_configs"][0]["static_configs"]
        (group,) = rules["groups"]
        assert len(group["rules"]) == 5
        for rule in group["rules"]:
            assert set(re.findall(r"stoplab_\w+", rule["expr"])) <= documented(), rule
            assert rule["annotations"]["summary"]

    def test_every_part_of_readiness_is_told(self) -> None:
        rows = re.findall(r"^\| `(\w+)` \| ", OBSERVING, flags=re.MULTILINE)
        assert set(PARTS) <= set(rows)


class TestClients:
    @pytest.mark.parametrize(
        "program", blocks((DOCS / "clients.md").read_text(), "python"), ids=["sync", "async"]
    )
    def test_programs_run(
        self, api: Api, program: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
    ) -> None:  # fmt: skip
        """Against a server whose jobs end by another's hand."""
        (tmp_path / "run.yaml").write_text(yaml.safe_dump(SPEC))
        monkeypatch.chdir(tmp_path)
        over = threading.Event()
        helper = threading.Thread(target=end_jobs, args=(api, over))
        helper.start()
        names: dict[str, Any] = {"token": secret("ana"), "__name__": "page"}
        try:
            exec(program.replace("http://127.0.0.1:8800", api.url), names)
        finally:
            over.set()
            helper.join()
        assert "CANCELLED" in capsys.readouterr().out


def end_jobs(api: Api, over: threading.Event) -> None:
    """Cancels every job that is there."""
    with api.http("root") as http:
        while not over.wait(0.2):
            for job in http.get("/v1/jobs").json()["items"]:
                if job["status"]["state"] not in (State.CANCELLED, State.STOPPING):
                    http.post(f"/v1/jobs/{job['id']}/cancel")
