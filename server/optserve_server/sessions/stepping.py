"""A step, from the session's turn to the reply: written to the journal while it is computed."""

from collections.abc import Callable
from dataclasses import dataclass
from time import perf_counter
from typing import Any

from numpy.typing import NDArray

from optserve.wire.guard import GuardNote
from optserve_server.sessions.session import Session
from optserve_server.sessions.steps import StepGradients
from optserve_server.sessions.storage.records import Record
from optserve_server.sessions.turns import Turn, Turns

Body = bytes | memoryview


@dataclass(frozen=True, slots=True)
class StepRequest:
    """A step that is asked for.

    `parse` reads `parsed_bytes` of body into `gradients`, and `write` makes the reply's body of the updates; both are
    called when the session's turn has come, for they may take long.
    """

    number: int
    gradients: StepGradients
    parse: Callable[[], None]
    parsed_bytes: int
    write: Callable[[NDArray[Any]], Body]


@dataclass(frozen=True, slots=True)
class StepReply:
    """The updates as the reply's body.

    The step waited `queue` seconds for its turn; `compute` and `journal` seconds after that it was computed, and safe.
    `is_approximate` says that the steps before were replayed with other bits than they once had. `guard_notes` say what
    the session's guard did; `is_repeated`, that it and everything else was told before.
    """

    body: Body
    queue: float
    compute: float
    journal: float
    is_approximate: bool = False
    guard_notes: tuple[GuardNote, ...] = ()
    is_repeated: bool = False


async def take_step(turns: Turns, session: Session, request: StepRequest) -> StepReply:
    """Take a step: it must be the session's next.

    The last step, sent again with the same gradients, gives the same updates again and changes nothing.

    Raises:
        StepConflict: the step is not next.
        GradientsInvalid: a gradient is not finite; nothing has changed.
        ParametersNeeded: the optimizer needs θ first; nothing has changed.
        StorageFull: the step cannot be written; nothing has changed.
        SessionNotFound, SessionExpired: the session went away before its turn.
    """
    arrived = perf_counter()

    async def act(turn: Turn) -> StepReply:
        begun = perf_counter()
        prepared = await turn.do(lambda: _prepare(turn, request), request.parsed_bytes)
        if isinstance(prepared, Body):
            session.prolong()
            notes, took = turn.awake.guard_notes, perf_counter() - begun
            return StepReply(prepared, begun - arrived, took, 0.0, guard_notes=notes, is_repeated=True)
        record, take = prepared
        body, computed = await turn.record(record, lambda: (request.write(take()), perf_counter()))
        safe = perf_counter()
        session.next_step = turn.awake.next_step
        session.prolong()
        is_approximate, turn.awake.is_approximate = turn.awake.is_approximate, False
        notes = turn.awake.guard_notes
        return StepReply(body, begun - arrived, computed - begun, safe - begun, is_approximate, notes)

    return await turns.act(session, act)


def _prepare(turn: Turn, request: StepRequest) -> Body | tuple[Record, Callable[[], NDArray[Any]]]:
    """All that can be wrong with a step comes to light here: after it there is a record, and the work to be done."""
    awake, gradients = turn.awake, request.gradients
    request.parse()
    updates = awake.repeated(request.number, gradients)
    if updates is not None:
        return request.write(updates)
    observations = awake.observe(gradients)
    return turn.log.step(awake, gradients), lambda: awake.take(gradients, observations)
