"""Idempotency keys: a request that creates something, sent again under its key, creates nothing more."""

from collections import OrderedDict

from optserve_server.sessions.errors import IdempotencyConflict

MAX_KEYS = 10_000


class IdempotencyKeys:
    """The newest keys of all owners, each with its request's fingerprint and the id of what the request created."""

    def __init__(self) -> None:
        self._created: OrderedDict[tuple[str, str], tuple[str, str]] = OrderedDict()

    def find(self, owner: str, key: str, fingerprint: str) -> str | None:
        """What a request of this owner under this key created, if there was one.

        Raises:
            IdempotencyConflict: there was one, with another fingerprint.
        """
        before, created = self._created.get((owner, key), (fingerprint, None))
        if before != fingerprint:
            raise IdempotencyConflict(key)
        return created

    def remember(self, owner: str, key: str, fingerprint: str, created: str) -> None:
        """Keep what the owner's request under this key created; the oldest keys are forgotten."""
        self._created[owner, key] = (fingerprint, created)
        if len(self._created) > MAX_KEYS:
            self._created.popitem(last=False)

    def forget(self, owner: str, key: str) -> None:
        """Let a request under this key create something again."""
        self._created.pop((owner, key), None)
