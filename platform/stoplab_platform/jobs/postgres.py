"""Connections to PostgreSQL, none of which waits for ever.

The server's own limits end what is slow; the connection's end what no longer answers.
"""

from __future__ import annotations

from typing import Any, TypeVar

import psycopg
from psycopg.abc import PQGen
from psycopg.pq import TransactionStatus
from sqlalchemy import URL, Engine, create_engine, event

RV = TypeVar("RV")

CONNECT_TIMEOUT_S = 5
LOCK_TIMEOUT_S = 10
STATEMENT_TIMEOUT_S = 20
ANSWER_TIMEOUT_S = 30
"""A server that hangs, or a network that swallows everything."""
IDLE_TIMEOUT_S = 30
"""Of a transaction: a replica that hangs in one must not keep its locks."""
OPTIONS = (
    f"-c lock_timeout={LOCK_TIMEOUT_S}s -c statement_timeout={STATEMENT_TIMEOUT_S}s "
    f"-c idle_in_transaction_session_timeout={IDLE_TIMEOUT_S}s"
)


def limited_engine(url: URL) -> Engine:
    """An engine for everyday statements: short ones, and many."""
    engine = create_engine(
        url,
        isolation_level="READ COMMITTED",
        pool_pre_ping=True,  # after the server was away, no dead connection is used
        pool_timeout=LOCK_TIMEOUT_S,
        connect_args=_unless_given(url, {"connect_timeout": CONNECT_TIMEOUT_S, "options": OPTIONS}),
    )
    event.listen(engine, "do_connect", _connect)
    return engine


def patient_engine(url: URL) -> Engine:
    """An engine for migrations, which may take as long as they take."""
    given = _unless_given(url, {"connect_timeout": CONNECT_TIMEOUT_S})
    return create_engine(url, connect_args=given)


class LimitedConnection(psycopg.Connection[Any]):
    """Gives up a server that does not answer."""

    def wait(self, gen: PQGen[RV], interval: float = 0.1, timeout: float | None = None) -> RV:
        """As the base class, but not for ever."""
        try:
            return super().wait(gen, interval, timeout or ANSWER_TIMEOUT_S)
        except psycopg.OperationalError as error:
            if self.pgconn.transaction_status != TransactionStatus.ACTIVE:
                raise
            self.close()  # its answer may come at any time, to another question
            raise psycopg.OperationalError(f"no answer for {ANSWER_TIMEOUT_S} s") from error


def _unless_given(url: URL, settings: dict[str, Any]) -> dict[str, Any]:
    """What the address itself does not say."""
    return {name: value for name, value in settings.items() if name not in url.query}


def _connect(_dialect: Any, _record: Any, words: list[Any], settings: dict[str, Any]) -> Any:
    return LimitedConnection.connect(*words, **settings)
