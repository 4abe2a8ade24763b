"""All sessions of a server: who is there, and who has expired."""

import asyncio
import itertools
import secrets
import time
from collections import OrderedDict
from collections.abc import Coroutine, Set
from contextlib import suppress
from dataclasses import asdict, replace
from datetime import UTC, datetime
from functools import partial
from typing import Any

import structlog

from optserve_server.sessions import creating
from optserve_server.sessions.description import Description, VersionReference
from optserve_server.sessions.errors import SessionError, SessionExpired, SessionNotFound, session_damaged
from optserve_server.sessions.holdings import NO_LIMITS, Allowance, Holdings
from optserve_server.sessions.idempotency import IdempotencyKeys
from optserve_server.sessions.layout import Layout
from optserve_server.sessions.pages import StateMemory
from optserve_server.sessions.plan import Plan, ServedVersion
from optserve_server.sessions.renewing import Renewing, park
from optserve_server.sessions.session import Session, rfc3339
from optserve_server.sessions.storage.committer import Committer
from optserve_server.sessions.storage.directory import SessionDirectory
from optserve_server.sessions.storage.errors import Damaged
from optserve_server.sessions.summary import summarise
from optserve_server.sessions.turns import Turns
from optserve_server.sessions.waking import LoadVersion, Waking

log = structlog.get_logger(__name__)

SWEEP_SECONDS = 1.0
MAX_TOMBSTONES = 10_000  # expired sessions that are remembered as such
_SWEEP_GROUP = 1000  # sessions looked at before others get the event loop


