"""Evaluations: leased by workers, with a row of curves for each optimizer on each task.

The models' naming convention completes the names of CHECKs: `status` becomes `ck_evaluations_status`.
"""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "evaluations",
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("id", sa.String(64), nullable=False),
        sa.Column("status", sa.String(16), nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("deaths", sa.Integer(), nullable=False),
        sa.Column("worker", sa.Text(), nullable=True),
        sa.Column("device", sa.Text(), nullable=True),
        sa.Column("lease_expires_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("cancel_requested", sa.Boolean(), nullable=False),
        sa.Column("error", sa.Text(), nullable=True),
        sa.Column("owner", sa.Text(), nullable=False),
        sa.Column("idempotency_key", sa.String(255), nullable=True),
        sa.Column("fingerprint", sa.String(64), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("started_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("finished_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("plan", sa.JSON(), nullable=False),
        sa.Column("cells", sa.Integer(), nullable=False),
        sa.Column("done", sa.Integer(), nullable=False),
        sa.Column("ranking", sa.JSON(), nullable=True),
        sa.PrimaryKeyConstraint("number", name="pk_evaluations"),
        sa.UniqueConstraint("id", name="uq_evaluations_id"),
        sa.UniqueConstraint("owner", "idempotency_key", name="uq_evaluations_owner_idempotency_key"),
        *_state_machine(),
        sa.CheckConstraint("done BETWEEN 0 AND cells", name="done"),
        sa.CheckConstraint("status <> 'succeeded' OR (done = cells AND ranking IS NOT NULL)", name="succeeded"),
    )
    waiting = sa.text("status IN ('queued', 'running')")
    op.create_index(
        "ix_evaluations_deaths_number",
        "evaluations",
        ["deaths", "number"],
        sqlite_where=waiting,
        postgresql_where=waiting,
    )
    op.create_table(
        "evaluation_cells",
        sa.Column("evaluation_number", sa.Integer(), nullable=False),
        sa.Column("task", sa.Integer(), nullable=False),
        sa.Column("optimizer", sa.Text(), nullable=False),
        sa.Column("curves", sa.JSON(), nullable=False),
        sa.PrimaryKeyConstraint("evaluation_number", "task", "optimizer", name="pk_evaluation_cells"),
        sa.ForeignKeyConstraint(
            ["evaluation_number"],
            ["evaluations.number"],
            name="fk_evaluation_cells_evaluation_number",
            ondelete="CASCADE",
        ),
        sa.CheckConstraint("task >= 0", name="task"),
    )


def downgrade() -> None:
    op.drop_table("evaluation_cells")
    op.drop_table("evaluations")


def _state_machine() -> list[sa.CheckConstraint]:
    over = "status IN ('succeeded', 'failed', 'cancelled')"
    checks = {
        "status": "status IN ('queued', 'running', 'succeeded', 'failed', 'cancelled')",
        "attempt": "attempt >= 1 AND deaths >= 0",
        "lease": "(status = 'running') = (lease_expires_at IS NOT NULL)",
        "worker": "status <> 'running' OR (worker IS NOT NULL AND started_at IS NOT NULL)",
        "cancel_requested": "NOT cancel_requested OR status IN ('running', 'cancelled')",
        "finished_at": f"({over}) = (finished_at IS NOT NULL)",
        "error": "(status = 'failed') = (error IS NOT NULL)",
    }
    return [sa.CheckConstraint(check, name=name) for name, check in checks.items()]
