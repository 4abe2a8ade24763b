"""Cells of evaluations have the fingerprint of what they depend on, so that none is computed twice."""

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("evaluation_cells", sa.Column("fingerprint", sa.String(64)))
    op.create_index(op.f("ix_evaluation_cells_fingerprint"), "evaluation_cells", ["fingerprint"])


def downgrade() -> None:
    op.drop_index(op.f("ix_evaluation_cells_fingerprint"), "evaluation_cells")
    op.drop_column("evaluation_cells", "fingerprint")
