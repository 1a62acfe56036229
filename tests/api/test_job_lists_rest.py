"""Lists of jobs: filters, pages, and where they end."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from stoplab_api.bodies import JobListBody
from stoplab_platform.jobs.states import State
from support_api import COMPARE, Api, running_api, with_


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    with running_api(tmp_path_factory.mktemp("home")) as running:
        yield running


@pytest.fixture(scope="module")
def jobs(api: Api) -> dict[str, dict[str, Any]]:
    made = {
        "one": api.submitted(with_(name="List-one"), labels={"team": "a", "url": "x:y"}),
        "two": api.submitted(with_(name="list-two"), labels={"team": "a"}),
        "pair": api.submitted({**COMPARE, "name": "list-pair"}, labels={"team": "b"}),
    }
    api.moved(made["two"]["id"], State.RUNNING)
    return made


class TestList:
    def names(self, api: Api, **params: Any) -> list[str]:
        with api.http() as http:
            answer = http.get("/v1/jobs", params={"q": "list", **params})
        assert answer.status_code == 200, answer.text
        page = JobListBody.model_validate(answer.json())
        return [job.name for job in page.items]

    def test_newest_first(self, api: Api, jobs: object) -> None:
        assert self.names(api) == ["list-pair", "list-two", "List-one"]

    def test_states_are_or(self, api: Api, jobs: object) -> None:
        assert self.names(api, state="RUNNING") == ["list-two"]
        both = ["QUEUED", "RUNNING"]
        assert self.names(api, state=both) == ["list-pair", "list-two", "List-one"]

    @pytest.mark.parametrize("many", ["state=FAILED", "label=a:b", "kind=sweep"])
    def test_filters_have_an_end(self, api: Api, many: str) -> None:
        with api.http() as http:
            assert http.get("/v1/jobs?" + "&".join([many] * 16)).status_code == 200
            assert http.get("/v1/jobs?" + "&".join([many] * 17)).status_code == 400

    def test_labels_are_and_split_at_the_first_colon(self, api: Api, jobs: object) -> None:
        assert self.names(api, label="team:a") == ["list-two", "List-one"]
        assert self.names(api, label=["team:a", "url:x:y"]) == ["List-one"]
        assert self.names(api, label=["team:a", "team:b"]) == []

    def test_kind(self, api: Api, jobs: object) -> None:
        assert self.names(api, kind="compare") == ["list-pair"]

    def test_q_is_a_prefix_of_name_or_id(self, api: Api, jobs: dict[str, Any]) -> None:
        assert self.names(api, q="LIST-T") == ["list-two"]
        assert self.names(api, q="ist-two") == []
        assert self.names(api, q=jobs["pair"]["id"]) == ["list-pair"]

    def test_the_cursor_walks_all_pages(self, api: Api, jobs: object) -> None:
        found: list[str] = []
        params: dict[str, Any] = {"q": "list", "limit": 1}
        with api.http() as http:
            while True:
                page = http.get("/v1/jobs", params=params).json()
                found += [job["name"] for job in page["items"]]
                if page["next_cursor"] is None:
                    break
                params["cursor"] = page["next_cursor"]
        assert found == ["list-pair", "list-two", "List-one"]

    @pytest.mark.parametrize(
        ("query", "pointer"),
        [
            ("stat=QUEUED", "?stat"),
            ("state=SLEEPING", "?state"),
            ("limit=0", "?limit"),
            ("limit=x", "?limit"),
            ("label=team", "?label"),
            ("cursor=1", "?cursor"),
            ("kind=bake", "?kind"),
        ],
    )
    def test_what_it_does_not_know_is_400(self, api: Api, query: str, pointer: str) -> None:
        with api.http() as http:
            answer = http.get(f"/v1/jobs?{query}")
        assert answer.status_code == 400
        assert [error["pointer"] for error in answer.json()["errors"]] == [pointer]
