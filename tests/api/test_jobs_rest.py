from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from stoplab_api.bodies import DryRunBody, JobBody
from stoplab_api.places import absolute_paths
from stoplab_platform.files import read_json, write_json
from stoplab_platform.jobs.states import State
from support_api import COMPARE, SPEC, Api, running_api, with_


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    with running_api(tmp_path_factory.mktemp("home")) as running:
        yield running


class TestSubmit:
    def test_it_is_accepted(self, api: Api) -> None:
        body = {"spec": SPEC, "labels": {"bar": "1"}, "priority": 3}
        with api.http() as http:
            answer = http.post("/v1/jobs", json=body)
            job = answer.json()
            assert answer.status_code == 202
            assert answer.headers["Location"] == f"/v1/jobs/{job['id']}" == job["links"]["self"]
            assert http.get(answer.headers["Location"]).json() == job
        JobBody.model_validate(job)
        assert job["status"]["state"] == "QUEUED"
        assert (job["owner"], job["project"]) == ("ana", "default")
        assert (job["labels"], job["priority"]) == ({"bar": "1"}, 3)
        assert job["spec"]["optim"]["weight_decay"] == [0.04, 0.4], "defaults are filled in"
        assert job["status"]["history"][0]["state"] == "QUEUED"

    def test_as_curl_sends_it(self, api: Api) -> None:
        content = b'{"spec": {"kind": "pretrain", "name": "x", "data": {"train": "digits"}}}'
        with api.http() as http:
            urlencoded = {"Content-Type": "application/x-www-form-urlencoded"}
            for headers in ({}, urlencoded, {"Content-Type": "application/json; charset=utf-8"}):
                answer = http.post("/v1/jobs?dry_run=true", content=content, headers=headers)
                assert answer.status_code in (200, 422), answer.text
                assert answer.json().get("code", "invalid-spec") == "invalid-spec"

    def test_the_same_key_is_the_same_job(self, api: Api) -> None:
        headers = {"Idempotency-Key": "monday-1"}
        with api.http() as http:
            first = http.post("/v1/jobs", json={"spec": SPEC}, headers=headers)
            again = http.post("/v1/jobs", json={"spec": SPEC}, headers=headers)
            other = http.post("/v1/jobs", json={"spec": with_(seed=1)}, headers=headers)
        assert "Idempotency-Replayed" not in first.headers
        assert again.status_code == 202
        assert again.headers["Idempotency-Replayed"] == "true"
        assert again.headers["Location"] == first.headers["Location"]
        assert again.json()["id"] == first.json()["id"]
        assert other.status_code == 422
        assert other.json()["code"] == "idempotency-key-reused"

    def test_what_has_changed_since_changes_no_answer(self, api: Api) -> None:
        """A key stands for what the client sent, not for what that comes to today."""
        first = api.submitted(labels={"a": "1"})
        api.moved(first["id"], State.FAILED)
        retry, headers = f"/v1/jobs/{first['id']}/retry", {"Idempotency-Key": "changed-since"}
        with api.http() as http:
            again = http.post(retry, headers=headers)
            assert again.status_code == 202
            label = {"labels": {"a": "2"}}
            http.patch(f"/v1/jobs/{first['id']}", json=label, headers={"If-Match": "*"})
            assert http.post(retry, headers=headers).json()["id"] == again.json()["id"]
            http.post(f"/v1/jobs/{again.json()['id']}/cancel")
            assert http.delete(f"/v1/jobs/{first['id']}").status_code == 204
            answer = http.post(retry, headers=headers)
        assert (answer.status_code, answer.json()["id"]) == (202, again.json()["id"])
        assert answer.headers["Idempotency-Replayed"] == "true"

    def test_a_key_is_of_one_call(self, api: Api) -> None:
        headers = {"Idempotency-Key": "two-calls"}
        first, second = (api.moved(api.submitted()["id"], State.FAILED) for _ in range(2))
        with api.http() as http:
            http.post(f"/v1/jobs/{first.id}/retry", headers=headers)
            answer = http.post(f"/v1/jobs/{second.id}/retry", headers=headers)
        assert answer.json()["code"] == "idempotency-key-reused"

    def test_at_the_same_moment_too(self, api: Api) -> None:
        def submit(_: int) -> str:
            with api.http() as http:
                answer = http.post(
                    "/v1/jobs", json={"spec": SPEC}, headers={"Idempotency-Key": "at-once"}
                )
            assert answer.status_code == 202, answer.text
            return str(answer.json()["id"])

        with ThreadPoolExecutor(8) as pool:
            assert len(set(pool.map(submit, range(16)))) == 1

    def test_a_key_is_its_owners(self, api: Api) -> None:
        headers = {"Idempotency-Key": "shared"}
        with api.http("ana") as ana, api.http("bob") as bob:
            first = ana.post("/v1/jobs", json={"spec": SPEC}, headers=headers).json()
            second = bob.post("/v1/jobs", json={"spec": with_(seed=4)}, headers=headers)
        assert second.status_code == 202
        assert second.json()["id"] != first["id"]

    def test_dry_run_stores_nothing(self, api: Api) -> None:
        with api.http() as http:
            before = http.get("/v1/jobs", params={"q": "dry"}).json()
            answer = http.post("/v1/jobs?dry_run=true", json={"spec": with_(name="dry")})
            after = http.get("/v1/jobs", params={"q": "dry"}).json()
        assert answer.status_code == 200
        told = DryRunBody.model_validate(answer.json())
        assert told.spec["optim"]["ema"] == [0.996, 1.0]
        assert told.demand == {"cpus": 1.0, "gpus": 0.0}
        assert before["items"] == after["items"] == []

    def test_relative_paths_become_absolute(self, api: Api) -> None:
        spec = with_(data={"train": "shards/a-{000..003}.tar", "image_size": 16}, evals=[])
        stored = api.submitted(spec)["spec"]["data"]["train"]
        assert stored == str(Path.cwd() / "shards/a-{000..003}.tar")


