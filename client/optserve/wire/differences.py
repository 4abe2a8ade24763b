"""The JSON body of a comparison of two versions."""

from dataclasses import dataclass
from typing import Any, ClassVar

from optserve.wire.schema import REPLY


@dataclass(slots=True)
class Difference:
    """One value in which two versions differ."""

    path: str
    """`architecture.hidden_size`, `recipe.tasks[0].weight`, …"""
    before: Any
    """Null where the first version has no such value."""
    after: Any
    """Null where the second version has no such value."""

    __pydantic_config__: ClassVar[Any] = REPLY


@dataclass(slots=True)
class VersionDiff:
    """In what two versions differ."""

    before: str
    """`NAME@N`"""
    after: str
    """`NAME@N`"""
    items: list[Difference]
    """In the order of their paths; none where only φ differs."""

    __pydantic_config__: ClassVar[Any] = REPLY
