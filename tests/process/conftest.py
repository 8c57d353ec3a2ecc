"""A client of the service of a file, or of the one that the tests of a folder share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from tests.engine.conftest import Service

from tunewright_client import Tunewright


@pytest.fixture
def client(service: Service) -> Iterator[Tunewright]:
    with service.client(timeout=120) as opened:
        yield opened
