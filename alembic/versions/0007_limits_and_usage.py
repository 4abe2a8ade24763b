"""API keys have limits of their own; what each name has used is counted."""

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("api_keys", sa.Column("limits", sa.JSON(), nullable=True))
    op.create_table(
        "usage",
        sa.Column("owner", sa.String(64), nullable=False),
        sa.Column("requests", sa.BigInteger(), nullable=False),
        sa.Column("steps", sa.BigInteger(), nullable=False),
        sa.Column("bytes_received", sa.BigInteger(), nullable=False),
        sa.Column("bytes_sent", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("owner", name="pk_usage"),
    )


def downgrade() -> None:
    op.drop_table("usage")
    op.drop_column("api_keys", "limits")
