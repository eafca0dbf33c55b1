"""Feedback is looked up by when it was received, too."""

from __future__ import annotations

from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """From 0002 to 0003."""
    op.create_index(op.f("ix_feedback_model_feedback_received_us"), "feedback", ["model", "received_us"])


def downgrade() -> None:
    """Back to 0002."""
    op.drop_index(op.f("ix_feedback_model_feedback_received_us"), "feedback")
