"""What changes a session between two steps."""

from collections.abc import Callable
from typing import Any

from optserve_server.optimizers import Optimizer
from optserve_server.sessions.awake import Awake
from optserve_server.sessions.plan import require_label, require_ttl
from optserve_server.sessions.session import Session
from optserve_server.sessions.turns import Turn, Turns


async def update(
    turns: Turns,
    session: Session,
    hyperparameters: dict[str, Any] | None = None,
    label: str | None = None,
    ttl_seconds: float | None = None,
) -> None:
    """Change what may change between two steps; all of it, or nothing if something cannot be used.

    Raises:
        HyperparametersInvalid: an unknown one, a wrong value, or one that would change what h_t is made of.
        RequestInvalid: a bad label or `ttl_seconds`.
        SessionNotFound, SessionExpired: the session went away before its turn.
    """
    if label is not None:
        require_label(label)
    if ttl_seconds is not None:
        require_ttl(ttl_seconds)

    async def act(turn: Turn) -> None:
        optimizer: Optimizer = turn.awake.configured(hyperparameters or {})
        turn.awake.optimizer = optimizer
        session.hold(turn.awake)
        session.label = session.label if label is None else label
        if ttl_seconds is not None:
            session.prolong(ttl_seconds)

    await turns.act(session, act)


async def go_elsewhere(turns: Turns, session: Session, work: Callable[[Awake], None], parsed_bytes: int = 0) -> None:
    """Let `work` put another hidden state into the session, which goes on from that state's step.

    Raises:
        SessionNotFound, SessionExpired: the session went away before its turn.
        SessionError: whatever `work` raises; then nothing has changed.
    """

    async def act(turn: Turn) -> None:
        await turn.do(lambda: work(turn.awake), parsed_bytes)
        session.hold(turn.awake)
        session.prolong()

    await turns.act(session, act)
