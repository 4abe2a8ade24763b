"""Whether the server lives, and whether it is ready to serve."""

import asyncio

from fastapi import APIRouter

import optserve
from optserve.wire.bodies import Health
from optserve_server.api.dependencies import UsesDatabase, UsesStore
from optserve_server.api.problems import responses

router = APIRouter(tags=["health"])


@router.head("/healthz", include_in_schema=False)
@router.get("/healthz", summary="Whether the server lives", responses=responses())
async def healthz() -> Health:
    """Answers as long as the process serves requests."""
    return Health("ok", optserve.__version__)


@router.head("/readyz", include_in_schema=False)
@router.get("/readyz", summary="Whether the server is ready", responses=responses())
async def readyz(database: UsesDatabase, store: UsesStore) -> Health:
    """Answers when the database is migrated and reachable."""
    revision = await asyncio.to_thread(database.current)
    checks = {"database": f"at revision {revision}", "sessions": f"{len(store)}, {store.memory.free} bytes free"}
    return Health("ready", optserve.__version__, checks)
