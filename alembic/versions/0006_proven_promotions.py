"""The history of aliases says by which evaluation a champion took another's place."""

from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    # In SQL, for SQLite takes a new constraint only with a new column, which Alembic has no words for.
    op.execute(
        "ALTER TABLE alias_moves ADD COLUMN evaluation VARCHAR(64) "
        "CONSTRAINT ck_alias_moves_proof CHECK (NOT forced OR evaluation IS NULL)"
    )


def downgrade() -> None:
    op.drop_column("alias_moves", "evaluation")
