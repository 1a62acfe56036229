"""Lists by index: names in lower case, whose the labels are, ids ordered by their bytes."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

LISTS = {
    "ix_jobs_list": ["project", "hidden", "id", "name_key"],
    "ix_jobs_list_state": ["project", "hidden", "state", "id"],
    "ix_jobs_list_kind": ["project", "hidden", "kind", "id"],
    "ix_jobs_list_name": ["project", "hidden", "name_key", "id"],
}
PARTIAL = {
    "ix_jobs_unfinished": (
        "id",
        "state IN ('QUEUED', 'STARTING', 'RUNNING', 'RECOVERING', 'STOPPING')",
    ),
    "ix_jobs_unsettled": (
        "id",
        "settled IS false AND state IN ('PAUSED', 'SUCCEEDED', 'FAILED', 'CANCELLED')",
    ),
    "ix_jobs_retry_of": ("retry_of", "retry_of IS NOT NULL"),
    "ix_jobs_extends": ("extends", "extends IS NOT NULL"),
}
IDS = (
    ("jobs", "id"),
    ("jobs", "retry_of"),
    ("jobs", "extends"),
    ("job_labels", "job_id"),
    ("events", "job_id"),
    ("idempotency", "job_id"),
)


def upgrade() -> None:
    for name in ("ix_jobs_project_id", "ix_jobs_state", "ix_jobs_settled"):
        op.drop_index(name, "jobs")
    op.drop_index("ix_job_labels_key_value", "job_labels")
    _collate_ids("C")
    _new_columns()
    for name, columns in LISTS.items():
        op.create_index(name, "jobs", columns)
    for name, (column, where) in PARTIAL.items():
        condition = sa.text(where)
        op.create_index(name, "jobs", [column], sqlite_where=condition, postgresql_where=condition)
    op.create_index("ix_job_labels_list", "job_labels", ["project", "key", "value", "job_id"])


def downgrade() -> None:
    for name in (*LISTS, *PARTIAL):
        op.drop_index(name, "jobs")
    op.drop_index("ix_job_labels_list", "job_labels")
    op.drop_column("jobs", "name_key")
    op.drop_column("job_labels", "project")
    _collate_ids("default")
    op.create_index("ix_jobs_project_id", "jobs", ["project", "id"])
    op.create_index("ix_jobs_state", "jobs", ["state"])
    op.create_index("ix_jobs_settled", "jobs", ["settled"])
    op.create_index("ix_job_labels_key_value", "job_labels", ["key", "value"])


def _new_columns() -> None:
    op.add_column("jobs", sa.Column("name_key", _text(400), nullable=False, server_default=""))
    project = sa.Column("project", sa.String(120), nullable=False, server_default="")
    op.add_column("job_labels", project)
    jobs = sa.table("jobs", sa.column("id"), sa.column("name"), sa.column("name_key"))
    connection = op.get_bind()
    names = connection.execute(sa.select(jobs.c.id, jobs.c.name)).all()
    if names:
        one = sa.update(jobs).where(jobs.c.id == sa.bindparam("job"))
        connection.execute(
            one.values(name_key=sa.bindparam("key")),
            [{"job": job_id, "key": name.lower()} for job_id, name in names],
        )
    op.execute(
        "UPDATE job_labels SET project = "
        "(SELECT project FROM jobs WHERE jobs.id = job_labels.job_id)"
    )


def _collate_ids(collation: str) -> None:
    """PostgreSQL orders text by its language otherwise; SQLite always by bytes."""
    if op.get_bind().dialect.name != "postgresql":
        return
    for table, column in IDS:
        op.execute(
            f'ALTER TABLE {table} ALTER COLUMN {column} TYPE VARCHAR(40) COLLATE "{collation}"'
        )


def _text(length: int) -> sa.String:
    return sa.String(length).with_variant(sa.String(length, collation="C"), "postgresql")
