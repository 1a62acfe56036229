"""Tells a web address when jobs end: off the reconciler's thread, until it has taken it.

Requests are those of Standard Webhooks (www.standardwebhooks.com): an id that stays the same over
all tries, a time, and an HMAC-SHA256 of both and the body. What was not told yet is found in the
events, so that a restart loses nothing; what was told just before a crash is told again.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import logging
import time
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import httpx

from stoplab_platform.errors import SettingsError, StoreUnavailable
from stoplab_platform.jobs.event_store import ANNOUNCED, LOST
from stoplab_platform.jobs.models import Event, Job
from stoplab_platform.jobs.store import JobStore
from stoplab_platform.jobs.views import stamp
from stoplab_platform.rounds import Rounds
from stoplab_platform.secret_store import Secrets
from stoplab_platform.settings import Settings

log = logging.getLogger("stoplab.webhook")

ACTOR = "webhook"
KEEP_TRYING = timedelta(hours=24)
FORGET = timedelta(hours=1)
"""How long after that an event is still looked at, to note that its news is lost."""
LOOK_BACK = timedelta(minutes=5)
"""How far the clocks of two replicas may be apart."""
TIMEOUT_S = 10.0
ROUND_S, LEASE_S = 10.0, 30.0
FIRST_PAUSE_S, LONGEST_PAUSE_S = 1.0, 600.0


class Notifier:
    """One replica's; a lease lets one of them tell at a time."""

    def __init__(self, store: JobStore, settings: Settings) -> None:
        self._store, self._settings = store, settings
        self._holder = uuid4().hex
        self._rounds = Rounds("stoplab-webhook", self._round)
        self._since: datetime | None = None
        """Nothing older waits to be told, as far as is known; None: not known."""
        self._failures = 0
        """In a row, by an address that does not answer."""
        self._refused: dict[int, tuple[int, float]] = {}
        """Events that the address will not have: how often, and when they are tried again."""

    def notify(self) -> None:
        """Begin a round unless one is under way, or the address was just away."""
        if self._settings.webhook_url is not None:
            self._rounds.begin()

    def close(self, timeout_s: float = 2.0) -> None:
        """Wait a little for the round under way; another process takes up the rest."""
        if self._rounds.begun and self._rounds.wait(timeout_s):
            with suppress(StoreUnavailable):
                self._store.lease("webhook", self._holder, 0)

    def _round(self) -> None:
        try:
            if self._store.lease("webhook", self._holder, LEASE_S):
                self._tell_all()
            else:
                self._since = None  # another replica's work; when it is ours, all is looked at
        except httpx.HTTPError as error:
            # Not its sentence: that holds the address, which may be a secret.
            self._pause(type(error).__name__)
        except (SettingsError, StoreUnavailable) as error:
            self._pause(str(error))

    def _pause(self, why: str) -> None:
        self._failures += 1
        wait_s = pause_s(self._failures)
        self._rounds.pause(wait_s)
        log.warning("how jobs ended is told again in %.0f s: %s", wait_s, why)

    def _tell_all(self) -> None:
        now, ends = datetime.now(UTC), time.monotonic() + ROUND_S
        since = self._since or now - KEEP_TRYING - FORGET
        waiting = self._store.unannounced(self._settings.webhook_states, since)
        self._since = min([now - LOOK_BACK, *(event.at for event, _ in waiting[:1])])
        for event, job in waiting:
            if now - event.at > KEEP_TRYING:
                self._store.announced(event, LOST, ACTOR)
                log.error("nobody was told of %s of %s; it is given up", event.to_state, job.id)
            elif self._refused.get(event.seq, (0, 0.0))[1] <= time.monotonic() < ends:
                self._tell(event, job)

    def _tell(self, event: Event, job: Job) -> None:
        answer = send(self._settings, event, job)
        if answer.is_success:
            self._failures = 0
            self._refused.pop(event.seq, None)
            self._store.announced(event, ANNOUNCED, ACTOR)
            return
        if answer.is_server_error or answer.status_code == httpx.codes.TOO_MANY_REQUESTS:
            raise httpx.HTTPStatusError("", request=answer.request, response=answer)
        times = self._refused.get(event.seq, (0, 0.0))[0] + 1
        self._refused[event.seq] = (times, time.monotonic() + pause_s(times))
        log.warning("the news of %s was refused: %d", job.id, answer.status_code)


def send(settings: Settings, event: Event, job: Job) -> httpx.Response:
    """One try. Redirections are not followed: the news goes where the settings say."""
    secrets = Secrets(settings)
    assert settings.webhook_url is not None
    url = secrets.plain(settings.webhook_url)
    key = None if settings.webhook_secret is None else secrets.plain(settings.webhook_secret)
    body = json.dumps(news(event, job), ensure_ascii=False).encode()
    message_id, at = f"{job.id}.{event.seq}", str(int(time.time()))
    headers = {"Content-Type": "application/json", "webhook-id": message_id,
               "webhook-timestamp": at}  # fmt: skip
    if key is not None:
        headers["webhook-signature"] = signature(key, message_id, at, body)
    return httpx.post(url, content=body, headers=headers, timeout=TIMEOUT_S)


def news(event: Event, job: Job) -> dict[str, Any]:
    """What is told."""
    return {
        "type": f"job.{str(event.to_state).lower()}",
        "timestamp": stamp(event.at),
        "data": {
            "id": job.id,
            "kind": job.kind,
            "name": job.name,
            "project": job.project,
            "owner": job.owner,
            "labels": dict(job.labels),
            "state": event.to_state,
            "reason_code": event.reason_code,
            "message": event.message,
            "link": f"/v1/jobs/{job.id}",
        },
    }


def signature(key: str, message_id: str, at: str, body: bytes) -> str:
    """`v1,` and the HMAC; a key that begins with `whsec_` is base64, any other is text."""
    coded = key.removeprefix("whsec_")
    raw = base64.b64decode(coded) if coded != key else key.encode()
    signed = f"{message_id}.{at}.".encode() + body
    return f"v1,{base64.b64encode(hmac.digest(raw, signed, hashlib.sha256)).decode()}"


def pause_s(times: int) -> float:
    """Seconds to wait after so many failures."""
    return min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2.0 ** min(times - 1, 20))
