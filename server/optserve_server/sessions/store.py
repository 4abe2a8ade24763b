"""All sessions of a server: who is there, and who has expired."""

import asyncio
import itertools
from collections import OrderedDict
from collections.abc import Set

from optserve_server.sessions.errors import SessionExpired, SessionNotFound
from optserve_server.sessions.idempotency import IdempotencyKeys
from optserve_server.sessions.layout import Layout
from optserve_server.sessions.pages import StateMemory
from optserve_server.sessions.plan import Plan, ServedVersion
from optserve_server.sessions.session import Session, rfc3339
from optserve_server.sessions.turns import Turns
from optserve_server.sessions.waking import Waking

SWEEP_SECONDS = 1.0
MAX_TOMBSTONES = 10_000  # expired sessions that are remembered as such
_SWEEP_GROUP = 1000  # sessions looked at before others get the event loop


class SessionStore:
    """Sessions by id. Its methods are called on the event loop."""

    def __init__(self, memory: StateMemory) -> None:
        self.memory = memory
        self.waking = Waking(memory)
        self.turns = Turns()
        self._sessions: dict[str, Session] = {}  # in the order of their creation
        self._numbers = itertools.count(1)
        self._tombstones: OrderedDict[str, tuple[str, str]] = OrderedDict()  # id → its owner, and when it expired
        self._keys = IdempotencyKeys()
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
        await self.turns.close()

    async def sweep(self) -> None:
        """Remember expired sessions as such, and give their memory back."""
        for count, session in enumerate(list(self._sessions.values())):
            if count % _SWEEP_GROUP == 0:
                await asyncio.sleep(0)
            if session.overdue and session.id in self._sessions:
                self._tombstones[session.id] = session.owner, rfc3339(session.expires_at)
                if len(self._tombstones) > MAX_TOMBSTONES:
                    self._tombstones.popitem(last=False)
                await self._remove(session, expired=True)

    async def _sweep_for_ever(self) -> None:
        while True:
            await asyncio.sleep(SWEEP_SECONDS)
            await self.sweep()

    # --- sessions -----------------------------------------------------------------------------------------------------

    def find_created(self, owner: str, key: str, fingerprint: str) -> Session | None:
        """The session that an earlier request of this owner under this idempotency key created.

        Raises:
            IdempotencyConflict: the key came with another request.
            SessionNotFound, SessionExpired: that session is gone.
        """
        created = self._keys.find(owner, key, fingerprint)
        return None if created is None else self.get(created, {owner})

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
        if key is not None and (created := self.find_created(plan.owner, key, fingerprint)) is not None:
            return created
        plan.check()
        awake = self.waking.begin(version, layout, plan)
        session = Session(next(self._numbers), version, layout, plan)
        session.hold(awake)
        self._sessions[session.id] = session
        if key is not None:
            self._keys.remember(plan.owner, key, fingerprint, session.id)
        return session

    def get(self, session_id: str, owners: Set[str]) -> Session:
        """The session of that id; those of others than these owners are not there.

        Raises:
            SessionNotFound: there is none.
            SessionExpired: there was one.
        """
        session = self._sessions.get(session_id)
        if session is None:
            owner, expired_at = self._tombstones.get(session_id, (None, ""))
            if owner in owners:
                raise SessionExpired(session_id, expired_at)
            raise SessionNotFound(session_id)
        if session.owner not in owners:
            raise SessionNotFound(session_id)
        if session.overdue:
            raise SessionExpired(session_id, rfc3339(session.expires_at))
        return session

    def after(self, number: int, limit: int, owners: Set[str]) -> list[Session]:
        """At most `limit` sessions of these owners, created after the one with this number, the oldest first."""
        later = (one for one in self._sessions.values() if one.number > number and one.owner in owners)
        return list(itertools.islice((one for one in later if not one.overdue), limit))

    async def delete(self, session_id: str, owners: Set[str]) -> None:
        """Delete a session of these owners, once the work in hand on it is done.

        Raises:
            SessionNotFound, SessionExpired: there is none.
        """
        await self._remove(self.get(session_id, owners), expired=False)

    async def _remove(self, session: Session, *, expired: bool) -> None:
        del self._sessions[session.id]
        await asyncio.shield(asyncio.create_task(self._end(session, expired=expired)))

    async def _end(self, session: Session, *, expired: bool) -> None:
        async with session.turn:
            session.end(expired=expired)
            await self.waking.drop(session)