class TestPaths:
    def test_all_places(self) -> None:
        root = Path("/root/lab")
        base = {
            "kind": "pretrain",
            "model": {"init_from": "ckpt"},
            "data": {
                "train": ["a.tar", "/abs/b.tar", "s3://bucket/c.tar"],
                "eval": {"train": "e", "val": None, "test": "digits/test"},
            },
        }
        moved = absolute_paths(
            {
                "kind": "compare",
                "base": base,
                "arms": {
                    "x": {"data.train": "arm.tar", "data": {"eval": {"test": "t"}}},
                    "y": {"model.init_from": {"path": "w.pth"}},
                },
                "space": {"data.train": {"grid": ["one.tar", "digits"]}, "seed": {"grid": [1]}},
            },
            root,
        )
        data = moved["base"]["data"]
        assert data["train"] == ["/root/lab/a.tar", "/abs/b.tar", "s3://bucket/c.tar"]
        assert data["eval"] == {"train": "/root/lab/e", "val": None, "test": "digits/test"}
        assert moved["base"]["model"]["init_from"] == "/root/lab/ckpt"
        assert moved["arms"]["x"]["data.train"] == "/root/lab/arm.tar"
        assert moved["arms"]["y"]["model.init_from"] == {"path": "/root/lab/w.pth"}
        assert moved["arms"]["x"]["data"]["eval"]["test"] == "/root/lab/t"
        assert moved["space"]["data.train"]["grid"] == ["/root/lab/one.tar", "digits"]
        assert moved["space"]["seed"] == {"grid": [1]}
        assert base["data"]["train"][0] == "a.tar", "the original stays"

    def test_an_evaluations_own(self) -> None:
        spec = {
            "checkpoint": {"path": "runs/1"},
            "data": {"train": "digits/train", "test": "t"},
            "protocols": [{"kind": "knn", "k": [1, 2]}, {"kind": "low_shot", "list": "few.txt"}],
        }
        assert absolute_paths(spec, Path("/r")) == {
            "protocols": [{"kind": "knn", "k": [1, 2]}, {"kind": "low_shot", "list": "/r/few.txt"}],
            "checkpoint": {"path": "/r/runs/1"},
            "data": {"train": "digits/train", "test": "/r/t"},
        }

    @pytest.mark.parametrize("nonsense", [{"data": 3}, {"base": "x"}, {"arms": [1]}, {"space": 1}])
    def test_nonsense_is_left_to_validation(self, nonsense: dict[str, Any]) -> None:
        assert absolute_paths(nonsense, Path("/r")) == nonsense


class TestShow:
    def test_a_job_that_runs(self, api: Api) -> None:
        job = api.submitted()
        api.moved(job["id"], State.RUNNING)
        progress = {"step": 3, "steps": 9, "epoch": 0, "eta_s": float("nan"), "samples_per_s": 1.5}
        write_json(api.folder(job["id"]).run("run").progress, progress)
        with api.http("bob") as http:
            told = http.get(f"/v1/jobs/{job['id']}").json()
        JobBody.model_validate(told)
        assert told["status"]["state"] == "RUNNING"
        assert told["status"]["allowed_actions"] == ["cancel", "pause"]
        assert told["status"]["progress"] == {**progress, "eta_s": None}
        states = [move["state"] for move in told["status"]["history"]]
        assert states == ["QUEUED", "STARTING", "RUNNING"]

    def test_unknown(self, api: Api) -> None:
        with api.http() as http:
            answer = http.get("/v1/jobs/j_none")
        assert answer.status_code == 404
        assert answer.json()["code"] == "not-found"

    def test_etag(self, api: Api) -> None:
        job = api.submitted()
        with api.http() as http:
            path = f"/v1/jobs/{job['id']}"
            tag = http.get(path).headers["ETag"]
            same = http.get(path, headers={"If-None-Match": f'"x", W/{tag}'})
            assert (same.status_code, same.content) == (304, b"")
            assert same.headers["ETag"] == tag
            progress = {"step": 1, "steps": 9, "epoch": 0, "eta_s": 1.0, "samples_per_s": 1.0}
            write_json(api.folder(job["id"]).run("run").progress, progress)
            moved_on = http.get(path, headers={"If-None-Match": tag})
            assert moved_on.status_code == 200, "progress is part of what was read"


