"""The one place where logging is set up: a record is a line, and no line holds a secret.

Servers (`set_up`) write key=value pairs, or JSON with ``STOPLAB_LOG_FORMAT=json``; a run's
entrypoint (`to_stdout`) writes plain lines for people. `context` and `bind` say which request, job
and attempt the lines of a task or thread belong to.
"""

from __future__ import annotations

import json
import logging
import re
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from datetime import UTC, datetime
from types import MappingProxyType, TracebackType
from typing import Any
from urllib.parse import unquote, urlsplit

from stoplab_platform.redaction import hide, scrubbed
from stoplab_platform.settings import Settings

QUIET = ("alembic", "httpcore", "httpx", "urllib3")
"""Libraries that tell of every step; of these only warnings are kept."""
_PLAIN_VALUE = re.compile(r"[^\s\"=\\\x00-\x1f\x7f]+")
_context: ContextVar[Mapping[str, Any]] = ContextVar(
    "stoplab_log_context", default=MappingProxyType({})
)

log = logging.getLogger("stoplab")


def set_up(settings: Settings, **fixed: Any) -> None:
    """Send every log record of this process to stderr; ``fixed`` fields are on each line."""
    for secret in known_secrets(settings):
        hide(secret)
    kind = JsonLines if settings.log_format == "json" else KeyValues
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(kind(fixed))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(settings.log_level)
    for name in QUIET:
        logging.getLogger(name).setLevel(logging.WARNING)
    logging.captureWarnings(True)
    sys.excepthook = _uncaught
    threading.excepthook = lambda args: log.critical(
        "a thread ended by an error", exc_info=args.exc_value
    )


def to_stdout() -> None:
    """Send stoplab's log lines to standard output for people, each with its time."""
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(Plain("%(asctime)s %(message)s", "%H:%M:%S"))
    root = logging.getLogger("stoplab")
    root.setLevel(logging.INFO)
    root.addHandler(handler)


@contextmanager
def context(**fields: Any) -> Iterator[None]:
    """Put these fields on each line that the block logs, in this task or thread."""
    token = _context.set({**_context.get(), **fields})
    try:
        yield
    finally:
        _context.reset(token)


def bind(**fields: Any) -> None:
    """Put these fields on each line that follows in this task or thread."""
    _context.set({**_context.get(), **fields})


def known_secrets(settings: Settings) -> list[str]:
    """Secrets that the settings hold or name the file of."""
    found = [settings.token or ""]
    for url in (settings.database_url, settings.mlflow_tracking_uri, settings.ray_address):
        with suppress(ValueError):
            password = urlsplit(url or "").password or ""
            found += [password, unquote(password)]
    folders = settings.folders
    for path in (folders.token_file, folders.ray_token_file, settings.ray_auth_token_path):
        with suppress(OSError):
            found += [] if path is None else [path.read_text().strip()]
    return found


class Plain(logging.Formatter):
    """The standard library's own format, without secrets."""

    def format(self, record: logging.LogRecord) -> str:
        """The lines of a record."""
        return scrubbed(super().format(record))


class Structured(logging.Formatter):
    """What both formats of servers share: the fields of a record, in order."""

    def __init__(self, fixed: Mapping[str, Any] | None = None) -> None:
        super().__init__()
        self._fixed = dict(fixed or {})

    def format(self, record: logging.LogRecord) -> str:
        """The record as one line."""
        # Values before they are quoted, and the line for fields that are named like secrets.
        fields = {name: _told(value) for name, value in self._fields(record).items()}
        return scrubbed(self._line(fields))

    def _line(self, fields: Mapping[str, Any]) -> str:
        raise AssertionError("each format has its own")

    def _fields(self, record: logging.LogRecord) -> dict[str, Any]:
        at = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        fields = {
            "time": at.replace("+00:00", "Z"),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
            **getattr(record, "fields", {}),
            **self._fixed,
            **_context.get(),
        }
        if record.exc_info:
            fields["exception"] = self.formatException(record.exc_info)
        return fields


class KeyValues(Structured):
    """``time=… level=INFO logger=… message="…"``; what is no plain word is quoted as JSON."""

    def _line(self, fields: Mapping[str, Any]) -> str:
        return " ".join(f"{name}={_quoted(value)}" for name, value in fields.items())


class JsonLines(Structured):
    """One JSON object a record."""

    def _line(self, fields: Mapping[str, Any]) -> str:
        return json.dumps(fields, ensure_ascii=False)


def _told(value: Any) -> Any:
    return value if isinstance(value, int | float | None) else scrubbed(str(value))


def _quoted(value: Any) -> str:
    text = str(value)
    return text if _PLAIN_VALUE.fullmatch(text) else json.dumps(text, ensure_ascii=False)


def _uncaught(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    if issubclass(kind, KeyboardInterrupt):
        sys.__excepthook__(kind, error, trace)
    else:
        log.critical("ended by an error", exc_info=(kind, error, trace))
