"""What is written into the audit trail, and when.

Whoever begins an act says so once, with `acting`. The first transaction that writes meanwhile takes the act's row with
it (`Database.session`), so that neither is there without the other. An act that comes to nothing is written apart.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

DONE, REFUSED, FAILED = "done", "refused", "failed"


@dataclass(slots=True)
class Act:
    """Something that somebody does who may change what is served."""

    actor: str
    """The name of the API key; of the user, where it is a command on the database itself."""
    address: str
    """From where: of the network, or in words."""
    action: str
    """The operation, as the OpenAPI document names it."""
    target: str
    """What it is done to: the path of the request."""
    details: dict[str, Any] | None = None
    """What was asked for: the body of the request, or its length where that is long or not JSON."""
    is_written: bool = False


_current: ContextVar[Act | None] = ContextVar("act", default=None)


def current() -> Act | None:
    """The act that goes on in this context and is not written yet."""
    act = _current.get()
    return None if act is None or act.is_written else act


def begin(act: Act) -> None:
    """Let this be what goes on, in the context of one request."""
    _current.set(act)


@contextmanager
def acting(act: Act) -> Iterator[None]:
    """Let this be what goes on, as long as the block lasts."""
    token = _current.set(act)
    try:
        yield
    finally:
        _current.reset(token)
