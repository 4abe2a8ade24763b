"""Idempotency keys: a request that creates something, sent again under its key, creates nothing more."""

from collections import OrderedDict

from optserve_server.sessions.errors import IdempotencyConflict

MAX_KEYS = 10_000


class IdempotencyKeys:
    """The newest keys, each with its request's fingerprint and the id of what the request created."""

    def __init__(self) -> None:
        self._created: OrderedDict[str, tuple[str, str]] = OrderedDict()

    def find(self, key: str, fingerprint: str) -> str | None:
        """What a request under this key created, if there was one.

        Raises:
            IdempotencyConflict: there was one, with another fingerprint.
        """
        before, created = self._created.get(key, (fingerprint, None))
        if before != fingerprint:
            raise IdempotencyConflict(key)
        return created

    def remember(self, key: str, fingerprint: str, created: str) -> None:
        """Keep what the request under this key created; the oldest keys are forgotten."""
        self._created[key] = (fingerprint, created)
        if len(self._created) > MAX_KEYS:
            self._created.popitem(last=False)
