"""Going back: to a step that is still retained, or to a checkpoint. What was steps or damage after it is given up."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

from optserve_server.sessions import checkpoints
from optserve_server.sessions.awake import Awake
from optserve_server.sessions.description import Settings
from optserve_server.sessions.errors import SessionDamaged, StepNotRetained, session_damaged
from optserve_server.sessions.log import SessionLog, begin_anew, generation_of
from optserve_server.sessions.recovery import replay
from optserve_server.sessions.session import Session
from optserve_server.sessions.snapshotting import put_snapshot, take_snapshot
from optserve_server.sessions.storage import snapshots
from optserve_server.sessions.storage.errors import Damaged
from optserve_server.sessions.storage.journal import Generation
from optserve_server.sessions.storage.lineage import Lineage
from optserve_server.sessions.storage.snapshots import Snapshot
from optserve_server.sessions.turns import Turns
from optserve_server.sessions.waking import FindState


async def rewind(turns: Turns, session: Session, step: int) -> None:
    """Let `step` come next again; the settings stay as they are.

    It begins a generation with a snapshot, so the journals before can be damaged from that step on.

    Raises:
        StepNotRetained: the session cannot go back to it.
        SessionDamaged: what leads to it is not what was written; nothing has changed.
        StateTooLarge: there is no room for θ; nothing has changed.
        StorageFull: there is no room for the snapshot; nothing has changed.
        SessionNotFound, SessionExpired: the session went away before its turn.
    """

    async def act() -> None:
        await _require_retained(turns, session, step)
        async with _advising(turns, session, step):
            await _go_back(turns, session, partial(_find_step, step))

    await turns.act_asleep(session, act)


async def restore(turns: Turns, session: Session, name: str) -> None:
    """Go back to a checkpoint; `next_step` goes back too, and the settings stay as they are.

    Raises:
        CheckpointNotFound: there is none of that name.
        SessionDamaged: its file is not what was written; nothing has changed.
        StateTooLarge: there is no room for θ; nothing has changed.
        StorageFull: the disk is full; nothing has changed.
        SessionNotFound, SessionExpired: the session went away before its turn.
    """

    async def act() -> None:
        path = await turns.waking.do(lambda: checkpoints.find(turns.waking.place(session), session.id, name))
        await _go_back(turns, session, partial(_find_checkpoint, path))

    await turns.act_asleep(session, act)


async def copy_at(turns: Turns, session: Session, step: int | None, name: str) -> tuple[Generation, Snapshot]:
    """The beginning of a session `name` that goes on from what this one was at a step; None: from the present.

    Raises:
        StepNotRetained: the session cannot go back to that step.
        SessionDamaged: what leads to it is not what was written.
        StateTooLarge: there is no room for a second hidden state.
        SessionNotFound, SessionExpired: the session went away before its turn.
    """
    place = turns.waking.place(session)

    async def act() -> tuple[Generation, Snapshot]:
        def work(awake: Awake) -> tuple[Generation, Snapshot]:
            replay(awake, Lineage(place), step)
            return generation_of(name, awake, session.settings, parent=None), take_snapshot(name, awake)

        if step is None:
            return await turns.waking.beside(session, work)
        await _require_retained(turns, session, step)
        async with _advising(turns, session, step):
            return await turns.waking.beside(session, work)

    return await turns.act_asleep(session, act)


async def _require_retained(turns: Turns, session: Session, step: int) -> None:
    """Check that there are journals that lead to a step.

    Raises:
        StepNotRetained: there are none.
        SessionDamaged: they cannot be read.
    """
    try:
        chain, damage = await turns.waking.do(Lineage(turns.waking.place(session)).standing)
        if damage is not None and damage.step is not None and step > damage.step:
            raise damage
    except Damaged as damage:
        raise session_damaged(session.id, damage) from damage
    oldest = chain[-1].first_step
    if not oldest <= step <= session.next_step:
        raise StepNotRetained(step, oldest, session.next_step)


@asynccontextmanager
async def _advising(turns: Turns, session: Session, step: int) -> AsyncIterator[None]:
    """Where only steps before a snapshot are lost, to go back to before them would give up more than that."""
    try:
        yield
    except SessionDamaged as error:
        first = error.damage.step
        try:
            after = await turns.waking.do(partial(Lineage(turns.waking.place(session)).snapshot_after, step))
        except Damaged:
            raise error from None
        if first is None or after is None:
            raise
        advice = (
            f"The session goes on, but it cannot go back to step {step}, nor be forked there: take step {first} or an "
            f"earlier one, or step {after} or a later one."
        )
        raise SessionDamaged(session.id, error.damage, advice) from error


async def _go_back(turns: Turns, session: Session, find: FindState) -> None:
    await turns.waking.drop(session)  # all that it has in memory is on disk
    await turns.waking.wake(session, find)
    session.prolong()


def _find_step(step: int, session: str, place: Path, awake: Awake, settings: Settings) -> SessionLog:
    route, _ = replay(awake, Lineage(place), step)
    return begin_anew(session, place, awake, settings, parent=route.legs[-1].generation.number)


def _find_checkpoint(path: Path, session: str, place: Path, awake: Awake, settings: Settings) -> SessionLog:
    put_snapshot(awake, snapshots.read(path))
    return begin_anew(session, place, awake, settings, parent=None, snapshot=path)
