"""Queries about API tokens."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Collection, Sequence
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import Row, bindparam, or_, select, update
from sqlalchemy.orm import Session
from ulid import ULID

from stoplab_platform.errors import NotFound, StoreUnavailable
from stoplab_platform.jobs.database import retried
from stoplab_platform.jobs.event_store import EventStore
from stoplab_platform.jobs.models import Principal, Role, Scope, Token
from stoplab_platform.jobs.rows import event_row
from stoplab_platform.jobs.tables import TokenRow

PREFIX = "stl_"
"""Every token starts so: scanners find one that was committed (`stl_[A-Za-z0-9_-]{43,}`)."""
USED_EVERY = timedelta(minutes=1)
"""How exactly it is kept when a token was last used: at most one write in this time."""
# Made once, and its row taken as it is: this comes before everything that is asked.
_BY_SECRET = select(TokenRow.__table__).where(TokenRow.secret_sha256 == bindparam("sha256"))


class TokenStore(EventStore):
    """Tokens, hashed at rest: the secret itself is shown once and kept nowhere.

    The database compares hashes of 256 random bits. How long that takes tells nobody how near a
    guess came, for no one can choose the hash of what he sends.
    """

    @retried
    def create_token(
        self,
        name: str,
        *,
        owner: str,
        project: str,
        role: Role,
        expires_at: datetime | None = None,
        scopes: Collection[Scope] | None = None,
        secret: str | None = None,
        actor: str = "lab",
    ) -> tuple[Token, str]:
        """A new token and its secret (``secret`` itself when given: 32 random bytes or more)."""
        secret = secret or _new_secret()
        row = TokenRow(
            id=f"t_{str(ULID()).lower()}",
            name=name,
            project=project,
            owner=owner,
            role=role,
            secret_sha256=_sha256(secret),
            created_at=datetime.now(UTC),
            expires_at=expires_at,
            revoked_at=None,
            scopes=None if scopes is None else sorted(scopes),
            last_used_at=None,
        )
        with self._database.writing() as session:
            session.add(row)
            _note(session, row, actor, "token.create", f"{role} for {owner}")
            session.flush()
            return _token(row), secret

    def principal(self, secret: str) -> Principal | None:
        """Whose secret this is; None when unknown, revoked or expired."""
        with self._database.reading() as session:
            row = session.execute(_BY_SECRET, {"sha256": _sha256(secret)}).one_or_none()
            now = datetime.now(UTC)
            if row is None or row.revoked_at is not None:
                return None
            if row.expires_at is not None and row.expires_at <= now:
                return None
            token = _token(row)
        if token.last_used_at is None or token.last_used_at < now - USED_EVERY:
            with suppress(StoreUnavailable):  # who may read must not be refused for this
                self._used(token.id, now)
        return Principal(token.owner, token.project, token.role, token.scopes, token.id)

    def lasts(self, token_id: str) -> bool:
        """Whether a token is neither revoked nor expired."""
        with self._database.reading() as session:
            row = session.get(TokenRow, token_id)
            return row is not None and (
                row.revoked_at is None
                and (row.expires_at is None or row.expires_at > datetime.now(UTC))
            )

    def tokens(self, project: str) -> Sequence[Token]:
        """All tokens of a project, oldest first."""
        with self._database.reading() as session:
            rows = session.scalars(
                select(TokenRow).where(TokenRow.project == project).order_by(TokenRow.id)
            )
            return [_token(row) for row in rows]

    @retried
    def rotate_token(self, token_id: str, project: str, *, actor: str = "lab") -> tuple[Token, str]:
        """A new secret for a token; the old one ends at once. One that expires lives as long again.

        NotFound where the project has no such token, or it was revoked.
        """
        secret = _new_secret()
        with self._database.writing() as session:
            row = _row(session, token_id, project)
            if row.revoked_at is not None:
                raise NotFound(f"the token {token_id} is revoked; make a new one")
            now = datetime.now(UTC)
            if row.expires_at is not None:
                row.expires_at = now + (row.expires_at - row.created_at)
            row.created_at = now
            row.secret_sha256 = _sha256(secret)
            _note(session, row, actor, "token.rotate", f"{row.role} for {row.owner}")
            session.flush()
            return _token(row), secret

    @retried
    def revoke_token(
        self, token_id: str, project: str | None = None, *, actor: str = "lab"
    ) -> None:
        """End a token now; NotFound when there is none (in that project)."""
        with self._database.writing() as session:
            row = _row(session, token_id, project)
            if row.revoked_at is None:
                row.revoked_at = datetime.now(UTC)
                _note(session, row, actor, "token.revoke", f"{row.role} for {row.owner}")

    @retried
    def _used(self, token_id: str, now: datetime) -> None:
        with self._database.writing() as session:
            stale = or_(TokenRow.last_used_at.is_(None), TokenRow.last_used_at < now - USED_EVERY)
            session.execute(
                update(TokenRow).where(TokenRow.id == token_id, stale).values(last_used_at=now)
            )


def _row(session: Session, token_id: str, project: str | None) -> TokenRow:
    row = session.get(TokenRow, token_id, with_for_update=True)
    if row is None or (project is not None and row.project != project):
        raise NotFound(f"no token {token_id}")
    return row


def _note(session: Session, row: TokenRow, actor: str, verb: str, what: str) -> None:
    message = f"{row.id} {row.name}: {what}"
    session.add(event_row(None, actor, verb, project=row.project, message=message))


def _new_secret() -> str:
    return f"{PREFIX}{secrets.token_urlsafe(32)}"


def _sha256(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()


def _token(row: TokenRow | Row[Any]) -> Token:
    return Token(
        id=row.id,
        name=row.name,
        project=row.project,
        owner=row.owner,
        role=Role(row.role),
        created_at=row.created_at,
        expires_at=row.expires_at,
        revoked_at=row.revoked_at,
        scopes=None if row.scopes is None else frozenset(map(Scope, row.scopes)),
        last_used_at=row.last_used_at,
    )
