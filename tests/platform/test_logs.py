from __future__ import annotations

import json
import logging
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stoplab_platform import logs
from stoplab_platform.logs import JsonLines, KeyValues
from stoplab_platform.redaction import scrubbed
from stoplab_platform.settings import Settings
from support_logs import hiding, logging_to

SECRET = "stl_9yXcV3kQ8mWz4LrT7bNs"


log = logging.getLogger("stoplab.test")
EXTRA = {"fields": {"ms": 1.5, "a": "b c"}}


class TestLines:
    def test_key_values(self) -> None:
        with logging_to(KeyValues, attempt=2) as text, logs.context(request_id="r_1", job_id="j_1"):
            log.warning("all %s, here\nand there", "well", extra=EXTRA)
        time, rest = text.getvalue().split(" ", 1)
        assert time.startswith("time=20")
        assert time.endswith("Z")
        assert rest == (
            'level=WARNING logger=stoplab.test message="all well, here\\nand there" '
            'ms=1.5 a="b c" attempt=2 request_id=r_1 job_id=j_1\n'
        )

    def test_json(self) -> None:
        with logging_to(JsonLines) as text, logs.context(job_id="j_1", attempt=3):
            log.info("größer", extra={"fields": {"ok": True, "path": Path("/tmp")}})
        (line,) = text.getvalue().splitlines()
        found = json.loads(line)
        assert found.pop("time").endswith("Z")
        assert found == {
            "level": "INFO", "logger": "stoplab.test", "message": "größer", "ok": True,
            "path": "/tmp", "job_id": "j_1", "attempt": 3,
        }  # fmt: skip

    @pytest.mark.parametrize("kind", [KeyValues, JsonLines])
    def test_an_error_stays_one_line_with_its_traceback(self, kind: type[logs.Structured]) -> None:
        with logging_to(kind) as text:
            try:
                raise ValueError("odd\nnumber")
            except ValueError:
                log.exception("it failed")
        assert text.getvalue().count("\n") == 1
        assert "ValueError: odd" in text.getvalue()
        assert "test_logs.py" in text.getvalue()


class TestContext:
    def test_it_ends_with_its_block(self) -> None:
        with logging_to(JsonLines) as text:
            with logs.context(job_id="j_1"), logs.context(attempt=1):
                log.info("in")
            log.info("out")
        inside, outside = map(json.loads, text.getvalue().splitlines())
        assert (inside["job_id"], inside["attempt"]) == ("j_1", 1)
        assert "job_id" not in outside

    def test_threads_have_their_own(self) -> None:
        with logging_to(JsonLines) as text:

            def work() -> None:
                logs.bind(job_id="j_2")
                log.info("there")

            thread = threading.Thread(target=work)
            thread.start()
            thread.join()
            log.info("here")
        there, here = map(json.loads, text.getvalue().splitlines())
        assert there["job_id"] == "j_2"
        assert "job_id" not in here


