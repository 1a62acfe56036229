"""Queries about API tokens."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Sequence
from datetime import UTC, datetime

from sqlalchemy import select, update
from ulid import ULID

from stoplab_platform.errors import NotFound
from stoplab_platform.jobs.database import Database, retried
from stoplab_platform.jobs.models import Principal, Role, Token
from stoplab_platform.jobs.tables import TokenRow


class TokenStore:
    """Tokens, hashed at rest: the secret itself is shown once and kept nowhere."""

    def __init__(self, database: Database) -> None:
        self._database = database

    @retried
    def create_token(
        self,
        name: str,
        *,
        owner: str,
        project: str,
        role: Role,
        expires_at: datetime | None = None,
        secret: str | None = None,
    ) -> tuple[Token, str]:
        """A new token and its secret (``secret`` itself when given: 32 random bytes or more)."""
        secret = secret or f"stl_{secrets.token_urlsafe(32)}"
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
        )
        with self._database.writing() as session:
            session.add(row)
            session.flush()
            return _token(row), secret

    def principal(self, secret: str) -> Principal | None:
        """Whose secret this is; None when unknown, revoked or expired."""
        with self._database.reading() as session:
            row = session.scalars(
                select(TokenRow).where(TokenRow.secret_sha256 == _sha256(secret))
            ).one_or_none()
            if row is None or row.revoked_at is not None:
                return None
            if row.expires_at is not None and row.expires_at <= datetime.now(UTC):
                return None
            return Principal(owner=row.owner, project=row.project, role=Role(row.role))

    def tokens(self, project: str) -> Sequence[Token]:
        """All tokens of a project, oldest first."""
        with self._database.reading() as session:
            rows = session.scalars(
                select(TokenRow).where(TokenRow.project == project).order_by(TokenRow.id)
            )
            return [_token(row) for row in rows]

    @retried
    def revoke_token(self, token_id: str, project: str | None = None) -> None:
        """End a token now; NotFound when there is none (in that project)."""
        with self._database.writing() as session:
            query = update(TokenRow).where(TokenRow.id == token_id)
            if project is not None:
                query = query.where(TokenRow.project == project)
            done = session.connection().execute(query.values(revoked_at=datetime.now(UTC)))
            if done.rowcount == 0:
                raise NotFound(f"no token {token_id}")


def _sha256(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()


def _token(row: TokenRow) -> Token:
    return Token(
        id=row.id,
        name=row.name,
        project=row.project,
        owner=row.owner,
        role=Role(row.role),
        created_at=row.created_at,
        expires_at=row.expires_at,
        revoked_at=row.revoked_at,
    )
