"""What to do next about an error, for people at a terminal."""

from __future__ import annotations

import re

from stoplab_api.exchange import ApiError, NotStoplab, Unreachable

AWAY = (
    "`stoplab status` tells whether this folder's lab lives, `stoplab up` starts it; for another "
    "server see STOPLAB_API_URL"
)
ELSEWHERE = "another server listens at that address: see STOPLAB_API_URL"
NEW_TOKEN = "an administrator makes one with `stoplab tokens create NAME --owner YOU`"
BY_CODE = {
    "invalid-spec": "`stoplab spec validate FILE` checks without a server, `stoplab spec schema "
    "KIND` tells every field",
    "idempotency-key-reused": "repeat the first command unchanged, or give another "
    "--idempotency-key",
}
BY_STATUS = {
    401: f"set STOPLAB_TOKEN to a valid token; {NEW_TOKEN}. In a folder whose lab `stoplab up` "
    "started, unset STOPLAB_TOKEN and STOPLAB_API_URL",
    403: "ask the job's owner or an administrator of the project; a token with another role: "
    f"{NEW_TOKEN} --role ROLE",
    409: "look at it again (`stoplab jobs show JOB`), then repeat what is still wanted",
    412: "somebody changed it meanwhile: look at it again (`stoplab jobs show JOB`), then repeat",
    428: "this stoplab is older than the server: install the server's version",
    503: "nothing was lost: repeat it in a moment; `stoplab doctor` says which part is away",
}


def next_step(error: Exception) -> str | None:
    """A sentence, where there is something to be done."""
    if isinstance(error, Unreachable):
        return AWAY
    if isinstance(error, NotStoplab):
        return ELSEWHERE
    return _of_refusal(error) if isinstance(error, ApiError) else None


def _of_refusal(error: ApiError) -> str | None:
    problem = error.problem
    if error.status == 404:
        return _of_missing(error)
    if error.code == "illegal-move":
        return _of_illegal_move(error)
    if error.status == 429:
        return f"wait {error.retry_after_s or 1:.0f} s, then repeat it"
    if error.status >= 500 and error.status != 503:
        return f"a mistake of the server; its log has the details under {problem.request_id}"
    return BY_CODE.get(error.code) or BY_STATUS.get(error.status)


def _of_missing(error: ApiError) -> str | None:
    if error.code == "unknown":
        return ELSEWHERE
    group = re.match("/v1/(jobs|tokens)/", error.problem.instance)
    if group is None or not re.search("^no (job|token) |: Not Found$", error.problem.detail):
        return None
    return f"`stoplab {group[1]} list` shows those there are; a token sees its own project alone"


def _of_illegal_move(error: ApiError) -> str:
    """The commands for what the job's state does allow."""
    job = error.problem.instance.split("/")[3:4]
    allowed = (error.problem.model_extra or {}).get("allowed_actions") or []
    commands = [f"`stoplab jobs {action} {' '.join(job)}`" for action in allowed]
    return f"possible now: {', '.join(commands)}" if commands else BY_STATUS[409]
