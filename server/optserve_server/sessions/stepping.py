"""A step, from the session's turn to the reply."""

from collections.abc import Callable
from dataclasses import dataclass
from time import perf_counter
from typing import Any

from numpy.typing import NDArray

from optserve_server.sessions.session import Session
from optserve_server.sessions.steps import StepGradients
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
    """The updates as the reply's body, and the seconds that the step waited for its turn and was computed."""

    body: Body
    queue: float
    compute: float


async def take_step(turns: Turns, session: Session, request: StepRequest) -> StepReply:
    """Take a step: it must be the session's next.

    The last step, sent again with the same gradients, gives the same updates again and changes nothing.

    Raises:
        StepConflict: the step is not next.
        GradientsInvalid: a gradient is not finite; nothing has changed.
        ParametersNeeded: the optimizer needs θ first; nothing has changed.
        SessionNotFound, SessionExpired: the session went away before its turn.
    """
    arrived = perf_counter()

    async def act(turn: Turn) -> StepReply:
        begun = perf_counter()
        body = await turn.do(lambda: _take(turn, request), request.parsed_bytes)
        session.next_step = turn.awake.next_step
        session.prolong()
        return StepReply(body, begun - arrived, perf_counter() - begun)

    return await turns.act(session, act)


def _take(turn: Turn, request: StepRequest) -> Body:
    awake, gradients = turn.awake, request.gradients
    request.parse()
    updates = awake.repeated(request.number, gradients)
    if updates is None:
        updates = awake.take(gradients, awake.observe(gradients))
    return request.write(updates)
