"""API keys, of which only the SHA-256 is kept."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "api_keys",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("name", sa.String(64), nullable=False),
        sa.Column("scope", sa.String(8), nullable=False),
        sa.Column("sha256", sa.String(64), nullable=False),
        sa.Column("prefix", sa.String(16), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("last_used_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("revoked_at", sa.DateTime(timezone=True), nullable=True),
        sa.PrimaryKeyConstraint("id", name="pk_api_keys"),
        sa.UniqueConstraint("sha256", name="uq_api_keys_sha256"),
        sa.CheckConstraint("length(name) BETWEEN 1 AND 64", name="name"),
        sa.CheckConstraint("scope IN ('client', 'admin')", name="scope"),
        sa.CheckConstraint("length(sha256) = 64", name="sha256"),
        sa.CheckConstraint("expires_at > created_at", name="expires_at"),
    )
    unrevoked = sa.text("revoked_at IS NULL")
    op.create_index(
        "uq_api_keys_name", "api_keys", ["name"], unique=True, sqlite_where=unrevoked, postgresql_where=unrevoked
    )


def downgrade() -> None:
    op.drop_table("api_keys")
