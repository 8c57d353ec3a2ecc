"""The route of the audit log."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..types import AuditLog
from .call import Call
from .pages import PageData, list_call


def audit_logs(params: Mapping[str, Any]) -> Call[PageData[AuditLog]]:
    return list_call("/organization/audit_logs", AuditLog.model_validate, params)
