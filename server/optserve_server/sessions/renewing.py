"""Snapshots of awake sessions in the background, so that they wake fast and their old journals can go."""

import asyncio
import math
import time
from pathlib import Path

import structlog

from optserve_server.sessions.errors import SessionError
from optserve_server.sessions.session import Session
from optserve_server.sessions.snapshotting import take_snapshot
from optserve_server.sessions.storage import snapshots
from optserve_server.sessions.storage.errors import Damaged
from optserve_server.sessions.storage.lineage import snapshot_path
from optserve_server.sessions.storage.snapshots import Snapshot
from optserve_server.sessions.turns import Turn, Turns

log = structlog.get_logger(__name__)

RETAINED_STEPS = 50
"""At least so many steps back a session can go."""


_MOST_GENERATIONS = 3  # before it is looked whether some can go
_SMALL_AT_ONCE, _LARGE_AT_ONCE = 8, 1  # snapshots that are copied and written; a copy is not counted as memory


class Renewing:
    """Makes snapshots when they are due. Called on the event loop."""

    def __init__(self, turns: Turns) -> None:
        self._turns = turns
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._small, self._large = asyncio.Semaphore(_SMALL_AT_ONCE), asyncio.Semaphore(_LARGE_AT_ONCE)

    def look_at(self, session: Session) -> None:
        """Make a snapshot of a session if one is due and none is being made."""
        awake, kept = session.awake, session.log
        if awake is None or kept is None or session.id in self._tasks or not kept.is_snapshot_due(awake):
            return
        places = self._small if awake.is_small else self._large
        task = asyncio.create_task(self._renew(session, places))
        self._tasks[session.id] = task
        task.add_done_callback(lambda _: self._tasks.pop(session.id))

    async def close(self) -> None:
        """Let what is being written come to its end."""
        if self._tasks:
            await asyncio.wait(list(self._tasks.values()))

    async def _renew(self, session: Session, places: asyncio.Semaphore) -> None:
        try:
            async with places:
                await _renew(self._turns, session)
        except (OSError, SessionError, Damaged) as error:
            # The journal has everything; the next step tries again.
            if not session.closed:
                log.warning("no snapshot", session=session.id, reason=str(error))


async def _renew(turns: Turns, session: Session) -> None:
    """Begin a generation with a snapshot, and remove what no step that is retained comes from."""

    async def act(turn: Turn) -> tuple[Path, Snapshot] | None:
        if not turn.log.is_snapshot_due(turn.awake):
            return None  # it was put to sleep meanwhile, with a snapshot
        snapshot = await turn.do(lambda: take_snapshot(session.id, turn.awake))
        await turns.waking.do(lambda: turn.log.go_on(turn.awake, session.settings))
        return snapshot_path(turn.log.lineage.place, turn.log.journal.generation.number), snapshot

    begun = await turns.act(session, act)
    if begun is None:
        return
    path, snapshot = begun
    await turns.waking.do(lambda: snapshots.write(path, snapshot, sync_name=False))
    async with session.turn:
        if session.log is not None and len(session.log.lineage.numbers) > _MOST_GENERATIONS:
            lineage, oldest = session.log.lineage, session.next_step - RETAINED_STEPS
            await turns.waking.do(lambda: lineage.prune(oldest))


async def park(turns: Turns, session: Session, until: float = math.inf) -> None:
    """Put a session to sleep, with a snapshot unless the monotonic clock is beyond `until`."""
    async with session.turn:
        awake, kept = session.awake, session.log
        if awake is None or kept is None:
            return
        try:
            if kept.steps and time.monotonic() < until:
                snapshot = await turns.waking.do(lambda: take_snapshot(session.id, awake))
                await turns.waking.do(lambda: kept.go_on(awake, session.settings))
                path = snapshot_path(kept.lineage.place, kept.journal.generation.number)
                await turns.waking.do(lambda: snapshots.write(path, snapshot))
        except (OSError, SessionError) as error:
            log.warning("no snapshot", session=session.id, reason=str(error))
        await turns.waking.drop(session)
