from __future__ import annotations

import io
from collections.abc import Iterator
from typing import Any

import pytest
from pyarrow import parquet

from stoplab_api.answers import TrialListBody
from stoplab_platform.files import write_json
from stoplab_platform.ledger import Cell, CellState, Ledger
from support_api import COMPARE, SPEC, Api, running_api


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


@pytest.fixture(scope="module")
def sweep(api: Api) -> dict[str, Any]:
    """A sweep with a run that ended, a pruned one, and a point that cannot run."""
    space = {"positions.noise_std": {"grid": [0.1, 0.25]}, "masking_ratio": {"grid": [0.6]}}
    spec = {"kind": "sweep", "name": "grid", "base": SPEC, "space": space}
    spec["base"] = {**SPEC, "evals": [{"kind": "knn"}]}
    made = api.submitted(spec)
    states = (CellState.SUCCEEDED, CellState.PRUNED, CellState.INFEASIBLE)
    cells = [
        Cell(id=f"p{i}-s0", index=i, seed=0, state=state, error="no masks" if i == 2 else None,
             point={"positions.noise_std": noise, "masking_ratio": 0.6},
             metrics={} if i == 2 else {"val/knn_top1": 0.5 + i / 10})
        for i, (state, noise) in enumerate(zip(states, (0.1, 0.25, 0.25), strict=True))
    ]  # fmt: skip
    Ledger(api.folder(made["id"])).plan(cells)
    best = {"point": cells[0].point, "mean": 0.5, "ci95": None, "n": 1}
    write_json(api.folder(made["id"]).progress, {"step": 2, "steps": 3, "best": best})
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

    def test_by_arm_seed_and_value(self, api: Api, job: dict[str, Any]) -> None:
        assert self.ids(api, job, arm="stochastic", seed=0) == ["stochastic-s0"]
        assert self.ids(api, job, seed=[0, 1]) == self.ids(api, job)
        bounds = {"min": "test/linear_top1:0.75", "max": "test/linear_top1:0.85"}
        assert self.ids(api, job, **bounds) == ["deterministic-s0"]

    @pytest.mark.parametrize(
        "query",
        [
            "state=DONE",
            "sort=a b",
            "sort=nois",
            "order=seed",
            "point=noise",
            "min=val/loss:much",
            "format=xls",
            "max=a:nan",
            "seed=one",
        ],
    )
    def test_what_it_does_not_know(self, api: Api, job: dict[str, Any], query: str) -> None:
        with api.http() as http:
            assert http.get(f"/v1/jobs/{job['id']}/trials?{query}").status_code == 400

    def test_a_job_without_cells(self, api: Api) -> None:
        with api.http() as http:
            told = http.get(f"/v1/jobs/{api.submitted()['id']}/trials").json()
        assert told == {"items": [], "counts": {}, "best": None}

    def test_a_table_for_other_programs(self, api: Api, job: dict[str, Any]) -> None:
        path = f"/v1/jobs/{job['id']}/trials"
        with api.http() as http:
            csv = http.get(path, params={"format": "csv", "state": "SUCCEEDED", "sort": "-index"})
            same = http.get(path, headers={"Accept": "text/csv;q=0.9, application/json;q=0.5"})
            binary = http.get(path, params={"format": "parquet"})
        assert csv.headers["content-type"] == "text/csv; charset=utf-8"
        head, *rows = csv.text.splitlines()
        assert head.startswith("cell,arm,seed,state,test/linear_top1")
        assert rows[0].startswith("deterministic-s1,")
        assert len(rows) == 3
        assert len(same.text.splitlines()) == 5
        table = parquet.read_table(io.BytesIO(binary.content))
        assert table["test/linear_top1"].to_pylist() == [0.8, 0.9, 0.7, None]


