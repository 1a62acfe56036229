"""The runner on a Ray cluster, by the Ray Jobs REST API.

The API is spoken directly rather than through `JobSubmissionClient`, which sets no time limit on
a request (a dashboard whose GCS died never answers) and folds every refusal into a RuntimeError.
"""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import httpx

from stoplab_platform.errors import RunnerUnavailable
from stoplab_platform.runner.base import Launch, Observed, RunnerState

TIMEOUT = httpx.Timeout(20.0, connect=3.0)  # seconds; a cold dashboard takes 1 to 2 s to submit
ALIVE_TIMEOUT_S = 3.0


class RayJobsRunner:
    """Submits to the dashboard at ``address`` (http://...), with the token in ``token_path``."""

    tied_to_parent = True

    def __init__(self, address: str, token_path: Path | None = None) -> None:
        self._address = address.rstrip("/")
        self._token_path = token_path
        # No proxy from the environment: the cluster is near, and the token is for it alone.
        self._http = httpx.Client(timeout=TIMEOUT, trust_env=False)

    def start(self, launch: Launch) -> None:
        """Submit; a refused submission that the cluster knows was made before, and is adopted."""
        body = {
            "submission_id": launch.submission_id,
            "entrypoint": shlex.join(launch.entrypoint),  # Ray runs it in a shell
            "entrypoint_num_gpus": launch.gpus or None,
            "runtime_env": {"env_vars": dict(launch.env)},
            "metadata": dict(launch.metadata),
        }
        answer = self._ask("POST", "/api/jobs/", {k: v for k, v in body.items() if v is not None})
        if answer.is_success:
            return
        # A duplicate is a 500 like any other failure, so the cluster is asked.
        if self.observe(launch.submission_id).state is RunnerState.ABSENT:
            raise RunnerUnavailable(f"Ray took no job: {_brief(answer)}")

    def observe(self, submission_id: str) -> Observed:
        """Ray's status; ABSENT also after a head restart without persistence."""
        answer = self._ask("GET", f"/api/jobs/{submission_id}")
        if answer.status_code == httpx.codes.NOT_FOUND:
            return Observed(RunnerState.ABSENT)
        if not answer.is_success:
            raise RunnerUnavailable(f"Ray does not say: {_brief(answer)}")
        info = answer.json()
        return Observed(RunnerState(info["status"]), info.get("message"))

    def stop(self, submission_id: str) -> None:
        """SIGTERM to the whole process tree, SIGKILL after 3 s (Ray's own ladder)."""
        answer = self._ask("POST", f"/api/jobs/{submission_id}/stop")
        if not answer.is_success and answer.status_code != httpx.codes.NOT_FOUND:
            raise RunnerUnavailable(f"Ray stops nothing: {_brief(answer)}")

    def forget(self, submission_id: str) -> None:
        """Delete it; Ray refuses that while it is not over."""
        answer = self._ask("DELETE", f"/api/jobs/{submission_id}")
        if not answer.is_success and answer.status_code != httpx.codes.NOT_FOUND:
            raise RunnerUnavailable(f"Ray forgets nothing: {_brief(answer)}")

    def alive(self) -> bool:
        """Whether the dashboard answers and takes our token."""
        try:
            return self._ask("GET", "/api/version", timeout=ALIVE_TIMEOUT_S).is_success
        except RunnerUnavailable:
            return False

    def close(self) -> None:
        """Give the connections back."""
        self._http.close()

    def _ask(
        self, method: str, path: str, body: Any = None, timeout: float | None = None
    ) -> httpx.Response:
        try:
            return self._http.request(
                method,
                self._address + path,
                json=body,
                headers=self._headers(),
                timeout=TIMEOUT if timeout is None else timeout,
            )
        except httpx.HTTPError as error:
            raise RunnerUnavailable(f"Ray at {self._address} does not answer: {error}") from error

    def _headers(self) -> dict[str, str]:
        """The token is read each time: a new head may have a new one."""
        if self._token_path is None:
            return {}
        try:
            return {"Authorization": f"Bearer {self._token_path.read_text().strip()}"}
        except OSError as error:
            raise RunnerUnavailable(f"Ray's token cannot be read: {error}") from error


def _brief(answer: httpx.Response) -> str:
    """Status and the last line of what may be a traceback."""
    lines = answer.text.strip().splitlines() or [""]
    return f"{answer.status_code} {lines[-1][:300]}"
