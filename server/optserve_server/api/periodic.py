"""What a server does again and again beside its requests."""

import asyncio
from collections.abc import Awaitable, Callable

import structlog
from sqlalchemy.exc import SQLAlchemyError

log = structlog.get_logger(__name__)


class Periodic:
    """Does some work with the database every `seconds`, and once more at the end where it is closed with `last`."""

    def __init__(self, seconds: float, work: Callable[[], Awaitable[None]], failing: str) -> None:
        """`failing` is what the log says while the database cannot be reached; the next time may go well."""
        self._seconds = seconds
        self._work = work
        self._failing = failing
        self._closing = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin; the first time is `seconds` from now."""
        self._task = asyncio.create_task(self._repeat())

    async def close(self, *, last: bool = False) -> None:
        """Stop, once the work in hand is done."""
        self._closing.set()
        if self._task is not None:
            await self._task
        if last:
            await self._attempt()

    async def _repeat(self) -> None:
        while not await self._closes_within(self._seconds):
            await self._attempt()

    async def _attempt(self) -> None:
        try:
            await self._work()
        except SQLAlchemyError as error:
            log.warning(self._failing, reason=str(error).partition("\n")[0])

    async def _closes_within(self, seconds: float) -> bool:
        try:
            await asyncio.wait_for(self._closing.wait(), seconds)
        except TimeoutError:
            return False
        return True
