from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from stoplab_api.answers import TrialListBody
from stoplab_platform.ledger import Cell, CellState, Ledger
from stoplab_platform.paths import write_json
from support_api import COMPARE, Api, running_api


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    with running_api(tmp_path_factory.mktemp("home")) as running:
        yield running


@pytest.fixture(scope="module")
def job(api: Api) -> dict[str, Any]:
    """A comparison with three cells done and one still to do."""
    made = api.submitted(COMPARE)
    ledger = Ledger(api.folder(made["id"]))
    names = [(arm, seed) for seed in (0, 1) for arm in ("deterministic", "stochastic")]
    cells = [Cell(id=f"{a}-s{s}", index=i, arm=a, seed=s) for i, (a, s) in enumerate(names)]
    ledger.plan(cells)
    for cell, score in zip(cells, (0.8, 0.9, 0.7), strict=False):
        ledger.update(
            cell.id,
            state=CellState.SUCCEEDED,
            metrics={"test/linear_top1": score},
            mlflow_run_id=f"run-{cell.index}",
        )
    return made


class TestTrials:
    def ids(self, api: Api, job: dict[str, Any], **params: Any) -> list[str]:
        with api.http() as http:
            answer = http.get(f"/v1/jobs/{job['id']}/trials", params=params)
        assert answer.status_code == 200, answer.text
        return [item.id for item in TrialListBody.model_validate(answer.json()).items]

    def test_the_ledger_as_a_table(self, api: Api, job: dict[str, Any]) -> None:
        with api.http("vera") as http:
            told = http.get(f"/v1/jobs/{job['id']}/trials").json()
        first = told["items"][0]
        assert (first["id"], first["arm"], first["seed"]) == (
            "deterministic-s0",
            "deterministic",
            0,
        )
        assert (first["state"], first["run_id"]) == ("SUCCEEDED", "run-0")
        assert first["metrics"] == {"test/linear_top1": 0.8}
        assert first["finished_at"].endswith("Z")
        assert told["counts"] == {"SUCCEEDED": 3, "PENDING": 1}

    def test_by_state(self, api: Api, job: dict[str, Any]) -> None:
        assert self.ids(api, job, state="PENDING") == ["stochastic-s1"]
        assert len(self.ids(api, job, state=["PENDING", "SUCCEEDED"])) == 4

    def test_sorted_by_a_metric_with_the_unmeasured_last(
        self, api: Api, job: dict[str, Any]
    ) -> None:
        best = ["stochastic-s0", "deterministic-s0", "deterministic-s1", "stochastic-s1"]
        assert self.ids(api, job, sort="-test/linear_top1") == best
        worst = [*reversed(best[:3]), "stochastic-s1"]
        assert self.ids(api, job, sort="test/linear_top1") == worst

    def test_sorted_by_a_field(self, api: Api, job: dict[str, Any]) -> None:
        assert self.ids(api, job, sort="-index")[0] == "stochastic-s1"
        assert self.ids(api, job, sort="arm")[:2] == ["deterministic-s0", "deterministic-s1"]

    @pytest.mark.parametrize("query", ["state=DONE", "sort=a b", "order=seed"])
    def test_what_it_does_not_know(self, api: Api, job: dict[str, Any], query: str) -> None:
        with api.http() as http:
            assert http.get(f"/v1/jobs/{job['id']}/trials?{query}").status_code == 400

    def test_a_job_without_cells(self, api: Api) -> None:
        with api.http() as http:
            told = http.get(f"/v1/jobs/{api.submitted()['id']}/trials").json()
        assert told == {"items": [], "counts": {}}


class TestComparison:
    def test_its_result(self, api: Api) -> None:
        path = f"/v1/jobs/{(made := api.submitted(COMPARE))['id']}/comparison"
        with api.http("vera") as http:
            early = http.get(path)
            assert (early.status_code, early.json()["code"]) == (404, "not-found")
            assert "QUEUED" in early.json()["detail"]
            result = {"verdict": "better", "delta": 0.01, "ci95": [0.0, 0.02], "p_t": float("nan")}
            write_json(api.folder(made["id"]).comparison, result)
            assert http.get(path).json() == {**result, "p_t": None}

    def test_other_kinds_have_none(self, api: Api) -> None:
        with api.http() as http:
            answer = http.get(f"/v1/jobs/{api.submitted()['id']}/comparison")
        assert answer.status_code == 404
        assert "pretrain" in answer.json()["detail"]
