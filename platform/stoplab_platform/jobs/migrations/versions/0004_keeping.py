"""What a token may do and when it was used; events of a project; leases; an index to count by."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

LEASES = ("webhook", "retention")


def upgrade() -> None:
    with op.batch_alter_table("tokens") as tokens:
        tokens.add_column(sa.Column("scopes", sa.JSON()))
        tokens.add_column(sa.Column("last_used_at", sa.DateTime(timezone=True)))
    with op.batch_alter_table("events") as events:
        events.alter_column("job_id", existing_type=sa.String(40), nullable=True)
        events.add_column(sa.Column("project", sa.String(120)))
    op.create_index("ix_events_at", "events", ["at"])
    op.create_index("ix_jobs_counted", "jobs", ["hidden", "state", "kind"])
    leases = sa.table("leases", *map(sa.column, ("name", "holder", "expires")))
    op.bulk_insert(leases, [{"name": name, "holder": "", "expires": 0.0} for name in LEASES])


def downgrade() -> None:
    names = ", ".join(f"'{name}'" for name in LEASES)
    op.execute(f"DELETE FROM leases WHERE name IN ({names})")
    op.drop_index("ix_jobs_counted", "jobs")
    op.drop_index("ix_events_at", "events")
    op.execute("DELETE FROM events WHERE job_id IS NULL")
    with op.batch_alter_table("events") as events:
        events.drop_column("project")
        events.alter_column("job_id", existing_type=sa.String(40), nullable=False)
    with op.batch_alter_table("tokens") as tokens:
        tokens.drop_column("last_used_at")
        tokens.drop_column("scopes")
