"""uvicorn's server, ended by a drain: what is in hand is answered, and whatever clients do it is over in time."""

import socket
from collections.abc import Callable
from types import FrameType

import structlog
import uvicorn

from optserve_server.api.traffic import Drain

log = structlog.get_logger(__name__)

DRAIN_SECONDS = 3.0
"""For the requests in hand. With the second below, and those in which the rooms close, a server is gone in ten."""

CLOSE_SECONDS = 1
"""For replies that nobody reads, and for connections that nobody closes."""


class DrainingServer(uvicorn.Server):
    """Listens on while it drains, so that whoever asks learns of it rather than finds nobody.

    `when_started` is called when the server listens, `when_told_to_stop` in the handler of the signal.
    """

    def __init__(
        self,
        config: uvicorn.Config,
        drain: Drain,
        *,
        when_started: Callable[[], None],
        when_told_to_stop: Callable[[], None],
    ) -> None:
        config.timeout_graceful_shutdown = CLOSE_SECONDS
        super().__init__(config)
        self._drain = drain
        self._when_started = when_started
        self._when_told_to_stop = when_told_to_stop

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Open the application, and listen."""
        await super().startup(sockets)
        if self.started:
            self._when_started()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Begin the drain: called when a signal comes. A second Ctrl-C ends it."""
        self._drain.begin()
        self._when_told_to_stop()
        super().handle_exit(sig, frame)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Wait for what is in hand; then close connections, listening sockets and the application."""
        # Not in the signal's handler, which may have interrupted another line of the log.
        log.info("draining", in_hand=len(self._drain.in_hand), at_most_seconds=DRAIN_SECONDS)
        if not self.force_exit:
            await self._drain.wait(DRAIN_SECONDS)
        await super().shutdown(sockets)
