"""Whether the server lives, and whether it is ready to serve."""

from typing import Annotated

from fastapi import APIRouter, Depends, Request

import optserve
from optserve.wire import problems
from optserve.wire.bodies import Health
from optserve_server.api.database_watch import DatabaseWatch
from optserve_server.api.dependencies import UsesStore
from optserve_server.api.problems import Problem, responses
from optserve_server.api.traffic import Drain

router = APIRouter(tags=["health"])


async def _drain(request: Request) -> Drain:
    drain: Drain = request.app.state.drain
    return drain


async def _watch(request: Request) -> DatabaseWatch:
    watch: DatabaseWatch = request.app.state.database_watch
    return watch


UsesDatabaseWatch = Annotated[DatabaseWatch, Depends(_watch)]


@router.head("/healthz", include_in_schema=False)
@router.get("/healthz", summary="Whether the server lives", responses=responses())
async def healthz() -> Health:
    """Answers as long as the process serves requests."""
    return Health("ok", optserve.__version__)


@router.head("/readyz", include_in_schema=False)
@router.get("/readyz", summary="Whether the server is ready", responses=responses(problems.NOT_READY))
async def readyz(watch: UsesDatabaseWatch, store: UsesStore, drain: Annotated[Drain, Depends(_drain)]) -> Health:
    """Answers when everything can be asked for: the database is there, and the server is not shutting down.

    Else 503, and `checks` say why. Steps do not need the database, and go on while it is away.
    """
    if drain.draining:
        raise Problem(problems.DRAINING, "The server is shutting down.", checks={"requests": "shutting down"})
    seen = await watch.look()
    checks = {
        "database": f"at revision {seen.revision}" if seen.away is None else f"away: {seen.away}",
        "sessions": f"{len(store)}, {store.memory.free} bytes free",
        "requests": "taken",
    }
    if seen.away is not None:
        raise Problem(problems.NOT_READY, f"The database is {checks['database']}.", checks=checks)
    return Health("ready", optserve.__version__, checks)
