"""One training loop's session: what it is, and the order of its steps."""

import asyncio
import secrets
import time
from datetime import UTC, datetime, timedelta

from optserve_server.optimizers import hyperparameters
from optserve_server.sessions.awake import Awake
from optserve_server.sessions.errors import SessionExpired, SessionNotFound
from optserve_server.sessions.layout import Layout
from optserve_server.sessions.plan import Plan, ServedVersion


class Session:
    """A session, awake or asleep: asleep it has no `awake` part, and takes no memory to speak of.

    Whoever holds its `turn` may change it. `next_step` is the only step that comes next.
    """

    def __init__(self, number: int, version: ServedVersion, layout: Layout, plan: Plan) -> None:
        self.id = secrets.token_hex(16)
        self.number = number  # in the order of creation
        self.version = version
        self.layout = layout
        self.dtype = plan.dtype
        self.horizon = plan.horizon
        self.label = plan.label
        self.owner = plan.owner
        self.created_at = datetime.now(UTC)
        self.turn = asyncio.Lock()
        self.next_step = 0
        self.awake: Awake | None = None
        self._closed = False
        self._expired = False
        self.prolong(plan.ttl_seconds)

    def hold(self, awake: Awake) -> None:
        """Be awake, and take over what comes next and the hyperparameters."""
        self.awake = awake
        self.next_step = awake.next_step
        self.hyperparameters = hyperparameters(awake.optimizer)  # all of them; a learned optimizer has none

    def prolong(self, ttl_seconds: float | None = None) -> None:
        """Let the session expire `ttl_seconds` from now, or as long from now as it has always lived."""
        if ttl_seconds is not None:
            self.ttl_seconds = ttl_seconds
        self.deadline = time.monotonic() + self.ttl_seconds
        self.expires_at = datetime.now(UTC) + timedelta(seconds=self.ttl_seconds)

    @property
    def overdue(self) -> bool:
        """Whether it has not been used for its `ttl_seconds`."""
        # A session whose step is being taken is in use, even if the step takes longer than the session lives.
        return self.deadline <= time.monotonic() and not self.turn.locked()

    def end(self, *, expired: bool) -> None:
        """Let nobody use it any more."""
        self._closed, self._expired = True, expired

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
