"""The registry: optimizers, immutable versions, aliases and their history.

The models' naming convention completes the names of CHECKs: `number` becomes `ck_versions_number`.
"""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

NEVER_CHANGED = ("versions", "alias_moves")


def upgrade() -> None:
    op.create_table(
        "optimizers",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("name", sa.String(64), nullable=False),
        sa.Column("description", sa.Text(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_optimizers"),
        sa.UniqueConstraint("name", name="uq_optimizers_name"),
        sa.CheckConstraint("length(name) BETWEEN 1 AND 64 AND name = lower(name)", name="name"),
    )
    op.create_table(
        "versions",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("optimizer_id", sa.Integer(), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("sha256", sa.String(64), nullable=False),
        sa.Column("weights", sa.LargeBinary(), nullable=False),
        sa.Column("architecture", sa.JSON(), nullable=False),
        sa.Column("recipe", sa.JSON(), nullable=True),
        sa.Column("metrics", sa.JSON(), nullable=False),
        sa.Column("environment", sa.JSON(), nullable=False),
        sa.Column("parent_id", sa.Integer(), nullable=True),
        sa.Column("run", sa.String(64), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_versions"),
        sa.UniqueConstraint("optimizer_id", "number", name="uq_versions_optimizer_id_number"),
        sa.ForeignKeyConstraint(
            ["optimizer_id"], ["optimizers.id"], name="fk_versions_optimizer_id", ondelete="RESTRICT"
        ),
        sa.ForeignKeyConstraint(["parent_id"], ["versions.id"], name="fk_versions_parent_id", ondelete="RESTRICT"),
        sa.CheckConstraint("number >= 1", name="number"),
        sa.CheckConstraint("length(sha256) = 64", name="sha256"),
        sa.CheckConstraint("length(weights) > 0", name="weights"),
        sa.CheckConstraint("parent_id <> id", name="parent"),
    )
    op.create_index("ix_versions_optimizer_id_sha256", "versions", ["optimizer_id", "sha256"])
    op.create_index("ix_versions_parent_id", "versions", ["parent_id"])
    op.create_index("ix_versions_run", "versions", ["run"])
    op.create_table(
        "aliases",
        sa.Column("optimizer_id", sa.Integer(), nullable=False),
        sa.Column("alias", sa.String(64), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("optimizer_id", "alias", name="pk_aliases"),
        _version_key("aliases"),
        sa.CheckConstraint("length(alias) BETWEEN 1 AND 64 AND alias = lower(alias)", name="alias"),
    )
    op.create_table(
        "alias_moves",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("optimizer_id", sa.Integer(), nullable=False),
        sa.Column("alias", sa.String(64), nullable=False),
        sa.Column("number", sa.Integer(), nullable=True),
        sa.Column("moved_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("moved_by", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_alias_moves"),
        sa.ForeignKeyConstraint(
            ["optimizer_id"], ["optimizers.id"], name="fk_alias_moves_optimizer_id", ondelete="RESTRICT"
        ),
        _version_key("alias_moves"),
        sa.CheckConstraint("length(moved_by) > 0", name="moved_by"),
    )
    op.create_index("ix_alias_moves_optimizer_id_id", "alias_moves", ["optimizer_id", "id"])
    for table in NEVER_CHANGED:
        _forbid_changes(table)


def downgrade() -> None:
    for table in ("alias_moves", "aliases", "versions", "optimizers"):
        op.drop_table(table)
    if op.get_bind().dialect.name == "postgresql":
        op.execute("DROP FUNCTION optserve_refuse_change()")


def _version_key(table: str) -> sa.ForeignKeyConstraint:
    return sa.ForeignKeyConstraint(
        ["optimizer_id", "number"],
        ["versions.optimizer_id", "versions.number"],
        name=f"fk_{table}_optimizer_id_number",
        ondelete="RESTRICT",
    )


def _forbid_changes(table: str) -> None:
    message = f"rows of {table} are never changed or removed"
    if op.get_bind().dialect.name == "sqlite":
        for event in ("UPDATE", "DELETE"):
            op.execute(
                f"CREATE TRIGGER {table}_no_{event.lower()} BEFORE {event} ON {table} "
                f"BEGIN SELECT RAISE(ABORT, '{message}'); END"
            )
        return
    op.execute(
        "CREATE OR REPLACE FUNCTION optserve_refuse_change() RETURNS trigger LANGUAGE plpgsql AS "
        "$$ BEGIN RAISE EXCEPTION 'rows of % are never changed or removed', TG_TABLE_NAME; END $$"
    )
    op.execute(
        f"CREATE TRIGGER {table}_no_change BEFORE UPDATE OR DELETE ON {table} "
        "FOR EACH ROW EXECUTE FUNCTION optserve_refuse_change()"
    )
