"""A session's hidden state: checkpoints, the whole state out and in, its digest, and the parameters θ beside it."""

import json
from dataclasses import asdict

from fastapi import APIRouter, Request
from starlette.responses import Response

from optserve.wire import problems
from optserve.wire.bodies import CheckpointInfo, Digest, Page, SessionInfo
from optserve.wire.gradients import JSON, SAFETENSORS
from optserve_server.api import documents, forms, json_form
from optserve_server.api.authorisation import UsesCaller
from optserve_server.api.bodies import JsonRoute, PlainRoute, read_body, receive
from optserve_server.api.dependencies import Cursor, Limit, UsesStore, page_of
from optserve_server.api.key_ring import Caller
from optserve_server.api.problems import Problem, responses
from optserve_server.api.sessions import SessionId, describe
from optserve_server.api.targets import Target
from optserve_server.sessions import changing, checkpoints, state
from optserve_server.sessions.awake import Awake
from optserve_server.sessions.checkpoints import Checkpoint
from optserve_server.sessions.errors import ParametersInvalid
from optserve_server.sessions.session import Session, rfc3339
from optserve_server.sessions.steps import Numbers
from optserve_server.sessions.store import SessionStore
from optserve_server.sessions.turns import Turn

router = APIRouter(prefix="/sessions/{session_id}", tags=["hidden state"], route_class=JsonRoute)
plain_router = APIRouter(prefix="/sessions/{session_id}", tags=["hidden state"], route_class=PlainRoute)

GONE = (problems.SESSION_NOT_FOUND, problems.SESSION_EXPIRED, problems.SESSION_DAMAGED)


@router.put(
    "/checkpoints/{name:path}",  # a name may have slashes
    summary="Save a checkpoint",
    responses=responses(*GONE, problems.STATE_TOO_LARGE, problems.STORAGE_FULL),
)
async def save_checkpoint(session_id: SessionId, name: str, caller: UsesCaller, store: UsesStore) -> CheckpointInfo:
    """Keep the hidden state under a name; an earlier checkpoint of that name is replaced."""
    session = await store.get(session_id, caller.owners)
    checkpoints.require_name(name)
    place = store.directory.place(session.id)

    async def act(turn: Turn) -> Checkpoint:
        return await store.turns.waking.do(lambda: checkpoints.save(place, session.id, turn.awake, name))

    return _checkpoint_info(await store.turns.act(session, act))


@router.get("/checkpoints", summary="List the checkpoints", responses=responses(*GONE))
async def list_checkpoints(
    session_id: SessionId, caller: UsesCaller, store: UsesStore, limit: Limit = 100, cursor: Cursor = None
) -> Page[CheckpointInfo]:
    """The session's checkpoints, in the order of their names."""
    session = await store.get(session_id, caller.owners)
    place = store.directory.place(session.id)
    found = await store.waking.do(lambda: checkpoints.kept(place, session.id))
    rest = [checkpoint for checkpoint in found if checkpoint.name > (cursor or "")]
    return page_of(rest, limit, _checkpoint_info, lambda checkpoint: checkpoint.name)


@router.get("/digest", summary="Digest of the hidden state", responses=responses(*GONE))
async def get_digest(session_id: SessionId, caller: UsesCaller, store: UsesStore) -> Digest:
    """The SHA-256 of what `GET …/state` answers: equal digests prove equal hidden states."""
    session = await store.get(session_id, caller.owners)
    return await store.turns.run(session, lambda awake: Digest(awake.next_step, state.digest(awake)))


@plain_router.get(
    "/state",
    summary="Download the hidden state",
    response_class=Response,
    openapi_extra=documents.GET_STATE,
    responses=responses(*GONE),
)
async def get_state(request: Request) -> Response:
    """The whole of h_t as a safetensors file; equal states give equal bytes."""
    store, session = await _session(request)
    return Response(await store.turns.run(session, state.encode), media_type=SAFETENSORS)


@plain_router.put(
    "/state",
    summary="Upload a hidden state",
    openapi_extra=documents.PUT_STATE,
    response_model=SessionInfo,
    responses=responses(
        problems.MALFORMED_BODY,
        *GONE,
        problems.STATE_MISMATCH,
        problems.BODY_TOO_LARGE,
        problems.UNSUPPORTED_MEDIA_TYPE,
        problems.STATE_TOO_LARGE,
        problems.STORAGE_FULL,
    ),
)
async def put_state(request: Request) -> Response:
    """Go on from a state that `GET …/state` gave, of the same optimizer version and the same parameters."""
    store, session = await _session(request)
    if forms.media_type(request.headers.get("content-type", "")) != SAFETENSORS:
        raise Problem(problems.UNSUPPORTED_MEDIA_TYPE, f"Send the state as {SAFETENSORS}.", media_types=[SAFETENSORS])
    data = await read_body(request, await store.turns.run(session, _longest_state))
    await changing.put_state(store.turns, session, data)
    return _json(session)


@plain_router.put(
    "/parameters",
    summary="Send the parameters θ",
    status_code=204,
    openapi_extra=documents.PUT_PARAMETERS,
    responses=responses(
        problems.MALFORMED_BODY,
        *GONE,
        problems.BODY_TOO_LARGE,
        problems.UNSUPPORTED_MEDIA_TYPE,
        problems.STATE_TOO_LARGE,
        problems.STORAGE_FULL,
    ),
)
async def put_parameters(request: Request) -> Response:
    """Give the optimizer θ, once; the server then follows θ_{t+1} = θ_t + g_t. Sent again, it starts from there."""
    store, session = await _session(request)
    form = forms.media_type(request.headers.get("content-type", ""))
    numbers = Numbers(session.layout.complete, session.dtype)
    target = Target("parameters", numbers.bits, numbers.selection, session.dtype, ParametersInvalid)
    parse, length = await receive(request, form, target)
    await changing.put_parameters(store.turns, session, numbers, lambda: json_form.require_known(parse(), ()), length)
    return Response(status_code=204)


def _longest_state(awake: Awake) -> int:
    layout = awake.layout
    numbers = layout.coordinates * (awake.arena.features + 1) + 2 * len(layout.parameters)
    return numbers * 4 + awake.array_bytes + state.longest_header(awake)


async def _session(request: Request) -> tuple[SessionStore, Session]:
    store: SessionStore = request.app.state.store
    caller: Caller = request.state.caller
    return store, await store.get(request.path_params["session_id"], caller.owners)


def _checkpoint_info(checkpoint: Checkpoint) -> CheckpointInfo:
    return CheckpointInfo(checkpoint.name, checkpoint.step, rfc3339(checkpoint.created_at))


def _json(session: Session) -> Response:
    return Response(json.dumps(asdict(describe(session))), media_type=JSON)
