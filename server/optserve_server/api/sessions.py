"""Sessions: create, list, read, change, delete."""

import hashlib
from dataclasses import asdict, replace
from itertools import accumulate
from typing import Annotated

from fastapi import APIRouter, Path, Request, Response, status

from optserve.wire import API_PREFIX, problems
from optserve.wire.bodies import (
    GuardInfo,
    OptimizerReference,
    Page,
    Parameter,
    SessionInfo,
    SessionPatch,
    SessionRequest,
)
from optserve.wire.gradients import STORAGE
from optserve_server.api.authorisation import UsesCaller
from optserve_server.api.bodies import JsonRoute
from optserve_server.api.dependencies import Cursor, IdempotencyKey, Limit, UsesSettings, UsesStore, UsesVersions
from optserve_server.api.problems import responses
from optserve_server.naming import shown
from optserve_server.sessions.changing import update
from optserve_server.sessions.errors import RequestInvalid
from optserve_server.sessions.guard_options import guard_options
from optserve_server.sessions.holdings import Allowance
from optserve_server.sessions.layout import MAX_PARAMETERS, lay_out
from optserve_server.sessions.plan import Plan
from optserve_server.sessions.session import Session, rfc3339

router = APIRouter(prefix="/sessions", tags=["sessions"], route_class=JsonRoute)

SessionId = Annotated[str, Path(description="The session's `id`")]


@router.post(
    "",
    summary="Create a session",
    status_code=status.HTTP_201_CREATED,
    responses=responses(
        problems.MALFORMED_BODY,
        problems.OPTIMIZER_NOT_FOUND,
        problems.VERSION_NOT_FOUND,
        problems.ALIAS_NOT_FOUND,
        problems.IDEMPOTENCY_CONFLICT,
        problems.BODY_TOO_LARGE,
        problems.UNSUPPORTED_MEDIA_TYPE,
        problems.HYPERPARAMETERS_INVALID,
        problems.STATE_TOO_LARGE,
        problems.STORAGE_FULL,
    ),
)
async def create_session(
    body: SessionRequest,
    request: Request,
    response: Response,
    caller: UsesCaller,
    store: UsesStore,
    versions: UsesVersions,
    settings: UsesSettings,
    idempotency_key: IdempotencyKey = None,
) -> SessionInfo:
    """Start a training loop's hidden state at h_0 = 0, under an optimizer version that it keeps for ever."""
    fingerprint = hashlib.sha256(await request.body()).hexdigest() if idempotency_key else ""
    session = await store.find_created(caller.name, idempotency_key, fingerprint) if idempotency_key else None
    if session is None:
        plan = Plan(body.dtype, body.hyperparameters, body.horizon, body.label, body.ttl_seconds, caller.name)
        plan.check()
        room = settings.max_body_bytes // STORAGE[body.dtype].itemsize
        layout = lay_out([(one.name, one.shape) for one in body.parameters], room)
        version = await versions.resolve(settings.default_optimizer if body.optimizer is None else body.optimizer)
        plan = replace(plan, guard=guard_options(body.guard, learned=version.optimizer.learned))
        allowance = Allowance(caller.limits.sessions, caller.limits.coordinates)
        session = await store.create(version, layout, plan, idempotency_key, fingerprint, allowance)
    response.headers["Location"] = f"{API_PREFIX}/sessions/{session.id}"
    return describe(session)


@router.get("", summary="List the sessions", responses=responses())
async def list_sessions(
    caller: UsesCaller, store: UsesStore, limit: Limit = 100, cursor: Cursor = None
) -> Page[SessionInfo]:
    """The caller's living sessions in the order of their creation; a page is shorter if they have many parameters."""
    number = _read_cursor(cursor)
    found = await store.after(number, limit + 1, caller.owners)
    page = found[: _fitting(found[:limit])]
    return Page([describe(session) for session in page], str(page[-1].number) if len(found) > len(page) else None)


@router.get(
    "/{session_id}",
    summary="Describe a session",
    responses=responses(problems.SESSION_NOT_FOUND, problems.SESSION_EXPIRED),
)
async def get_session(session_id: SessionId, caller: UsesCaller, store: UsesStore) -> SessionInfo:
    """One session as it is now."""
    return describe(await store.get(session_id, caller.owners))


@router.patch(
    "/{session_id}",
    summary="Change a session",
    responses=responses(
        problems.MALFORMED_BODY,
        problems.SESSION_NOT_FOUND,
        problems.SESSION_EXPIRED,
        problems.BODY_TOO_LARGE,
        problems.UNSUPPORTED_MEDIA_TYPE,
        problems.HYPERPARAMETERS_INVALID,
        problems.STORAGE_FULL,
    ),
)
async def update_session(
    session_id: SessionId, body: SessionPatch, caller: UsesCaller, store: UsesStore
) -> SessionInfo:
    """Change hyperparameters, the label or the time to live between two steps; all of it or nothing."""
    session = await store.get(session_id, caller.owners)
    given = {name: value for name, value in asdict(body).items() if value is not None}
    await update(store.turns, session, given)
    return describe(session)


@router.delete(
    "/{session_id}",
    summary="Delete a session",
    status_code=status.HTTP_204_NO_CONTENT,
    responses=responses(problems.SESSION_NOT_FOUND, problems.SESSION_EXPIRED),
)
async def delete_session(session_id: SessionId, caller: UsesCaller, store: UsesStore) -> None:
    """Delete a session with its hidden state and checkpoints."""
    await store.delete(session_id, caller.owners)


def describe(session: Session) -> SessionInfo:
    """A session as JSON tells of it."""
    description, settings = session.description, session.settings
    version, guard = description.version, description.plan.guard
    return SessionInfo(
        id=session.id,
        optimizer=OptimizerReference(version.name, version.number, version.sha256),
        next_step=session.next_step,
        coordinates=session.layout.coordinates,
        parameters=[Parameter(one.name, list(one.shape)) for one in session.layout.parameters],
        dtype=session.dtype,
        hyperparameters=settings.hyperparameters,
        horizon=description.plan.horizon,
        label=settings.label,
        ttl_seconds=settings.ttl_seconds,
        created_at=rfc3339(description.created_at),
        expires_at=rfc3339(session.expires_at),
        guard=None if guard is None else GuardInfo(**asdict(guard)),
    )


def _fitting(sessions: list[Session]) -> int:
    # How many one reply describes, at least one: a page of many large sessions would hold up the event loop.
    parameters = accumulate(len(session.layout.parameters) for session in sessions)
    return max(1, sum(total <= MAX_PARAMETERS for total in parameters))


def _read_cursor(cursor: str | None) -> int:
    if cursor is None:
        return 0
    if not (cursor.isascii() and cursor.isdigit()):
        raise RequestInvalid(f"{shown(cursor)} is no cursor of this list; send `next_cursor` as it came.")
    return int(cursor)
