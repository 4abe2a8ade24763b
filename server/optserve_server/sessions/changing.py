"""What changes a session between two steps."""

from collections.abc import Callable
from typing import Any

from optserve_server.optimizers import hyperparameters
from optserve_server.sessions import state
from optserve_server.sessions.errors import ParametersInvalid
from optserve_server.sessions.plan import require_label, require_ttl
from optserve_server.sessions.session import Session
from optserve_server.sessions.steps import Numbers, require_finite
from optserve_server.sessions.turns import Turn, Turns


async def update(turns: Turns, session: Session, changes: dict[str, Any]) -> None:
    """Change settings between two steps, those in `changes`; all of it, or nothing if something cannot be used.

    Raises:
        HyperparametersInvalid: an unknown one, a wrong value, or one that would change what h_t is made of.
        RequestInvalid: a bad label or `ttl_seconds`.
        StorageFull: the change cannot be written; nothing has changed.
        SessionNotFound, SessionExpired: the session went away before its turn.
    """
    if "label" in changes:
        require_label(changes["label"])
    if "ttl_seconds" in changes:
        require_ttl(changes["ttl_seconds"])

    async def act(turn: Turn) -> None:
        awake = turn.awake
        optimizer = awake.configured(changes.get("hyperparameters", {}))
        record = turn.log.change(awake, changes)

        def work() -> None:
            awake.optimizer = optimizer

        await turn.record(record, work)
        session.settings = session.settings.changed({**changes, "hyperparameters": hyperparameters(optimizer)})
        if "ttl_seconds" in changes:
            session.prolong()

    await turns.act(session, act)


async def put_parameters(
    turns: Turns, session: Session, numbers: Numbers, parse: Callable[[], None], parsed_bytes: int
) -> None:
    """Take θ, which `parse` reads into `numbers` from `parsed_bytes` of a body.

    Raises:
        ParametersInvalid: a number is not finite.
        StateTooLarge: there is no room for θ.
        StorageFull: θ cannot be written; nothing has changed.
        SessionNotFound, SessionExpired: the session went away before its turn.
    """

    async def act(turn: Turn) -> None:
        def prepare() -> None:
            parse()
            require_finite(numbers.flat(), session.layout, ParametersInvalid, "parameter")

        await turn.do(prepare, parsed_bytes)
        await turn.record(turn.log.parameters(turn.awake, numbers), lambda: turn.awake.put_parameters(numbers))

    await turns.act(session, act)


async def put_state(turns: Turns, session: Session, data: bytes) -> None:
    """Let a session go on from a state that `state.encode` gave.

    Raises:
        StateMalformed, StateMismatch: it is none of this session's; nothing has changed.
        StateTooLarge: there is no room for its θ; nothing has changed.
        StorageFull: the state cannot be written; nothing has changed.
        SessionNotFound, SessionExpired: the session went away before its turn.
    """

    async def act(turn: Turn) -> None:
        await turns.waking.do(lambda: state.decode(turn.awake, data))
        await turn.start_anew(lambda: turn.log.start_anew(turn.awake, session.settings))
        session.next_step = turn.awake.next_step
        session.prolong()

    await turns.act(session, act)
