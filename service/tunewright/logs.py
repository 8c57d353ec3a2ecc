"""The logging configuration of every process of the service: lines on stderr."""

from __future__ import annotations

import logging
import sys


def configure_logging(level: str) -> None:
    """Log the service's own messages from `level` on, and other libraries' warnings."""
    logging.basicConfig(
        stream=sys.stderr,
        level=logging.WARNING,
        format="%(asctime)s %(levelname)-7s %(name)s: %(message)s",
        force=True,
    )
    logging.getLogger("tunewright").setLevel(level.upper())
