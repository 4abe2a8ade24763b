"""Turns: what is done to a session is done one after another, and long work beside the event loop."""

import asyncio
import os
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

from optserve_server.sessions.awake import Awake
from optserve_server.sessions.session import Session

T = TypeVar("T")

INLINE_BYTES = 64 << 10
"""Up to here a body is parsed on the event loop; that takes about 1 ms."""


@dataclass(frozen=True, slots=True)
class Turn:
    """Somebody's turn at a session."""

    session: Session
    awake: Awake
    threads: ThreadPoolExecutor

    async def do(self, work: Callable[[], T], parsed_bytes: int = 0) -> T:
        """Do `work`, beside the event loop if the session is large or many bytes are parsed."""
        if self.awake.is_small and parsed_bytes <= INLINE_BYTES:
            return work()
        return await asyncio.get_running_loop().run_in_executor(self.threads, work)


class Turns:
    """Gives turns at sessions. Called on the event loop."""

    def __init__(self) -> None:
        self._threads = ThreadPoolExecutor(max_workers=os.cpu_count() or 1, thread_name_prefix="session")

    async def act(self, session: Session, act: Callable[[Turn], Coroutine[Any, Any, T]]) -> T:
        """Do `act` when the session's turn comes, and to its end, whatever becomes of the caller.

        Raises:
            SessionNotFound, SessionExpired: the session went away before.
            SessionError: whatever `act` raises.
        """
        return await asyncio.shield(asyncio.create_task(self._act(session, act)))

    async def run(self, session: Session, work: Callable[[Awake], T], parsed_bytes: int = 0) -> T:
        """Do `work`, which changes nothing that has to last, when the session's turn comes.

        Raises:
            SessionNotFound, SessionExpired: the session went away before.
            SessionError: whatever `work` raises.
        """

        async def act(turn: Turn) -> T:
            return await turn.do(lambda: work(turn.awake), parsed_bytes)

        return await self.act(session, act)

    async def close(self) -> None:
        """Let the work in hand come to its end."""
        await asyncio.to_thread(self._threads.shutdown)

    async def _act(self, session: Session, act: Callable[[Turn], Coroutine[Any, Any, T]]) -> T:
        async with session.turn:
            session.require_open()
            assert session.awake is not None
            return await act(Turn(session, session.awake, self._threads))
