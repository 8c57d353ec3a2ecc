"""The reports of files that were made last."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Hashable

from tunewright.rows.report.models import DataReport

_MOST = 64
"""Reports, of some 100 kB each at most."""


class KeptReports:
    """By all that a report is made of: the content of a file never changes, and its report stays true."""

    def __init__(self) -> None:
        self._kept: OrderedDict[Hashable, DataReport] = OrderedDict()
        self._lock = threading.Lock()

    def find(self, key: Hashable) -> DataReport | None:
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
            return self._kept.get(key)

    def keep(self, key: Hashable, report: DataReport) -> None:
        with self._lock:
            self._kept[key] = report
            while len(self._kept) > _MOST:
                self._kept.popitem(last=False)