class SessionStore:
    """Sessions by id, awake or asleep. Its methods are called on the event loop."""

    def __init__(
        self,
        memory: StateMemory,
        directory: SessionDirectory,
        load: LoadVersion,
        *,
        sync: bool = True,
        park_after: float = 600.0,
    ) -> None:
        """A store whose sessions are those in `directory`, all asleep; made on the event loop.

        Args:
            memory: the limit for those that are awake.
            directory: the files.
            load: gives optimizer versions.
            sync: whether a step is synced to the disk before its reply, or only written.
            park_after: seconds after which a session that idles is put to sleep.
        """
        self.memory = memory
        self.directory = directory
        self.sync = sync
        self._park_after = park_after
        self.waking = Waking(memory, directory, load, self._make_room)
        self.turns = Turns(self.waking, Committer(sync=sync), self._after_a_turn)
        self.renewing = Renewing(self.turns)
        self._sessions: dict[str, Session] = {}  # in the order of their creation
        self._last_number = 0
        self._unread = dict.fromkeys(directory.sessions())
        self._damaged: dict[str, Damaged] = {}
        self._reading: dict[str, asyncio.Task[None]] = {}
        self._creating: dict[str, asyncio.Task[Session]] = {}
        self._tombstones: OrderedDict[str, tuple[str, str]] = OrderedDict()  # id → its owner, and when it expired
        self.holdings = Holdings()
        self._keys = IdempotencyKeys()
        self._closing = asyncio.Event()
        self._reader: asyncio.Task[None] | None = None
        self._sweeper: asyncio.Task[None] | None = None

    def __len__(self) -> int:
        return len(self._sessions) + len(self._unread)

    @property
    def awake(self) -> int:
        """How many sessions are awake."""
        return sum(session.awake is not None for session in self._sessions.values())

    # --- life ---------------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Begin to read what sessions there are, to sweep expired ones away, and to put idle ones to sleep."""
        self._reader = asyncio.create_task(self._read_all())
        self._sweeper = asyncio.create_task(self._sweep_for_ever())

    async def close(self, seconds: float = 3.0) -> None:
        """Let the work in hand come to its end, make snapshots for so many seconds, and stop.

        What has no snapshot yet is in the journals all the same.
        """
        self._closing.set()
        if self._reader is not None:
            self._reader.cancel()
        if self._sweeper is not None:
            await self._sweeper
        await self.renewing.close()
        until = time.monotonic() + seconds
        await asyncio.gather(*(park(self.turns, session, until) for session in self._sessions.values()))
        await self.turns.close()
        self.directory.close()

    async def sweep(self) -> None:
        """Remember expired sessions as such and remove them; put idle ones to sleep."""
        for count, session in enumerate(list(self._sessions.values())):
            if count % _SWEEP_GROUP == 0:
                await asyncio.sleep(0)
            if session.overdue and session.id in self._sessions:
                self._tombstones[session.id] = session.owner, rfc3339(session.expires_at)
                if len(self._tombstones) > MAX_TOMBSTONES:
                    self._tombstones.popitem(last=False)
                await self._remove(session, expired=True)
            elif session.is_idle(self._park_after):
                await park(self.turns, session)

    def _after_a_turn(self, session: Session) -> None:
        self.renewing.look_at(session)

    async def _make_room(self) -> bool:
        """Put the session to sleep that was not used for longest; False if all are in use."""
        idle = [session for session in self._sessions.values() if session.is_idle(0)]
        if idle:
            await park(self.turns, min(idle, key=lambda session: session.used_at))
        return bool(idle)

    async def _sweep_for_ever(self) -> None:
        while not self._closing.is_set():
            with suppress(TimeoutError):
                await asyncio.wait_for(self._closing.wait(), SWEEP_SECONDS)
            try:
                await self.sweep()
            except (OSError, SessionError) as error:
                log.warning("a session cannot be removed", reason=str(error))

    # --- those on disk ------------------------------------------------------------------------------------------------

    async def _read_all(self) -> None:
        for session_id in list(self._unread):
            await self._read(session_id)
        self._sessions = dict(sorted(self._sessions.items(), key=lambda item: item[1].number))

    async def _read(self, session_id: str) -> None:
        """Read what the files of a session tell, unless somebody does or has."""
        if session_id not in self._unread:
            return
        reading = self._reading.get(session_id)
        if reading is None:
            reading = self._reading[session_id] = asyncio.create_task(self._read_one(session_id))
        await asyncio.shield(reading)

    async def _read_one(self, session_id: str) -> None:
        try:
            summary = await self.waking.do(partial(summarise, self.directory.place(session_id)))
            session = Session(summary.description, summary.settings, summary.next_step, summary.seconds_left())
            self.holdings.add(session.owner, session.layout.coordinates)
            self._enter(session)
        except Damaged as damage:
            self._refuse(session_id, damage)
        except OSError as error:
            self._refuse(session_id, Damaged(self.directory.place(session_id), f"it cannot be read: {error}"))
        finally:
            del self._unread[session_id], self._reading[session_id]

    def _refuse(self, session_id: str, damage: Damaged) -> None:
        log.warning("a session is damaged", session=session_id, file=damage.path.name, reason=damage.reason)
        self._damaged[session_id] = damage

    def _enter(self, session: Session) -> None:
        description = session.description
        self._sessions[session.id] = session
        self._last_number = max(self._last_number, session.number)
        if description.idempotency_key is not None:
            self._keys.remember(session.owner, description.idempotency_key, description.fingerprint, session.id)

    async def _require_all_read(self) -> None:
        if self._unread and self._reader is not None:
            await asyncio.shield(self._reader)

    # --- sessions -----------------------------------------------------------------------------------------------------

    async def find_created(self, owner: str, key: str, fingerprint: str) -> Session | None:
        """The session that an earlier request of this owner under this idempotency key created.

        Raises:
            IdempotencyConflict: the key came with another request.
            SessionNotFound, SessionExpired: that session is gone.
        """
        await self._require_all_read()
        created = self._keys.find(owner, key, fingerprint)
        if created in self._creating:
            return await asyncio.shield(self._creating[created])
        return None if created is None else await self.get(created, {owner})

    async def create(
        self,
        version: ServedVersion,
        layout: Layout,
        plan: Plan,
        key: str | None = None,
        fingerprint: str = "",
        allowance: Allowance = NO_LIMITS,
    ) -> Session:
        """A new session at step 0; under an idempotency key, the one that was created under it.

        It is on disk before the return.

        Raises:
            RequestInvalid: something in the plan.
            HyperparametersInvalid: its hyperparameters are none of the optimizer's.
            StateTooLarge: there is no room for its hidden state.
            StorageFull: there is no room for its files.
            QuotaExceeded: its owner holds as much as its `allowance`.
            IdempotencyConflict: the key came with another request.
        """
        await self._require_all_read()  # those that are not read yet are held too
        if key is not None and (created := await self.find_created(plan.owner, key, fingerprint)) is not None:
            return created
        plan.check()
        reference = VersionReference(version.name, version.number, version.sha256)
        self.holdings.add(plan.owner, layout.coordinates, allowance)
        description = self._description(reference, layout, plan, key, fingerprint)
        return await self._carry_out(description, creating.create(self.waking, self.directory, description, version))

    async def fork(
        self,
        session: Session,
        owner: str,
        step: int | None = None,
        key: str | None = None,
        fingerprint: str = "",
        allowance: Allowance = NO_LIMITS,
    ) -> Session:
        """A new session that sleeps, with the state that this one had at `step`, or has now, and the same settings.

        Raises:
            StepNotRetained: the session cannot go back to that step.
            SessionDamaged: what leads to it is not what was written.
            StateTooLarge, StorageFull, QuotaExceeded, IdempotencyConflict: as in `create`.
            SessionNotFound, SessionExpired: the session went away before its turn.
        """
        await self._require_all_read()
        if key is not None and (created := await self.find_created(owner, key, fingerprint)) is not None:
            return created
        plan = replace(session.description.plan, **asdict(session.settings), owner=owner)
        self.holdings.add(owner, session.layout.coordinates, allowance)
        description = self._description(session.description.version, session.layout, plan, key, fingerprint)
        return await self._carry_out(description, creating.fork(self.turns, self.directory, description, session, step))

    def _description(
        self, version: VersionReference, layout: Layout, plan: Plan, key: str | None, fingerprint: str
    ) -> Description:
        self._last_number = max(self._last_number + 1, time.time_ns() // 1000)
        id, now = secrets.token_hex(16), datetime.now(UTC)
        return Description(id, self._last_number, now, version, layout, plan, key, fingerprint)

    async def _carry_out(self, description: Description, creation: Coroutine[Any, Any, Session]) -> Session:
        """Create a session to the end, whatever becomes of the caller; others under its key wait for it."""
        task = asyncio.create_task(self._entered(description, creation))
        if description.idempotency_key is not None:
            key, fingerprint = description.idempotency_key, description.fingerprint
            self._keys.remember(description.plan.owner, key, fingerprint, description.id)
            self._creating[description.id] = task
        return await asyncio.shield(task)

    async def _entered(self, description: Description, creation: Coroutine[Any, Any, Session]) -> Session:
        try:
            session = await creation
        except BaseException:
            self.holdings.remove(description.plan.owner, description.layout.coordinates)
            if description.idempotency_key is not None:
                self._keys.forget(description.plan.owner, description.idempotency_key)
            raise
        finally:
            self._creating.pop(description.id, None)
        self._enter(session)
        return session

    async def get(self, session_id: str, owners: Set[str]) -> Session:
        """The session of that id; those of others than these owners are not there.

        Raises:
            SessionNotFound: there is none.
            SessionExpired: there was one.
            SessionDamaged: there is one, but nothing can be said of it.
        """
        await self._read(session_id)
        session = self._sessions.get(session_id)
        if session is None:
            if session_id in self._damaged:
                raise session_damaged(session_id, self._damaged[session_id])
            owner, expired_at = self._tombstones.get(session_id, (None, ""))
            if owner in owners:
                raise SessionExpired(session_id, expired_at)
            raise SessionNotFound(session_id)
        if session.owner not in owners:
            raise SessionNotFound(session_id)
        if session.overdue:
            raise SessionExpired(session_id, rfc3339(session.expires_at))
        return session

    async def after(self, number: int, limit: int, owners: Set[str]) -> list[Session]:
        """At most `limit` sessions of these owners, created after the one with this number, the oldest first."""
        await self._require_all_read()
        later = (one for one in self._sessions.values() if one.number > number and one.owner in owners)
        return list(itertools.islice((one for one in later if not one.overdue), limit))

    async def delete(self, session_id: str, owners: Set[str]) -> None:
        """Delete a session of these owners, once the work in hand on it is done.

        Raises:
            SessionNotFound, SessionExpired: there is none.
        """
        await self._remove(await self.get(session_id, owners), expired=False)

    async def _remove(self, session: Session, *, expired: bool) -> None:
        del self._sessions[session.id]
        self.holdings.remove(session.owner, session.layout.coordinates)
        await asyncio.shield(asyncio.create_task(self._end(session, expired=expired)))

    async def _end(self, session: Session, *, expired: bool) -> None:
        async with session.turn:
            session.end(expired=expired)
            await self.waking.drop(session)
            await self.waking.do(partial(self.directory.remove, session.id))
