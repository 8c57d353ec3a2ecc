"""The base of every wire model."""

from pydantic import BaseModel, ConfigDict


class Wire(BaseModel):
    """Frozen, and open to fields of newer servers: those are kept and reachable as attributes."""

    model_config = ConfigDict(extra="allow", frozen=True, protected_namespaces=())