class TestChange:
    def test_labels_have_an_end(self, api: Api) -> None:
        job = api.submitted(labels={f"a{n}": "" for n in range(64)})
        with api.http() as http:
            body = {"labels": {"one-more": ""}}
            path, headers = f"/v1/jobs/{job['id']}", {"If-Match": "*"}
            answer = http.patch(path, json=body, headers=headers)
            assert (answer.status_code, answer.json()["code"]) == (422, "invalid-body")
            assert answer.json()["errors"][0]["pointer"] == "/labels"
            body["labels"]["a0"] = None
            assert http.patch(path, json=body, headers=headers).status_code == 200

    def test_labels_and_priority(self, api: Api) -> None:
        job = api.submitted(labels={"a": "1", "b": "2"})
        path = f"/v1/jobs/{job['id']}"
        with api.http() as http:
            tag = http.get(path).headers["ETag"]
            body = {"labels": {"a": "9", "b": None, "c": "3"}, "priority": 7}
            answer = http.patch(path, json=body, headers={"If-Match": tag})
            assert answer.status_code == 200
            assert answer.json()["labels"] == {"a": "9", "c": "3"}
            assert answer.json()["priority"] == 7
            assert answer.headers["ETag"] == http.get(path).headers["ETag"] != tag

            stale = http.patch(path, json={"priority": 1}, headers={"If-Match": tag})
            assert (stale.status_code, stale.json()["code"]) == (412, "version-mismatch")
            without = http.patch(path, json={"priority": 1})
            assert (without.status_code, without.json()["code"]) == (428, "precondition-required")
            fresh = {"If-Match": answer.headers["ETag"]}
            assert http.patch(path, json={"priority": 1}, headers=fresh).status_code == 200
            assert http.get(path).json()["labels"] == {"a": "9", "c": "3"}

    def test_limits_of_a_study_that_runs(self, api: Api) -> None:
        job = api.submitted(COMPARE)
        api.moved(job["id"], State.RUNNING)
        path, any_version = f"/v1/jobs/{job['id']}", {"If-Match": "*"}
        with api.http() as http:
            body = {"limits": {"max_concurrent": 1}}
            answer = http.patch(path, json=body, headers=any_version)
            assert (answer.status_code, answer.json()["limits"]) == (200, {"max_concurrent": 1})
            assert read_json(api.folder(job["id"]).limits) == {"max_concurrent": 1}
            lifted = {"limits": {"max_concurrent": None, "trials": 0}}
            wrong = http.patch(path, json=lifted, headers=any_version)
            assert wrong.json()["errors"][0]["pointer"] == "/limits/trials"
            single = api.submitted()
            none = http.patch(f"/v1/jobs/{single['id']}", json=body, headers=any_version)
            assert (none.status_code, none.json()["code"]) == (422, "invalid-spec")

    def test_hours_of_a_run(self, api: Api) -> None:
        job = api.submitted({**SPEC, "limits": {"wall_hours": 1}})
        assert job["spec"]["limits"] == {"wall_hours": 1, "gpu_hours": None}
        path, any_version = f"/v1/jobs/{job['id']}", {"If-Match": "*"}
        with api.http() as http:
            answer = http.patch(path, json={"limits": {"wall_hours": 2.5}}, headers=any_version)
            assert (answer.status_code, answer.json()["limits"]) == (200, {"wall_hours": 2.5})
            api.moved(job["id"], State.FAILED)
            plain = http.post(f"{path}/retry").json()
            assert plain["spec"]["limits"]["wall_hours"] == 2.5
            more = http.post(f"{path}/retry", json={"limits": {"wall_hours": 12}}).json()
            assert more["spec"]["limits"] == {"wall_hours": 12, "gpu_hours": None}
            wrong = http.post(f"{path}/retry", json={"limits": {"wall_hours": 0}})
            assert wrong.json()["errors"][0]["pointer"] == "/limits/wall_hours"
            unknown = http.post(f"{path}/retry", json={"seed": 3})
            assert unknown.json()["errors"][0] == {"pointer": "/seed", "message": "unknown field"}

    def test_a_spec_never_changes(self, api: Api) -> None:
        job = api.submitted()
        with api.http() as http:
            answer = http.patch(
                f"/v1/jobs/{job['id']}", json={"spec": {}}, headers={"If-Match": "*"}
            )
        assert answer.status_code == 422
        assert answer.json()["errors"] == [{"pointer": "/spec", "message": "unknown field"}]