class TestSweep:
    """Cells of a sweep: swept fields, honest states, the best so far, the surface."""

    def trials(self, api: Api, sweep: dict[str, Any], **params: Any) -> TrialListBody:
        with api.http("vera") as http:
            answer = http.get(f"/v1/jobs/{sweep['id']}/trials", params=params)
        return TrialListBody.model_validate(answer.json())

    def test_states_are_told_as_they_are(self, api: Api, sweep: dict[str, Any]) -> None:
        told = self.trials(api, sweep)
        assert [item.state for item in told.items] == ["SUCCEEDED", "PRUNED", "INFEASIBLE"]
        assert told.items[2].error == "no masks"
        assert told.counts == {"SUCCEEDED": 1, "PRUNED": 1, "INFEASIBLE": 1}

    def test_the_best_so_far(self, api: Api, sweep: dict[str, Any]) -> None:
        best = self.trials(api, sweep).best
        assert best is not None
        assert (best.mean, best.n) == (0.5, 1)
        assert best.point["positions.noise_std"] == 0.1

    def test_by_a_swept_field(self, api: Api, sweep: dict[str, Any]) -> None:
        some = self.trials(api, sweep, point="positions.noise_std:0.25", state="PRUNED")
        assert [item.id for item in some.items] == ["p1-s0"]
        both = ["positions.noise_std:0.25", "masking_ratio:0.7"]
        assert self.trials(api, sweep, point=both).items == []
        order = self.trials(api, sweep, sort="-positions.noise_std").items
        assert [item.id for item in order][-1] == "p0-s0"

    def test_the_surface_in_its_formats(self, api: Api, sweep: dict[str, Any]) -> None:
        path, folder = f"/v1/jobs/{sweep['id']}/surface", api.folder(sweep["id"])
        with api.http("vera") as http:
            assert http.get(path).status_code == 404
            write_json(folder.surface, {"mean": None, "reason": "1 measured point(s)"})
            assert http.get(path).json()["mean"] is None
            none = http.get(path, params={"format": "png"})
            assert (none.status_code, none.json()["code"]) == (404, "not-found")
            assert "1 measured point(s)" in none.json()["detail"]
            write_json(folder.surface, {"mean": [[1.0]], "reason": None})
            folder.surface_html.write_text("<p>page</p>")
            page = http.get(path, headers={"Accept": "text/html,*/*;q=0.8"})
        assert page.text == "<p>page</p>"
        assert "sandbox" in page.headers["content-security-policy"]

    def test_other_kinds_have_none(self, api: Api, job: dict[str, Any]) -> None:
        with api.http() as http:
            answer = http.get(f"/v1/jobs/{job['id']}/surface")
        assert answer.status_code == 404
        assert "compare" in answer.json()["detail"]


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

    def test_its_report_in_every_format(self, api: Api) -> None:
        path = f"/v1/jobs/{(made := api.submitted(COMPARE))['id']}/comparison"
        folder = api.folder(made["id"])
        write_json(folder.comparison, {"verdict": "better"})
        files = {
            "html": (folder.comparison_html, "text/html"),
            "md": (folder.comparison_page, "text/markdown"),
            "tex": (folder.comparison_tex, "application/x-tex"),
            "png": (folder.comparison_png, "image/png"),
        }
        with api.http("vera") as http:
            for name, (file, media) in files.items():
                missing = http.get(path, params={"format": name})
                assert (missing.status_code, missing.json()["code"]) == (404, "not-found")
                assert file.name in missing.json()["detail"]
                file.write_bytes(name.encode())
                for answer in (
                    http.get(path, params={"format": name}),
                    http.get(path, headers={"Accept": media}),
                ):
                    assert answer.content == name.encode()
                    assert answer.headers["content-type"].partition(";")[0] == media
                    assert answer.headers["x-content-type-options"] == "nosniff"
            assert http.get(path, params={"format": "pdf"}).status_code == 400
            assert http.get(path, headers={"Accept": "*/*"}).json() == {"verdict": "better"}
            assert http.get(path, headers={"Accept": "image/avif"}).json()["verdict"] == "better"

    def test_its_page_reaches_nobody(self, api: Api) -> None:
        made = api.submitted(COMPARE)
        folder = api.folder(made["id"])
        write_json(folder.comparison, {})
        folder.comparison_html.write_text("<script>1</script>")
        with api.http() as http:
            page = http.get(f"/v1/jobs/{made['id']}/comparison?format=html")
        policy = page.headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "sandbox allow-scripts" in policy
        assert "http" not in policy
        assert "allow-same-origin" not in policy

    def test_other_kinds_have_none(self, api: Api) -> None:
        with api.http() as http:
            answer = http.get(f"/v1/jobs/{api.submitted()['id']}/comparison")
        assert answer.status_code == 404
        assert "pretrain" in answer.json()["detail"]
