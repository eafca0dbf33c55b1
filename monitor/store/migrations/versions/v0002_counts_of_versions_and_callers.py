"""Counts of model versions and busy callers beside those of the whole."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """From 0001 to 0002: history is counted anew by itself."""
    op.add_column("profiles", sa.Column("groups", sa.LargeBinary(), nullable=True))


def downgrade() -> None:
    """Back to 0001."""
    op.drop_column("profiles", "groups")
