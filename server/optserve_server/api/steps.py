"""`POST /sessions/{id}/steps/{step}`: gradients in, updates out. Nothing else is on this way."""

import math
import re
from collections.abc import Sequence
from typing import Any
from urllib.parse import parse_qsl

import structlog
from fastapi import APIRouter, Request
from numpy.typing import NDArray
from starlette.responses import Response

from optserve.wire import (
    APPROXIMATE,
    HEADER_DURABILITY,
    HEADER_GUARD,
    HEADER_RESUMED,
    HEADER_SERVER_TIMING,
    HEADER_STEP,
    RELAXED,
    SYNCED,
    problems,
)
from optserve.wire.guard import HELD, GuardNote, format_notes
from optserve_server import metrics
from optserve_server.api import forms, json_form
from optserve_server.api.accounts import Account
from optserve_server.api.bodies import PlainRoute, receive
from optserve_server.api.documents import STEP
from optserve_server.api.key_ring import Caller
from optserve_server.api.problems import responses
from optserve_server.api.targets import Target
from optserve_server.naming import nearest, shown
from optserve_server.sessions import stepping
from optserve_server.sessions.errors import GradientsInvalid, RequestInvalid
from optserve_server.sessions.plan import MAX_STEPS
from optserve_server.sessions.stepping import StepReply, StepRequest
from optserve_server.sessions.steps import StepGradients
from optserve_server.sessions.store import SessionStore

log = structlog.get_logger(__name__)

router = APIRouter(tags=["sessions"], route_class=PlainRoute)

_WHOLE_NUMBER = re.compile(r"[0-9]{1,16}")
_JSON_NUMBER = re.compile(r"-?[0-9]+(\.[0-9]+)?([eE][+-]?[0-9]+)?")
_QUERY = ("loss", "skip")


@router.post(
    "/sessions/{session_id}/steps/{step}",
    summary="Send gradients, get updates",
    openapi_extra=STEP,
    responses=responses(
        problems.MALFORMED_BODY,
        problems.SESSION_NOT_FOUND,
        problems.STEP_CONFLICT,
        problems.SESSION_EXPIRED,
        problems.BODY_TOO_LARGE,
        problems.UNSUPPORTED_MEDIA_TYPE,
        problems.GRADIENTS_INVALID,
        problems.PARAMETERS_NEEDED,
        problems.STORAGE_FULL,
    ),
)
async def take_step(request: Request) -> Response:
    """One step of the inner loop: ∇_t in, g_t out, θ_{t+1} = θ_t + g_t.

    `step` must be the session's `next_step`. The last step sent again with the same gradients gets the same reply.
    """
    store: SessionStore = request.app.state.store
    caller: Caller = request.state.caller
    session = await store.get(request.path_params["session_id"], caller.owners)
    number = _step_number(request.path_params["step"])
    form = forms.media_type(request.headers.get("content-type", ""))
    loss, skip = _read_query(request.scope["query_string"])
    gradients = StepGradients(session.layout.select(skip), session.dtype, loss)
    target = Target("gradients", gradients.bits, gradients.selection, session.dtype, GradientsInvalid)
    parse, length = await receive(request, form, target)

    def write(updates: NDArray[Any]) -> bytes | memoryview:
        return forms.write(form, number, updates, gradients.selection, session.dtype)

    asked = StepRequest(number, gradients, lambda: _take_loss(parse(), gradients), length, write)
    reply = await stepping.take_step(store.turns, session, asked)
    account: Account = request.state.account
    account.steps += 1
    if reply.guard_notes and not reply.is_repeated:
        _tell_of_guard(number, reply.guard_notes)
    metrics.step_taken(gradients.selection.coordinates, queue=reply.queue, compute=reply.compute, journal=reply.journal)
    return Response(reply.body, 200, _headers(number, reply, store), form)


def _headers(number: int, reply: StepReply, store: SessionStore) -> dict[str, str]:
    parts = (("queue", reply.queue), ("journal", reply.journal), ("compute", reply.compute))
    return {
        HEADER_STEP: str(number),
        HEADER_DURABILITY: SYNCED if store.sync else RELAXED,
        HEADER_SERVER_TIMING: ", ".join(f"{part};dur={seconds * 1e3:.3f}" for part, seconds in parts),
        **({HEADER_RESUMED: APPROXIMATE} if reply.is_approximate else {}),
        **({HEADER_GUARD: format_notes(reply.guard_notes)} if reply.guard_notes else {}),
    }


def _tell_of_guard(step: int, notes: Sequence[GuardNote]) -> None:
    metrics.guard_acted((note.event, note.reason, note.count) for note in notes)
    for note in notes:
        if note.event != HELD:
            told = {"reason": note.reason, "count": note.count, "tensors": note.tensors, "afresh": note.afresh}
            log.warning(f"update guard: {note.event}", step=step, **told)


def _step_number(text: str) -> int:
    if not _WHOLE_NUMBER.fullmatch(text) or int(text) >= MAX_STEPS:
        raise RequestInvalid(f"{shown(text)} is no step: steps are whole numbers from 0 to {MAX_STEPS - 1}.")
    return int(text)


def _read_query(query: bytes) -> tuple[float | None, list[str]]:
    if not query:
        return None, []
    loss: float | None = None
    skip: list[str] = []
    for name, value in parse_qsl(query.decode("latin-1"), keep_blank_values=True):
        if name == "skip":
            skip.append(value)
        elif name == "loss":
            if loss is not None:
                raise RequestInvalid("`loss` is in the query twice; send one.")
            loss = _finite_loss(value, float(value) if _JSON_NUMBER.fullmatch(value) else None)
        else:
            raise RequestInvalid(
                f"There is no query parameter {shown(name)}{nearest(name, _QUERY)}; a step takes `loss` and `skip`."
            )
    return loss, skip


def _take_loss(rest: dict[str, Any], gradients: StepGradients) -> None:
    json_form.require_known(rest, ("loss",))
    if rest.get("loss") is not None:
        loss = _finite_loss(rest["loss"], rest["loss"])
        if gradients.loss not in (None, loss):
            raise RequestInvalid("`loss` is in the query and, with another value, in the body; send one.", "/loss")
        gradients.loss = loss


def _finite_loss(given: Any, loss: Any) -> float:
    if not (isinstance(loss, float) and math.isfinite(loss)):
        raise RequestInvalid(f"`loss` is {shown(given)}; it must be a finite number. Leave it out if there is none.")
    return loss
