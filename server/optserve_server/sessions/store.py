"""All sessions of a server: who is there, whose turn it is, who has expired."""

import asyncio
import itertools
import os
import time
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from optserve_server.sessions.errors import SessionExpired, SessionNotFound
from optserve_server.sessions.idempotency import IdempotencyKeys
from optserve_server.sessions.layout import Layout
from optserve_server.sessions.pages import Arena, StateMemory
from optserve_server.sessions.plan import Plan, ServedVersion, configured
from optserve_server.sessions.session import Session, rfc3339

T = TypeVar("T")

INLINE_COORDINATES = 2048
"""Up to here a session's work is done on the event loop. The hop to a thread and back takes 0.1 ms, as much as such a
step of a cheap optimizer; the dearest takes about 3 ms for as many coordinates."""

INLINE_TENSORS = 16
"""Up to here the same where the optimizer is not coordinatewise: each tensor costs such a step some 0.1 ms."""

INLINE_BYTES = 64 << 10
"""Up to here a body is parsed on the event loop; that takes about 1 ms."""

SWEEP_SECONDS = 1.0
MAX_TOMBSTONES = 10_000  # expired sessions that are remembered as such
_SWEEP_GROUP = 1000  # sessions looked at before others get the event loop


class SessionStore:
    """Sessions by id. Its methods are called on the event loop; only the work given to `run` may leave it."""

    def __init__(self, memory: StateMemory) -> None:
        self.memory = memory
        self._sessions: dict[str, Session] = {}  # in the order of their creation
        self._numbers = itertools.count(1)
        self._arenas: dict[tuple[str, tuple[str, ...]], Arena] = {}
        self._tombstones: OrderedDict[str, str] = OrderedDict()  # id → when it expired
        self._keys = IdempotencyKeys()
        self._threads = ThreadPoolExecutor(max_workers=os.cpu_count() or 1, thread_name_prefix="session")
        self._sweeper: asyncio.Task[None] | None = None

    def __len__(self) -> int:
        return len(self._sessions)

    # --- life ---------------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Begin to sweep expired sessions away."""
        self._sweeper = asyncio.create_task(self._sweep_for_ever())

    async def close(self) -> None:
        """Let the work in hand come to its end, and stop."""
        if self._sweeper is not None:
            self._sweeper.cancel()
        await asyncio.to_thread(self._threads.shutdown)

    async def sweep(self) -> None:
        """Remember expired sessions as such, and give their memory back."""
        for count, session in enumerate(list(self._sessions.values())):
            if count % _SWEEP_GROUP == 0:
                await asyncio.sleep(0)
            if self._expired(session) and session.id in self._sessions:
                self._tombstones[session.id] = rfc3339(session.expires_at)
                if len(self._tombstones) > MAX_TOMBSTONES:
                    self._tombstones.popitem(last=False)
                await self._remove(session)

    async def _sweep_for_ever(self) -> None:
        while True:
            await asyncio.sleep(SWEEP_SECONDS)
            await self.sweep()

    # --- sessions -----------------------------------------------------------------------------------------------------

    def find_created(self, key: str, fingerprint: str) -> Session | None:
        """The session that an earlier request under this idempotency key created.

        Raises:
            IdempotencyConflict: the key came with another request.
            SessionNotFound, SessionExpired: that session is gone.
        """
        created = self._keys.find(key, fingerprint)
        return None if created is None else self.get(created)

    def create(
        self, version: ServedVersion, layout: Layout, plan: Plan, key: str | None = None, fingerprint: str = ""
    ) -> Session:
        """A new session at step 0; under an idempotency key, the one that was created under it.

        Raises:
            RequestInvalid: something in the plan.
            HyperparametersInvalid: its hyperparameters are none of the optimizer's.
            StateTooLarge: there is no room for its hidden state.
            IdempotencyConflict: the key came with another request.
        """
        if key is not None and (created := self.find_created(key, fingerprint)) is not None:
            return created
        plan.check()
        optimizer = configured(version.optimizer, plan.hyperparameters)
        arena_key = (version.sha256, optimizer.features)
        arena = self._arenas.get(arena_key) or Arena(len(optimizer.features), self.memory)
        session = Session(next(self._numbers), version, optimizer, layout, plan, arena, self.memory)
        self._arenas[arena_key] = arena
        self._sessions[session.id] = session
        if key is not None:
            self._keys.remember(key, fingerprint, session.id)
        return session

    def get(self, session_id: str) -> Session:
        """The session of that id.

        Raises:
            SessionNotFound: there is none.
            SessionExpired: there was one.
        """
        session = self._sessions.get(session_id)
        if session is None:
            if session_id in self._tombstones:
                raise SessionExpired(session_id, self._tombstones[session_id])
            raise SessionNotFound(session_id)
        if self._expired(session):
            raise SessionExpired(session_id, rfc3339(session.expires_at))
        return session

    def after(self, number: int, limit: int) -> list[Session]:
        """At most `limit` sessions that were created after the one with this number, the oldest first."""
        living = (one for one in self._sessions.values() if one.number > number and not self._expired(one))
        return list(itertools.islice(living, limit))

    async def delete(self, session_id: str) -> None:
        """Delete a session, once the work in hand on it is done.

        Raises:
            SessionNotFound, SessionExpired: there is none.
        """
        await self._remove(self.get(session_id))

    async def run(self, session: Session, work: Callable[[], T], parsed_bytes: int = 0) -> T:
        """Do `work` on a session when its turn comes, beside the event loop if the session is large.

        So is work that parses many bytes, `parsed_bytes`, first.

        Work once begun is done to its end, whatever becomes of the caller.

        Raises:
            SessionNotFound, SessionExpired: the session went away before its turn.
            SessionError: whatever `work` raises.
        """
        if _is_small(session) and parsed_bytes <= INLINE_BYTES:
            async with session.turn:
                self._require_open(session)
                return work()
        return await asyncio.shield(asyncio.create_task(self._run_in_thread(session, work)))

    async def _run_in_thread(self, session: Session, work: Callable[[], T]) -> T:
        async with session.turn:
            self._require_open(session)
            return await asyncio.get_running_loop().run_in_executor(self._threads, work)

    def _require_open(self, session: Session) -> None:
        if session.closed:
            if session.id in self._tombstones:
                raise SessionExpired(session.id, self._tombstones[session.id])
            raise SessionNotFound(session.id)

    def _expired(self, session: Session) -> bool:
        # A session whose step is being taken is in use, even if the step takes longer than the session lives.
        return session.deadline <= time.monotonic() and not session.turn.locked()

    async def _remove(self, session: Session) -> None:
        del self._sessions[session.id]
        await self.run(session, session.close)
        if not session.arena.used:
            self._arenas.pop((session.version.sha256, session.optimizer.features), None)


def _is_small(session: Session) -> bool:
    layout = session.layout
    few = session.optimizer.coordinatewise or len(layout.parameters) <= INLINE_TENSORS
    return few and layout.coordinates <= INLINE_COORDINATES
