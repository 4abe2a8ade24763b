"""One training loop's session: what it is, and the order of its steps."""

import asyncio
import time
from datetime import UTC, datetime, timedelta

from optserve_server.sessions.awake import Awake
from optserve_server.sessions.description import Description, Settings
from optserve_server.sessions.errors import SessionExpired, SessionNotFound
from optserve_server.sessions.log import SessionLog


class Session:
    """A session, awake or asleep: asleep it has no `awake` part, only files, and takes no memory to speak of.

    Whoever holds its `turn` may change it. `next_step` is the only step that comes next.
    """

    def __init__(self, description: Description, settings: Settings, next_step: int, seconds: float) -> None:
        """A session that sleeps, and expires in so many seconds."""
        self.description = description
        self.id = description.id
        self.number = description.number
        self.owner = description.plan.owner
        self.layout = description.layout
        self.dtype = description.plan.dtype
        self.settings = settings
        self.next_step = next_step
        self.turn = asyncio.Lock()
        self.awake: Awake | None = None
        self.log: SessionLog | None = None  # as long as it is awake
        self.used_at = time.monotonic()
        self._closed = False
        self._expired = False
        self._live_for(seconds)

    def hold(self, awake: Awake, log: SessionLog) -> None:
        """Be awake."""
        self.awake, self.log = awake, log
        self.next_step = awake.next_step

    def let_go(self) -> Awake | None:
        """Be asleep; what was awake is the caller's."""
        awake, log = self.awake, self.log
        self.awake = self.log = None
        if log is not None:
            log.close()
        return awake

    def prolong(self) -> None:
        """Let the session expire `ttl_seconds` from now."""
        self._live_for(self.settings.ttl_seconds)

    def _live_for(self, seconds: float) -> None:
        self.deadline = time.monotonic() + seconds
        self.expires_at = datetime.now(UTC) + timedelta(seconds=seconds)

    @property
    def overdue(self) -> bool:
        """Whether it has not been used for its `ttl_seconds`."""
        # A session whose step is being taken is in use, even if the step takes longer than the session lives.
        return self.deadline <= time.monotonic() and not self.turn.locked()

    def is_idle(self, seconds: float) -> bool:
        """Whether it is awake for nothing, since so many seconds."""
        return self.awake is not None and not self.turn.locked() and self.used_at + seconds < time.monotonic()

    def end(self, *, expired: bool) -> None:
        """Let nobody use it any more."""
        self._closed, self._expired = True, expired

    @property
    def closed(self) -> bool:
        """Whether it has ended."""
        return self._closed

    def require_open(self) -> None:
        """Check that it has not ended.

        Raises:
            SessionNotFound, SessionExpired: it has.
        """
        if self._expired:
            raise SessionExpired(self.id, rfc3339(self.expires_at))
        if self._closed:
            raise SessionNotFound(self.id)


def rfc3339(moment: datetime) -> str:
    """A moment in UTC as JSON carries it."""
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")
