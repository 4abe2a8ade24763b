"""New sessions: at h_0 = 0, or with the state that another had. They are on disk before anybody hears of them."""

from functools import partial

from optserve_server.optimizers import hyperparameters
from optserve_server.sessions.description import Description, Settings
from optserve_server.sessions.log import SessionLog, generation_of
from optserve_server.sessions.plan import ServedVersion
from optserve_server.sessions.rewinding import copy_at
from optserve_server.sessions.session import Session
from optserve_server.sessions.storage.directory import SessionDirectory
from optserve_server.sessions.storage.journal import NOTHING
from optserve_server.sessions.storage.lineage import Lineage
from optserve_server.sessions.turns import Turns
from optserve_server.sessions.waking import Waking


async def create(
    waking: Waking, directory: SessionDirectory, description: Description, version: ServedVersion
) -> Session:
    """The session of a description, awake at step 0.

    Raises:
        HyperparametersInvalid: its hyperparameters are none of the optimizer's.
        StateTooLarge: there is no room for its hidden state.
        StorageFull: there is no room for its files.
    """
    plan = description.plan
    awake = await waking.begin(description, version)
    try:
        settings = Settings(hyperparameters(awake.optimizer), plan.label, plan.ttl_seconds)
        generation = generation_of(description.id, awake, settings, NOTHING)
        journal = await waking.do(partial(directory.create, description.id, description.to_json(), generation))
    except BaseException:
        await waking.release(awake)
        raise
    session = Session(description, settings, 0, plan.ttl_seconds)
    session.hold(awake, SessionLog(description.id, Lineage(journal.path.parent), journal))
    return session


async def fork(
    turns: Turns, directory: SessionDirectory, description: Description, source: Session, step: int | None
) -> Session:
    """The session of a description, asleep, with the state that `source` had at a step; None: that it has now.

    Raises:
        StepNotRetained: the source cannot go back to that step.
        SessionDamaged: what leads to it is not what was written.
        StateTooLarge: there is no room for a second hidden state.
        StorageFull: there is no room for its files.
        SessionNotFound, SessionExpired: the source went away before its turn.
    """
    generation, snapshot = await copy_at(turns, source, step, description.id)
    create = partial(directory.create, description.id, description.to_json(), generation, snapshot)
    (await turns.waking.do(create)).close()
    settings = Settings(**generation.settings)
    return Session(description, settings, snapshot.step, settings.ttl_seconds)
