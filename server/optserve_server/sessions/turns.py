"""Turns: what is done to a session is done one after another, and long work beside the event loop."""

import asyncio
import time
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from optserve_server.sessions.awake import Awake
from optserve_server.sessions.errors import storage_error
from optserve_server.sessions.log import SessionLog
from optserve_server.sessions.session import Session
from optserve_server.sessions.storage.committer import Committer
from optserve_server.sessions.storage.records import Record
from optserve_server.sessions.waking import Waking

T = TypeVar("T")

INLINE_BYTES = 64 << 10
"""Up to here a body is parsed on the event loop; that takes about 1 ms."""


class Turn:
    """Somebody's turn at a session that is awake."""

    def __init__(self, session: Session, awake: Awake, log: SessionLog, turns: "Turns") -> None:
        self.session = session
        self.awake = awake
        self.log = log
        self._turns = turns

    async def do(self, work: Callable[[], T], parsed_bytes: int = 0) -> T:
        """Do `work`, beside the event loop if the session is large or many bytes are parsed."""
        if self.awake.is_small and parsed_bytes <= INLINE_BYTES:
            return work()
        return await asyncio.get_running_loop().run_in_executor(self._turns.waking.threads, work)

    async def record(self, record: Record, work: Callable[[], T]) -> T:
        """Write a record and do `work`, which changes the awake part, side by side; both are done at the return.

        If either fails the record does not count, and the session wakes again from its files.

        Raises:
            StorageFull: the disk is full.
        """
        written = self._turns.committer.append(self.log.journal, record)
        try:
            done = await self.do(work)
        except BaseException:
            await asyncio.wait([written])
            if written.exception() is None:
                await self._turns.waking.do(self.log.journal.take_back)
            await self._turns.waking.drop(self.session)
            raise
        try:
            await written
        except OSError as error:
            await self._turns.waking.drop(self.session)
            raise storage_error(error) from error
        return done

    async def start_anew(self, work: Callable[[], None]) -> None:
        """Let `work` begin another generation; if that fails the session wakes again from the present one.

        Raises:
            StorageFull: the disk is full.
        """
        try:
            await self._turns.waking.do(work)
        except BaseException:
            await self._turns.waking.drop(self.session)
            raise


class Turns:
    """Gives turns at sessions. Called on the event loop."""

    def __init__(self, waking: Waking, committer: Committer, done: Callable[[Session], None]) -> None:
        """`done` is called after each turn."""
        self.waking = waking
        self._done = done
        self.committer = committer

    async def act(self, session: Session, act: Callable[[Turn], Coroutine[Any, Any, T]]) -> T:
        """Do `act` when the session's turn comes, and to its end, whatever becomes of the caller.

        Raises:
            SessionNotFound, SessionExpired: the session went away before.
            SessionError: the session cannot be awoken, or whatever `act` raises.
        """
        return await asyncio.shield(asyncio.create_task(self._act(session, act)))

    async def run(self, session: Session, work: Callable[[Awake], T], parsed_bytes: int = 0) -> T:
        """Do `work`, which changes nothing, when the session's turn comes.

        Raises:
            SessionNotFound, SessionExpired: the session went away before.
            SessionError: the session cannot be awoken, or whatever `work` raises.
        """

        async def act(turn: Turn) -> T:
            return await turn.do(lambda: work(turn.awake), parsed_bytes)

        return await self.act(session, act)

    async def act_asleep(self, session: Session, act: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """The same, but whether or not the session is awake, or can be awoken.

        Raises:
            SessionNotFound, SessionExpired: the session went away before.
            SessionError: whatever `act` raises.
        """

        async def in_turn() -> T:
            async with session.turn:
                session.require_open()
                return await act()

        return await asyncio.shield(asyncio.create_task(in_turn()))

    async def close(self) -> None:
        """Let the work in hand come to its end."""
        await asyncio.to_thread(self.committer.close)
        await asyncio.to_thread(self.waking.close)

    async def _act(self, session: Session, act: Callable[[Turn], Coroutine[Any, Any, T]]) -> T:
        async with session.turn:
            session.require_open()
            if session.awake is None or session.log is None:
                await self.waking.wake(session)
            session.used_at = time.monotonic()
            assert session.awake is not None
            assert session.log is not None
            result = await act(Turn(session, session.awake, session.log, self))
        self._done(session)
        return result
