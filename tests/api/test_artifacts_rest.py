"""Artifacts over REST, by the client and on the command line."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from typer.testing import CliRunner, Result

from stoplab_api import exchange
from stoplab_api.cli.main import app
from stoplab_api.client import ApiError, Client, Unreachable
from stoplab_api.downloads import Download
from stoplab_api.findings import ArtifactListBody
from support_api import Api, running_api, secret

DATA = bytes(range(256)) * 40_000  # 10 MB
PICTURE = "runs/run/artifacts/masks.png"
STATE = "runs/run/checkpoints/step-00000019/state.pt"


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    with running_api(tmp_path_factory.mktemp("home")) as running:
        yield running


@pytest.fixture(scope="module")
def job(api: Api) -> str:
    made: str = api.submitted()["id"]
    root = api.folder(made).root
    files = {
        "spec.yaml": b"kind: pretrain\n",
        PICTURE: b"\x89PNG",
        STATE: DATA,
        "runs/run/artifacts/page.html": b"<script>1</script>",
        "runs/run/artifacts/a bé.txt": b"odd",
        "runs/run/artifacts/empty.csv": b"",
        "owner.json": b"{}",
        "runs/run/spool.jsonl": b"{}",
    }
    for name, data in files.items():
        file = root / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(data)
    return made


def get(api: Api, job: str, path: str, method: str = "GET", **headers: str) -> httpx.Response:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    with api.http("vera") as http:
        return http.request(method, f"/v1/jobs/{job}/artifacts/{path}", headers=named)


class TestList:
    def test_what_is_there(self, api: Api, job: str) -> None:
        with api.http("vera") as http:
            answer = http.get(f"/v1/jobs/{job}/artifacts")
        found = ArtifactListBody.model_validate(answer.json())
        paths = {one.path: one.bytes for one in found.items}
        assert paths[STATE] == len(DATA)
        assert {"spec.yaml", PICTURE} <= paths.keys()
        assert not {"owner.json", "runs/run/spool.jsonl"} & paths.keys()
        assert list(paths) == sorted(paths)
        for path in paths:
            assert get(api, job, path).status_code == 200

    def test_of_a_job_that_has_none(self, api: Api) -> None:
        with api.http() as http:
            answer = http.get(f"/v1/jobs/{api.submitted()['id']}/artifacts")
        assert answer.json() == {"items": []}

    def test_other_projects_jobs_are_none(self, api: Api, job: str) -> None:
        with api.http("eve") as http:
            assert http.get(f"/v1/jobs/{job}/artifacts").status_code == 404
            assert http.get(f"/v1/jobs/{job}/artifacts/spec.yaml").status_code == 404
        with api.http(None) as http:
            assert http.get(f"/v1/jobs/{job}/artifacts/spec.yaml").status_code == 401


class TestDownload:
    def test_the_whole_file(self, api: Api, job: str) -> None:
        answer = get(api, job, STATE)
        assert answer.content == DATA
        assert answer.headers["Accept-Ranges"] == "bytes"
        assert answer.headers["Content-Disposition"] == 'attachment; filename="state.pt"'
        assert answer.headers["Content-Length"] == str(len(DATA))
        picture = get(api, job, PICTURE)
        assert picture.headers["Content-Type"] == "image/png"
        assert get(api, job, "spec.yaml").headers["Content-Type"] == "application/yaml"

    def test_nothing_acts_as_a_page_of_ours(self, api: Api, job: str) -> None:
        answer = get(api, job, "runs/run/artifacts/page.html")
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
        assert answer.headers["Content-Disposition"].startswith("attachment")
        assert "sandbox" in answer.headers["Content-Security-Policy"]
        assert "allow-same-origin" not in answer.headers["Content-Security-Policy"]

    def test_an_odd_name(self, api: Api, job: str) -> None:
        answer = get(api, job, "runs/run/artifacts/a%20b%C3%A9.txt")
        assert answer.content == b"odd"
        assert (
            answer.headers["Content-Disposition"] == "attachment; filename*=utf-8''a%20b%C3%A9.txt"
        )

    @pytest.mark.parametrize(
        ("asked", "start", "stop"),
        [
            ("bytes=0-0", 0, 1),
            ("bytes=100-299", 100, 300),
            ("bytes=9999990-", 9_999_990, len(DATA)),
            ("bytes=-7", len(DATA) - 7, len(DATA)),
            ("bytes=5-99999999999", 5, len(DATA)),
            ("bytes=-99999999999", 0, len(DATA)),
        ],
    )
    def test_a_part(self, api: Api, job: str, asked: str, start: int, stop: int) -> None:
        answer = get(api, job, STATE, Range=asked)
        assert answer.status_code == 206
        assert answer.content == DATA[start:stop]
        assert answer.headers["Content-Range"] == f"bytes {start}-{stop - 1}/{len(DATA)}"

    @pytest.mark.parametrize("asked", [f"bytes={len(DATA)}-", "bytes=99999999999-", "bytes=-0"])
    def test_a_part_that_is_not_there(self, api: Api, job: str, asked: str) -> None:
        answer = get(api, job, STATE, Range=asked)
        assert (answer.status_code, answer.json()["code"]) == (416, "range-not-satisfiable")
        assert answer.headers["Content-Range"] == f"bytes */{len(DATA)}"

    @pytest.mark.parametrize(
        "asked", ["bytes=5-2", "bytes=-", "bytes=a-b", "lines=1-2", "0-5", "", "bytes=0-1,5-6"]
    )
    def test_a_range_that_makes_no_sense_is_passed_over(
        self, api: Api, job: str, asked: str
    ) -> None:
        answer = get(api, job, "spec.yaml", Range=asked)
        assert (answer.status_code, answer.content) == (200, b"kind: pretrain\n")

    def test_an_empty_file(self, api: Api, job: str) -> None:
        assert get(api, job, "runs/run/artifacts/empty.csv").content == b""
        part = get(api, job, "runs/run/artifacts/empty.csv", Range="bytes=0-")
        assert part.status_code == 416

    def test_etags(self, api: Api, job: str) -> None:
        tag = get(api, job, STATE).headers["ETag"]
        again = get(api, job, STATE, If_None_Match=tag)
        assert (again.status_code, again.content, again.headers["ETag"]) == (304, b"", tag)
        assert get(api, job, STATE, If_None_Match='"other"').status_code == 200
        part = get(api, job, STATE, Range="bytes=0-3", If_Range=tag)
        assert (part.status_code, part.content) == (206, DATA[:4])
        for asked in ("bytes=0-3", "bytes=99999999999-"):
            whole = get(api, job, STATE, Range=asked, If_Range='"other"')
            assert (whole.status_code, len(whole.content)) == (200, len(DATA))

    def test_only_its_head(self, api: Api, job: str) -> None:
        answer = get(api, job, STATE, "HEAD")
        assert (answer.status_code, answer.content) == (200, b"")
        assert answer.headers["Content-Length"] == str(len(DATA))
        assert answer.headers["ETag"] == get(api, job, STATE).headers["ETag"]
        assert get(api, job, "none", "HEAD").status_code == 404
        assert get(api, job, STATE, "POST").status_code == 405

    @pytest.mark.parametrize(
        "path",
        [
            "none", "owner.json", "runs/run/spool.jsonl", "runs", "runs/run/artifacts",
            "..%2f..%2ftokens%2flocal", "%2e%2e/%2e%2e/stoplab.db", "../../stoplab.db",
            "..%2F..%2Fstoplab.db", "%2Fetc%2Fpasswd", "/etc/passwd", "//etc/passwd",
            "runs/run/artifacts/..%2f..%2f..%2fowner.json", "spec.yaml%00", "%00", "spec.yaml/",
            "runs%5Crun%5Cspec.yaml", "%252e%252e%252fstoplab.db", "%ff%fe", "x" * 4000,
        ],
    )  # fmt: skip
    def test_no_path_leads_elsewhere(self, api: Api, job: str, path: str) -> None:
        answer = get(api, job, path)
        assert (answer.status_code, answer.json()["code"]) == (404, "not-found")

    def test_a_link_leads_nowhere(self, api: Api, job: str) -> None:
        folder = api.folder(job)
        (folder.run("run").artifacts / "link.txt").symlink_to(api.lab.settings.home / "stoplab.db")
        assert get(api, job, "runs/run/artifacts/link.txt").status_code == 404


class TestClient:
    @pytest.fixture
    def client(self, api: Api) -> Iterator[Client]:
        with Client(api.url, secret("ana")) as made:
            yield made

    @pytest.fixture
    def out(self, tmp_path: Path) -> Path:
        made = tmp_path / "out"
        made.mkdir()
        return made

    def test_list_and_download(self, client: Client, job: str, out: Path) -> None:
        assert "spec.yaml" in [one.path for one in client.artifacts(job)]
        written = client.download(job, STATE, out)
        assert written == out / "state.pt"
        assert written.read_bytes() == DATA
        named = client.download(job, "runs/run/artifacts/a bé.txt", out / "new" / "odd.txt")
        assert named.read_bytes() == b"odd"
        assert sorted(path.name for path in out.iterdir()) == ["new", "state.pt"]
        with pytest.raises(ApiError, match="no artifact"):
            client.download(job, "none", out / "none")

    def test_a_broken_one_goes_on_where_it_was(
        self, client: Client, job: str, out: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Every answer is cut after a megabyte; what came is kept, in this call and the next."""
        monkeypatch.setattr(exchange, "RETRY_S", 0.001)
        ranges = cut(monkeypatch, after=3)
        monkeypatch.setattr(exchange, "PATIENCE_S", -1.0)
        with pytest.raises(Unreachable):
            client.download(job, STATE, out)
        (part,) = out.iterdir()
        assert part.name.startswith(".state.pt.")
        had = part.stat().st_size
        assert had > 0
        monkeypatch.setattr(exchange, "PATIENCE_S", 60.0)
        assert client.download(job, STATE, out).read_bytes() == DATA
        assert f"bytes={had}-" in ranges
        assert len(ranges) >= 3
        assert [path.name for path in out.iterdir()] == ["state.pt"]

    def test_parts_of_two_files_never_meet(
        self, api: Api, client: Client, out: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        made: str = api.submitted()["id"]
        file = api.folder(made).comparison_html
        file.parent.mkdir(parents=True)
        file.write_bytes(b"a" * 5_000_000)
        with monkeypatch.context() as patch:
            cut(patch, after=1)
            patch.setattr(exchange, "PATIENCE_S", -1.0)
            with pytest.raises(Unreachable):
                client.download(made, "comparison.html", out)
        file.write_bytes(b"b" * 5_000_000)
        os.utime(file, (1, 1))
        written = client.download(made, "comparison.html", out)
        assert written.read_bytes() == b"b" * 5_000_000


def cut(monkeypatch: pytest.MonkeyPatch, after: int) -> list[str]:
    """Breaks each answer after so many blocks of a file; the ranges that are asked for."""
    opened, feed = Download.opened, Download.feed
    ranges, fed = list[str](), [0]

    def open_(self: Download, answer: httpx.Response) -> bool:
        fed[0] = 0
        ranges.append(answer.request.headers.get("Range", ""))
        return opened(self, answer)

    def feed_(self: Download, block: bytes) -> None:
        if fed[0] == after:
            raise httpx.ReadError("cut")
        fed[0] += 1
        feed(self, block)

    monkeypatch.setattr(Download, "opened", open_)
    monkeypatch.setattr(Download, "feed", feed_)
    return ranges


class TestCommand:
    @pytest.fixture(autouse=True)
    def here(self, api: Api, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        monkeypatch.setenv("STOPLAB_API_URL", api.url)
        monkeypatch.setenv("STOPLAB_TOKEN", secret("ana"))
        monkeypatch.chdir(tmp_path)

    def run(self, *words: object, code: int = 0) -> Result:
        result = CliRunner().invoke(app, ["jobs", "artifacts", *map(str, words)])
        assert result.exit_code == code, result.output
        return result

    def test_list(self, job: str) -> None:
        assert PICTURE in self.run(job).stdout
        items = json.loads(self.run(job, "--json").stdout)["items"]
        assert STATE in [one["path"] for one in items]

    def test_download(self, job: str, tmp_path: Path) -> None:
        assert self.run(job, PICTURE).stdout.strip() == str(tmp_path / "masks.png")
        assert (tmp_path / "masks.png").read_bytes() == b"\x89PNG"
        told = json.loads(self.run(job, "spec.yaml", "--out", "mine.yaml", "--json").stdout)
        assert told == {"path": "spec.yaml", "out": "mine.yaml", "bytes": 15}
        self.run(job, "none", code=1)
