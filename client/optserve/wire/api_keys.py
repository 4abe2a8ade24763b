"""API keys: their scopes, and the JSON bodies of `/v1/api-keys`."""

from dataclasses import dataclass
from typing import Any, ClassVar

from optserve.wire.limits import Limits
from optserve.wire.schema import REPLY, REQUEST, Number

CLIENT, ADMIN = "client", "admin"
SCOPES = (CLIENT, ADMIN)
"""What a key may do: train and read; or, with `admin`, change what is served as well."""

ANONYMOUS = "anonymous"
"""Who acts on a server that is open to everybody; no key has this name."""


@dataclass(slots=True)
class ApiKeyRequest:
    """Ask for a new API key."""

    name: str
    """What people call it: of one unrevoked key at a time, 1 to 64 characters."""
    scope: str
    """`client` or `admin`."""
    expires_in_days: Number | None = None
    """Absent: it never expires."""
    limits: Limits | None = None
    """Its own limits; what is absent is as the server's settings say."""

    __pydantic_config__: ClassVar[Any] = REQUEST


@dataclass(slots=True)
class ApiKeyInfo:
    """An API key, without the key."""

    id: int
    name: str
    scope: str
    prefix: str
    """How the key begins."""
    created_at: str
    expires_at: str | None
    """From then on it is refused; null: never."""
    last_used_at: str | None
    """Some seconds behind; null: never."""
    revoked_at: str | None
    limits: Limits
    """Its own; null: as the server's settings say."""

    __pydantic_config__: ClassVar[Any] = REPLY


@dataclass(slots=True)
class NewApiKey(ApiKeyInfo):
    """An API key just made."""

    key: str
    """What to send as `Authorization: Bearer KEY`. It is shown this once: the server keeps only its SHA-256."""
