"""The base class of the types."""

from pydantic import BaseModel, ConfigDict


class Wire(BaseModel):
    """A frozen model. Fields of newer servers are kept and can be read as attributes."""

    model_config = ConfigDict(extra="allow", frozen=True, protected_namespaces=())
