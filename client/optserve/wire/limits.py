"""What an API key may use, and what it uses: `limits` of `/v1/api-keys`, and `/v1/usage`."""

from dataclasses import dataclass
from typing import Any, ClassVar

from optserve.wire.schema import REQUEST, Number, WholeNumber


@dataclass(slots=True)
class Limits:
    """What one API key may have and do at most. What is absent is as the server's settings say."""

    sessions: WholeNumber | None = None
    """Sessions at once, those that sleep too."""
    coordinates: WholeNumber | None = None
    """Coordinates of all these sessions together."""
    bytes_in_flight: WholeNumber | None = None
    """Bytes of the bodies of its requests that are not answered yet."""
    requests_per_second: Number | None = None
    """On average; what was not used for a second may come at once."""
    runs: WholeNumber | None = None
    """Meta-training runs at once, those that wait too."""

    __pydantic_config__: ClassVar[Any] = REQUEST


@dataclass(slots=True)
class Usage:
    """What an API key uses now, what it has used so far, and its limits; null: no limit.

    What it has used so far is that of all keys that have had its name.
    """

    key: str
    limits: Limits
    sessions: int
    coordinates: int
    bytes_in_flight: int
    runs: int
    requests: int
    """So far."""
    steps: int
    """So far."""
    bytes_received: int
    """So far: of the bodies of requests."""
    bytes_sent: int
    """So far: of the bodies of replies."""

    __pydantic_config__: ClassVar[Any] = {"use_attribute_docstrings": True}
