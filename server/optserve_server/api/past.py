"""A session's past: back to a checkpoint or a step, a second session from there, and what its steps were like."""

import hashlib

from fastapi import APIRouter, Request, Response, status

from optserve.wire import API_PREFIX, problems
from optserve.wire.bodies import ForkRequest, History, RestoreRequest, SessionInfo
from optserve_server.api.authorisation import UsesCaller
from optserve_server.api.bodies import JsonRoute
from optserve_server.api.dependencies import IdempotencyKey, UsesStore
from optserve_server.api.problems import responses
from optserve_server.api.sessions import SessionId, describe
from optserve_server.api.states import GONE
from optserve_server.sessions import rewinding
from optserve_server.sessions.awake import Awake
from optserve_server.sessions.errors import RequestInvalid
from optserve_server.sessions.holdings import Allowance

router = APIRouter(prefix="/sessions/{session_id}", tags=["hidden state"], route_class=JsonRoute)

_REFUSED = (
    problems.MALFORMED_BODY,
    *GONE,
    problems.STEP_NOT_RETAINED,
    problems.BODY_TOO_LARGE,
    problems.UNSUPPORTED_MEDIA_TYPE,
    problems.STATE_TOO_LARGE,
    problems.STORAGE_FULL,
)


@router.post("/restore", summary="Go back", responses=responses(*_REFUSED, problems.CHECKPOINT_NOT_FOUND))
async def restore(session_id: SessionId, body: RestoreRequest, caller: UsesCaller, store: UsesStore) -> SessionInfo:
    """Go back to a checkpoint, or to a step that is retained, at least the last 50; `next_step` goes back too."""
    session = await store.get(session_id, caller.owners)
    if body.step is not None and body.checkpoint is None:
        await rewinding.rewind(store.turns, session, body.step)
    elif body.checkpoint is not None and body.step is None:
        await rewinding.restore(store.turns, session, body.checkpoint)
    else:
        raise RequestInvalid("Name where to go back to: either a `checkpoint` or a `step`.")
    return describe(session)


@router.post(
    "/fork",
    summary="Fork a session",
    status_code=status.HTTP_201_CREATED,
    responses=responses(*_REFUSED, problems.IDEMPOTENCY_CONFLICT),
)
async def fork(
    session_id: SessionId,
    request: Request,
    response: Response,
    caller: UsesCaller,
    store: UsesStore,
    body: ForkRequest | None = None,
    idempotency_key: IdempotencyKey = None,
) -> SessionInfo:
    """Make a second session, of the same version and settings, with the hidden state of this one at a step or now."""
    session = await store.get(session_id, caller.owners)
    asked = session_id.encode() + b"/fork" + await request.body()
    fingerprint = hashlib.sha256(asked).hexdigest() if idempotency_key else ""
    step = None if body is None else body.step
    allowance = Allowance(caller.limits.sessions, caller.limits.coordinates)
    made = await store.fork(session, caller.name, step, idempotency_key, fingerprint, allowance)
    response.headers["Location"] = f"{API_PREFIX}/sessions/{made.id}"
    return describe(made)


@router.get("/history", summary="Loss and norms of the steps", responses=responses(*GONE))
async def get_history(session_id: SessionId, caller: UsesCaller, store: UsesStore) -> History:
    """The steps that led to the hidden state, the oldest first, thinned evenly; and what the update guard did."""
    session = await store.get(session_id, caller.owners)

    def tell(awake: Awake) -> History:
        return History(awake.history.items(), list(awake.history.guard_events))

    return await store.turns.run(session, tell)
