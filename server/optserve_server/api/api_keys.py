"""API keys: made, listed, revoked. The key itself is in the reply that made it, and nowhere else."""

import asyncio
import hashlib
from dataclasses import fields
from typing import Annotated

from fastapi import APIRouter, Depends, Path, Request, Response, status
from fastapi.concurrency import run_in_threadpool
from pydantic import TypeAdapter

from optserve.wire import API_PREFIX, problems
from optserve.wire.api_keys import ApiKeyInfo, ApiKeyRequest, NewApiKey
from optserve.wire.bodies import Page
from optserve_server.api.authorisation import RequiresAdmin, UsesCaller, UsesKeys
from optserve_server.api.bodies import JsonRoute
from optserve_server.api.dependencies import (
    Cursor,
    IdempotencyKey,
    Limit,
    UsesDatabase,
    idempotency_keys,
    page_of,
    read_number,
)
from optserve_server.api.problems import responses
from optserve_server.registry import api_keys
from optserve_server.registry.database import Database
from optserve_server.sessions.idempotency import IdempotencyKeys

router = APIRouter(prefix="/api-keys", tags=["API keys"], route_class=JsonRoute, dependencies=[RequiresAdmin])

IdOrName = Annotated[str, Path(description="The key's `id`, or the name of an unrevoked one")]

_MADE = TypeAdapter(NewApiKey)
_making = asyncio.Lock()


@router.post(
    "",
    summary="Make an API key",
    status_code=status.HTTP_201_CREATED,
    responses=responses(
        problems.MALFORMED_BODY,
        problems.API_KEY_EXISTS,
        problems.IDEMPOTENCY_CONFLICT,
        problems.BODY_TOO_LARGE,
        problems.UNSUPPORTED_MEDIA_TYPE,
    ),
)
async def create_api_key(
    body: ApiKeyRequest,
    request: Request,
    response: Response,
    caller: UsesCaller,
    ring: UsesKeys,
    database: UsesDatabase,
    repeats: Annotated[IdempotencyKeys, Depends(idempotency_keys("api-keys"))],
    idempotency_key: IdempotencyKey = None,
) -> NewApiKey:
    """Make a key of scope `client` or `admin`. The first one closes the server to everybody without a key.

    The reply is the only place where the key is told. Until the server stops, the same request under the same
    `Idempotency-Key` gets it once more.
    """
    fingerprint = hashlib.sha256(await request.body()).hexdigest()
    async with _making:  # a key is looked up and remembered before another request can bring the same one
        before = repeats.find(caller.name, idempotency_key, fingerprint) if idempotency_key else None
        made = _MADE.validate_json(before) if before else await run_in_threadpool(_make, database, body)
        if idempotency_key:
            repeats.remember(caller.name, idempotency_key, fingerprint, _MADE.dump_json(made).decode())
    await run_in_threadpool(ring.refresh)
    response.headers["Cache-Control"] = "no-store"
    response.headers["Location"] = f"{API_PREFIX}/api-keys/{made.id}"
    return made


@router.get("", summary="List the API keys", responses=responses())
def list_api_keys(database: UsesDatabase, limit: Limit = 100, cursor: Cursor = None) -> Page[ApiKeyInfo]:
    """Every key in the order of their making, revoked ones too."""
    after = read_number(cursor) or 0
    with database.session() as db_session:
        found = api_keys.list_keys(db_session, limit=limit + 1, after=after)
    return page_of(found, limit, api_keys.describe, lambda key: key.id)


@router.get("/{id_or_name}", summary="Describe an API key", responses=responses(problems.API_KEY_NOT_FOUND))
def get_api_key(id_or_name: IdOrName, database: UsesDatabase) -> ApiKeyInfo:
    """One key: its scope, and when it was made, last used, and revoked."""
    with database.session() as db_session:
        return api_keys.describe(api_keys.get_key(db_session, id_or_name))


@router.delete(
    "/{id_or_name}",
    summary="Revoke an API key",
    status_code=status.HTTP_204_NO_CONTENT,
    responses=responses(problems.API_KEY_NOT_FOUND),
)
def revoke_api_key(id_or_name: IdOrName, ring: UsesKeys, database: UsesDatabase) -> None:
    """Refuse a key for ever: at once in this process, within a second in others. The list keeps it, as revoked."""
    with database.session(write=True) as db_session:
        api_keys.revoke_key(db_session, api_keys.get_key(db_session, id_or_name))
    ring.refresh()


def _make(database: Database, body: ApiKeyRequest) -> NewApiKey:
    with database.session(write=True) as db_session:
        row, key = api_keys.add_key(
            db_session, body.name, body.scope, expires_in_days=body.expires_in_days, limits=body.limits
        )
    return _new(api_keys.describe(row), key)


def _new(made: ApiKeyInfo, key: str) -> NewApiKey:
    return NewApiKey(**{one.name: getattr(made, one.name) for one in fields(ApiKeyInfo)}, key=key)