class TestActions:
    def test_cancel_while_queued(self, api: Api) -> None:
        job = api.submitted()
        with api.http() as http:
            answer = http.post(f"/v1/jobs/{job['id']}/cancel")
            assert (answer.status_code, answer.json()["status"]["state"]) == (202, "CANCELLED")
            again = http.post(f"/v1/jobs/{job['id']}/cancel")
        assert again.status_code == 200
        assert again.json() == answer.json()

    def test_cancel_while_running(self, api: Api) -> None:
        job = api.submitted()
        api.moved(job["id"], State.RUNNING)
        with api.http() as http:
            answer = http.post(f"/v1/jobs/{job['id']}/cancel")
        assert (answer.status_code, answer.json()["status"]["state"]) == (202, "STOPPING")
        assert api.folder(job["id"]).stop.exists()

    def test_pause_and_resume(self, api: Api) -> None:
        job = api.submitted()
        with api.http() as http:
            paused = http.post(f"/v1/jobs/{job['id']}/pause")
            assert (paused.status_code, paused.json()["status"]["state"]) == (202, "PAUSED")
            resumed = http.post(f"/v1/jobs/{job['id']}/resume")
            assert (resumed.status_code, resumed.json()["status"]["state"]) == (202, "QUEUED")

    def test_an_illegal_move_names_the_legal_ones(self, api: Api) -> None:
        job = api.submitted()
        api.moved(job["id"], State.RUNNING)
        with api.http() as http:
            answer = http.post(f"/v1/jobs/{job['id']}/resume")
        problem = answer.json()
        assert (answer.status_code, problem["code"]) == (409, "illegal-move")
        assert problem["state"] == "RUNNING"
        assert problem["allowed_actions"] == ["cancel", "pause"]

    def test_retry_is_a_new_job(self, api: Api) -> None:
        job = api.submitted(labels={"a": "1"})
        api.moved(job["id"], State.FAILED)
        with api.http() as http:
            headers = {"Idempotency-Key": "retry-1"}
            first = http.post(f"/v1/jobs/{job['id']}/retry", headers=headers)
            again = http.post(f"/v1/jobs/{job['id']}/retry", headers=headers)
            old = http.get(f"/v1/jobs/{job['id']}").json()
        assert first.status_code == 202
        assert first.headers["Location"] == f"/v1/jobs/{first.json()['id']}"
        assert first.json()["retry_of"] == job["id"]
        assert first.json()["spec_digest"] == job["spec_digest"]
        assert (again.json()["id"], old["status"]["state"]) == (first.json()["id"], "FAILED")

    def test_extend_is_a_new_job_with_more(self, api: Api) -> None:
        job = api.submitted(COMPARE)
        path = f"/v1/jobs/{job['id']}/extend"
        with api.http() as http:
            early = http.post(path, json={"seeds": [90]})
            assert (early.status_code, early.json()["state"]) == (409, "QUEUED")
            api.moved(job["id"], State.SUCCEEDED)
            taken = http.post(path, json={"seeds": [90], "limits": {"trials": 300}})
            known = http.post(path, json={"seeds": [job["spec"]["seeds"][0]], "replicates": 2})
            nothing = http.post(path, json={})
            unknown = http.post(path, json={"arms": {}})
        assert taken.status_code == 202
        more = JobBody.model_validate(taken.json())
        assert (more.extends, more.spec["seeds"]) == (job["id"], [*job["spec"]["seeds"], 90])
        assert more.spec["limits"]["trials"] == 300
        assert taken.headers["Location"] == f"/v1/jobs/{more.id}"
        refused = (known, nothing, unknown)
        assert [(a.status_code, a.json()["errors"][0]["pointer"]) for a in refused] == [
            (422, "/replicates"), (422, "/seeds"), (422, "/arms"),
        ]  # fmt: skip

    def test_delete(self, api: Api) -> None:
        job = api.submitted()
        api.write_log(job["id"], b"line\n")
        path = f"/v1/jobs/{job['id']}"
        with api.http() as http:
            early = http.delete(path)
            assert (early.status_code, early.json()["state"]) == (409, "QUEUED")
            assert api.folder(job["id"]).root.exists()
            api.moved(job["id"], State.CANCELLED)
            gone = http.delete(path)
            assert (gone.status_code, gone.content) == (204, b"")
            assert http.get(path).status_code == 404
        assert not api.folder(job["id"]).root.exists()
