"""What admins do goes into the audit trail: every route that only they may call, unless it only reads."""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import structlog
from fastapi import Request
from fastapi.concurrency import run_in_threadpool
from fastapi.exceptions import RequestValidationError
from sqlalchemy.exc import SQLAlchemyError
from starlette.exceptions import HTTPException

from optserve.wire.gradients import JSON
from optserve_server.api.key_ring import Caller
from optserve_server.registry import acts, audit
from optserve_server.registry.acts import Act
from optserve_server.registry.database import UNREACHABLE, Database, reason
from optserve_server.registry.errors import RegistryError
from optserve_server.sessions.errors import SessionError

log = structlog.get_logger(__name__)

MAX_DETAILS_BYTES = 16 << 10
"""Of a request's body that is written down as it is."""

_READING = frozenset({"GET", "HEAD", "OPTIONS"})
_FAULT = 500


@asynccontextmanager
async def audited(request: Request, caller: Caller) -> AsyncIterator[None]:
    """Write down what is done in the block: with the transaction that does it, or else behind it."""
    if request.method in _READING:
        yield
        return
    act = Act(caller.name, _address(request), request.scope["route"].name, _target(request), await _details(request))
    acts.begin(act)
    try:
        yield
    except UNREACHABLE as error:  # whoever asks has waited for the database already, and nothing has been done
        log.warning("the audit trail misses an act", actor=act.actor, action=act.action, reason=reason(error))
        raise
    except Exception as error:
        await _write(request.app.state.database, act, acts.REFUSED if _is_refusal(error) else acts.FAILED)
        raise
    await _write(request.app.state.database, act, acts.DONE)


async def _write(database: Database, act: Act, outcome: str) -> None:
    if act.is_written:
        return
    act.is_written = True  # or this transaction would take it along too
    try:
        await run_in_threadpool(_add, database, act, outcome)
    except SQLAlchemyError as error:  # nothing has been done, so that nothing is missing but that somebody tried
        reason = str(error).partition("\n")[0]
        log.warning("the audit trail misses an act", actor=act.actor, action=act.action, reason=reason)


def _add(database: Database, act: Act, outcome: str) -> None:
    with database.session(write=True) as db_session:
        audit.add(db_session, act, outcome)


def _address(request: Request) -> str:
    return request.client.host if request.client and request.client.host else "Unix socket"


def _target(request: Request) -> str:
    # As it was sent, for not every database can hold what it stands for.
    raw_path: bytes = request.scope["raw_path"]
    return raw_path.decode("latin-1")


async def _details(request: Request) -> dict[str, Any] | None:
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != JSON:
        length = request.headers.get("content-length", "")
        return {"bytes": int(length)} if length.isdigit() and int(length) else None
    body = await request.body()  # which the framework has read already
    if not body:
        return None
    if len(body) > MAX_DETAILS_BYTES:
        return {"bytes": len(body)}
    try:
        members = json.loads(body)
        json.dumps(members, allow_nan=False)
    except (ValueError, RecursionError):  # no JSON, or none that a database holds; no request is valid with it
        return {"bytes": len(body)}
    return members if isinstance(members, dict) else None


def _is_refusal(error: Exception) -> bool:
    if isinstance(error, HTTPException):
        return error.status_code < _FAULT
    if isinstance(error, (RegistryError, SessionError)):
        return error.problem.status < _FAULT
    return isinstance(error, RequestValidationError)
