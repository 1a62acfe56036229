"""The files by which the platform and an attempt speak: heartbeat, news, stop, result.

They lie in the job's folder, so that either side may die and the other still knows.
"""

from __future__ import annotations

import logging
from datetime import UTC, datetime
from json import JSONDecodeError
from pathlib import Path
from typing import Literal, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from stoplab_platform.files import read_json, write_json
from stoplab_platform.jobs.models import Intent
from stoplab_platform.jobs.states import ReasonCode
from stoplab_platform.paths import JobFolder, RunFolder

log = logging.getLogger(__name__)
M = TypeVar("M", bound=BaseModel)

GRACE_S = {Intent.CANCELLED: 5.0, Intent.PAUSED: 60.0, Intent.FAILED: 60.0}
"""Seconds a run has to finish its step and save before it is killed."""


class Heartbeat(BaseModel):
    """A counter; who judges it by a clock uses the clock of the observer."""

    model_config = ConfigDict(frozen=True)

    attempt: int
    count: int


class News(BaseModel):
    """What a run tells of itself while it goes on, for the job's history."""

    model_config = ConfigDict(frozen=True)

    attempt: int
    message: str


class StopOrder(BaseModel):
    """What was asked of one attempt."""

    model_config = ConfigDict(frozen=True)

    intent: Intent
    deadline_s: float
    at: datetime
    attempt: int


class Result(BaseModel):
    """How an attempt ended, in its supervisor's words."""

    model_config = ConfigDict(frozen=True)

    attempt: int
    exit_code: int
    outcome: Literal["SUCCEEDED", "FAILED", "STOPPED"]
    reason_code: ReasonCode | None = None
    message: str | None = None
    run_digest: str | None = None
    finished_at: datetime


def read_heartbeat(folder: JobFolder) -> Heartbeat | None:
    """The last beat of any attempt."""
    return _read(Heartbeat, folder.heartbeat)


def tell_news(run: RunFolder, attempt: int, message: str) -> None:
    """Let the job's history have a line."""
    write_json(run.news, News(attempt=attempt, message=message).model_dump())


def read_news(run: RunFolder, attempt: int) -> str | None:
    """What this attempt last told."""
    news = _read(News, run.news)
    return news.message if news is not None and news.attempt == attempt else None


def read_result(folder: JobFolder, attempt: int) -> Result | None:
    """How this attempt ended; None while it has not (or another one's file lies there)."""
    result = last_result(folder)
    return result if result is not None and result.attempt == attempt else None


def last_result(folder: JobFolder) -> Result | None:
    """How the last attempt that came to an end ended."""
    return _read(Result, folder.result)


def read_stop(folder: JobFolder, attempt: int) -> StopOrder | None:
    """What was asked of this attempt."""
    order = _read(StopOrder, folder.stop)
    return order if order is not None and order.attempt == attempt else None


def request_stop(folder: JobFolder, attempt: int, intent: Intent) -> None:
    """Ask an attempt to stop; a cancel replaces a pause, and a repeated wish changes nothing."""
    order = read_stop(folder, attempt)
    if order is not None and order.intent is intent:
        return
    fresh = StopOrder(
        intent=intent, deadline_s=GRACE_S[intent], at=datetime.now(UTC), attempt=attempt
    )
    write_json(folder.stop, fresh.model_dump(mode="json"))


def clear_stop(folder: JobFolder, attempt: int) -> None:
    """Forget what was asked of earlier attempts."""
    if read_stop(folder, attempt) is None:
        folder.stop.unlink(missing_ok=True)


def _read(model: type[M], path: Path) -> M | None:
    """A file of this protocol; None where it is missing or no such thing."""
    try:
        data = read_json(path)
        return None if data is None else model.model_validate(data)
    except (ValidationError, JSONDecodeError) as error:
        log.warning("%s is broken and ignored: %s", path, error)
        return None
