"""Nothing yet: the number of the exports' migration."""

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    """Changes nothing."""
