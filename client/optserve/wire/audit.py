"""The JSON of `/v1/audit`."""

from dataclasses import dataclass
from typing import Any, ClassVar

from optserve.wire.schema import REPLY


@dataclass(slots=True)
class AuditEntry:
    """One act of somebody who may change what is served, or keys."""

    id: int
    at: str
    actor: str
    """The name of the API key, `anonymous` on an open server; of the user, where it was a command on the database."""
    address: str
    """From where."""
    action: str
    """The operation, as the OpenAPI document names it: `create_api_key`."""
    target: str
    """The path of the request."""
    details: dict[str, Any] | None
    """The body of the request; its `bytes`, where it is long or not JSON."""
    outcome: str
    """`done`, `refused` (nothing has changed, for a reason that the caller was told), or `failed` (by a fault)."""

    __pydantic_config__: ClassVar[Any] = REPLY
