"""Meta-training runs: leased by workers, with a row of metrics an outer step and a training checkpoint.

The models' naming convention completes the names of CHECKs: `status` becomes `ck_meta_training_runs_status`.
"""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "meta_training_runs",
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
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("started_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("finished_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("name", sa.String(64), nullable=False),
        sa.Column("recipe", sa.JSON(), nullable=False),
        sa.Column("start_from_id", sa.Integer(), nullable=True),
        sa.Column("outer_steps", sa.Integer(), nullable=False),
        sa.Column("outer_step", sa.Integer(), nullable=False),
        sa.Column("seconds_per_outer_step", sa.Double(), nullable=True),
        sa.Column("idempotency_key", sa.String(255), nullable=True),
        sa.Column("fingerprint", sa.String(64), nullable=False),
        sa.PrimaryKeyConstraint("number", name="pk_meta_training_runs"),
        sa.UniqueConstraint("id", name="uq_meta_training_runs_id"),
        sa.UniqueConstraint("owner", "idempotency_key", name="uq_meta_training_runs_owner_idempotency_key"),
        sa.ForeignKeyConstraint(
            ["start_from_id"], ["versions.id"], name="fk_meta_training_runs_start_from_id", ondelete="RESTRICT"
        ),
        *_state_machine(),
        sa.CheckConstraint("outer_step BETWEEN 0 AND outer_steps", name="outer_step"),
        sa.CheckConstraint("status <> 'succeeded' OR outer_step = outer_steps", name="succeeded"),
    )
    waiting = sa.text("status IN ('queued', 'running')")
    op.create_index(
        "ix_meta_training_runs_deaths_number",
        "meta_training_runs",
        ["deaths", "number"],
        sqlite_where=waiting,
        postgresql_where=waiting,
    )
    op.create_index("ix_meta_training_runs_start_from_id", "meta_training_runs", ["start_from_id"])
    op.create_table(
        "meta_training_metrics",
        sa.Column("run_number", sa.Integer(), nullable=False),
        sa.Column("outer_step", sa.Integer(), nullable=False),
        sa.Column("meta_loss", sa.Double(), nullable=True),
        sa.Column("meta_loss_held_out", sa.Double(), nullable=True),
        sa.Column("details", sa.JSON(), nullable=False),
        sa.PrimaryKeyConstraint("run_number", "outer_step", name="pk_meta_training_metrics"),
        _run_key("meta_training_metrics"),
        sa.CheckConstraint("outer_step >= 1", name="outer_step"),
    )
    op.create_table(
        "training_checkpoints",
        sa.Column("run_number", sa.Integer(), nullable=False),
        sa.Column("outer_step", sa.Integer(), nullable=False),
        sa.Column("data", sa.LargeBinary(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("run_number", name="pk_training_checkpoints"),
        _run_key("training_checkpoints"),
        sa.CheckConstraint("outer_step >= 0", name="outer_step"),
        sa.CheckConstraint("length(data) > 0", name="data"),
    )
    op.add_column("versions", sa.Column("outer_step", sa.Integer(), nullable=True))
    op.drop_index("ix_versions_run", "versions")
    op.create_index("ix_versions_run_outer_step", "versions", ["run", "outer_step"], unique=True)


def downgrade() -> None:
    op.drop_index("ix_versions_run_outer_step", "versions")
    op.create_index("ix_versions_run", "versions", ["run"])
    op.drop_column("versions", "outer_step")
    for table in ("training_checkpoints", "meta_training_metrics", "meta_training_runs"):
        op.drop_table(table)


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


def _run_key(table: str) -> sa.ForeignKeyConstraint:
    return sa.ForeignKeyConstraint(
        ["run_number"], ["meta_training_runs.number"], name=f"fk_{table}_run_number", ondelete="CASCADE"
    )