class TestRedaction:
    @pytest.mark.parametrize(
        ("said", "kept"),
        [
            (f"Authorization: Bearer {SECRET}", "Authorization"),
            ("{'authorization': 'Basic dXNlcjpwYXNz', 'accept': '*/*'}", "'accept': '*/*'"),
            (f"got bearer {'x' * 40} again", "again"),
            ("postgresql+psycopg://lab:pa:ss@db.local:5432/stoplab", "db.local:5432/stoplab"),
            ("cannot reach https://ana:p@ss@host/path?x=1 now", "host/path?x=1 now"),
            ("GET /v1/jobs?token=dXNlcjpwYXNz&limit=2", "limit=2"),
            ("STOPLAB_TOKEN=dXNlcjpwYXNz and more", "and more"),
            ('{"password": "dXNlcjpwYXNz"}', "password"),
            (f"the token {SECRET} is old", "is old"),
            (f"https://b.s3/a.tar?X-Amz-Signature={SECRET}&X-Amz-Expires=9", "X-Amz-Expires=9"),
            ("https://host/a.tar?sv=2022&sig=dXNlcjpwYXNz%3D: not there", ": not there"),
        ],
    )
    @pytest.mark.parametrize("kind", [KeyValues, JsonLines])
    def test_secrets_go_and_the_rest_stays(
        self, kind: type[logs.Structured], said: str, kept: str
    ) -> None:
        with logging_to(kind) as text:
            log.info(said)
        line = text.getvalue()
        assert "[redacted]" in line
        assert kept in line
        for secret in (SECRET, "dXNlcjpwYXNz", "x" * 40, "pa:ss", "p@ss", "ana:"):
            assert secret not in line

    @pytest.mark.parametrize(
        "said",
        [
            "no bearer token came with the request",
            "http://127.0.0.1:5000/#/experiments/1/runs/ab",
            "data.key is secret://wandb-key",
            "mask/context_tokens of j_01 is 55, the token_file lies in /home/ana",
            "Uvicorn running on http://127.0.0.1:8800 (Press CTRL+C to quit)",
        ],
    )
    def test_innocent_words_stay(self, said: str) -> None:
        assert scrubbed(said) == said

    def test_also_in_fields_and_tracebacks(self) -> None:
        with logging_to(KeyValues, "a secret of ours") as text:
            try:
                raise OSError(f"refused {SECRET}")
            except OSError:
                log.exception("x", extra={"fields": {"token": "abc", "why": "a secret of ours"}})
        assert SECRET not in text.getvalue()
        assert "abc" not in text.getvalue()
        assert "of ours" not in text.getvalue()

    @given(st.text(min_size=8).filter(str.strip))
    @pytest.mark.parametrize("kind", [KeyValues, JsonLines])
    def test_known_ones_go_whatever_they_are(
        self, kind: type[logs.Structured], secret: str
    ) -> None:
        record = logging.LogRecord("x", logging.INFO, "", 0, "so: %s.", (secret,), None)
        with hiding(secret):
            line = kind().format(record)
        assert f"so: {secret}." not in line
        assert "[redacted]" in line

    def test_which_ones_are_known(self, home: Path) -> None:
        token = home / "tokens" / "local"
        token.parent.mkdir()
        token.write_text("0123456789abcdef\n")
        settings = Settings(token="tokentoken", database_url="postgresql://u:p%40ssword@h/d")
        known = logs.known_secrets(settings)
        assert {"tokentoken", "p%40ssword", "p@ssword", "0123456789abcdef"} <= set(known)


CODE = """
import logging, threading, warnings
from stoplab_platform import logs
from stoplab_platform.settings import Settings
logs.set_up(Settings(), job_id="j_1")
logging.getLogger("uvicorn.error").info("started")
logging.getLogger("httpx").info("a request")
warnings.warn("old")
thread = threading.Thread(target=lambda: 1 / 0)
thread.start(); thread.join()
raise RuntimeError("Authorization: Bearer abcdefghijklmnop")
"""


class TestSetUp:
    def test_all_that_a_process_says(self, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("STOPLAB_LOG_FORMAT", "json")
        ended = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True)
        assert ended.returncode == 1
        lines = [json.loads(line) for line in ended.stderr.splitlines()]
        assert [(line["logger"], line["level"]) for line in lines] == [
            ("uvicorn.error", "INFO"), ("py.warnings", "WARNING"),
            ("stoplab", "CRITICAL"), ("stoplab", "CRITICAL"),
        ]  # fmt: skip
        assert all(line["job_id"] == "j_1" for line in lines)
        assert "ZeroDivisionError" in lines[2]["exception"]
        assert "abcdefghijklmnop" not in ended.stderr

    def test_an_odd_format_is_refused(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("STOPLAB_LOG_FORMAT", "xml")
        with pytest.raises(ValueError, match=r"STOPLAB_LOG_FORMAT.*'text' or 'json'"):
            Settings()

    def test_a_run_speaks_plainly(self, capsys: pytest.CaptureFixture[str]) -> None:
        root = logging.getLogger("stoplab")
        before, level = list(root.handlers), root.level
        try:
            logs.to_stdout()
            log.info("step 1 of 2, %s", SECRET)
        finally:
            root.handlers[:] = before
            root.setLevel(level)
        said = capsys.readouterr().out
        assert said.endswith(" step 1 of 2, [redacted]\n")
