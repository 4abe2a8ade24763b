"""Meta-training runs: asked for, listed, watched, cancelled, resumed. Workers carry them out."""

import hashlib
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Body, Header, Path, Query, Request, Response, status
from fastapi.concurrency import run_in_threadpool

from optserve.wire import API_PREFIX, problems
from optserve.wire.bodies import Page
from optserve.wire.meta_training import ResumeRequest, RunInfo, RunMetrics
from optserve_server.api import documents, recipes
from optserve_server.api.authorisation import RequiresAdmin, UsesCaller, UsesKeys
from optserve_server.api.bodies import JsonRoute
from optserve_server.api.dependencies import (
    Cursor,
    IdempotencyKey,
    Limit,
    UsesDatabase,
    UsesSettings,
    page_of,
    read_number,
)
from optserve_server.api.key_ring import Caller
from optserve_server.api.problems import responses
from optserve_server.api.run_replies import EVENT_STREAM, describe, describe_row, stream
from optserve_server.metatraining.recipes import Recipe
from optserve_server.registry import runs
from optserve_server.registry.database import Database
from optserve_server.registry.models import MetaTrainingRun
from optserve_server.registry.references import NEWEST_NUMBER
from optserve_server.sessions.errors import IdempotencyConflict
from optserve_server.settings import Settings

router = APIRouter(
    prefix="/meta-training-runs", tags=["meta-training"], route_class=JsonRoute, dependencies=[RequiresAdmin]
)

MAX_POINTS = 2000
"""Of a curve as JSON."""

RunId = Annotated[str, Path(description="The run's `id`")]
Status = Annotated[
    Literal["queued", "running", "succeeded", "failed", "cancelled"] | None,
    Query(alias="status", description="Only runs in this status"),
]
LastEventId = Annotated[
    int,
    Header(
        alias="Last-Event-ID", ge=0, le=NEWEST_NUMBER, description="With an event stream: only outer steps behind it"
    ),
]

_RECIPE = documents.json_body(Recipe.model_json_schema(ref_template=documents.SCHEMAS))


@router.post(
    "",
    summary="Launch a meta-training run",
    status_code=status.HTTP_202_ACCEPTED,
    openapi_extra={"requestBody": _RECIPE},
    responses=responses(
        problems.MALFORMED_BODY,
        problems.IDEMPOTENCY_CONFLICT,
        problems.BODY_TOO_LARGE,
        problems.UNSUPPORTED_MEDIA_TYPE,
        problems.RECIPE_INVALID,
    ),
)
async def create_meta_training_run(
    body: Annotated[dict[str, Any], Body()],
    request: Request,
    response: Response,
    caller: UsesCaller,
    database: UsesDatabase,
    settings: UsesSettings,
    idempotency_key: IdempotencyKey = None,
) -> RunInfo:
    """Queue a run of a recipe, whose keys are those of the TOML files. `start_from` is resolved now, to one version."""
    fingerprint = hashlib.sha256(await request.body()).hexdigest()
    info = await run_in_threadpool(_create, database, settings, body, caller, idempotency_key, fingerprint)
    response.headers["Location"] = f"{API_PREFIX}/meta-training-runs/{info.id}"
    return info


@router.get("", summary="List the meta-training runs", responses=responses())
def list_meta_training_runs(
    caller: UsesCaller, database: UsesDatabase, limit: Limit = 100, cursor: Cursor = None, run_status: Status = None
) -> Page[RunInfo]:
    """The caller's runs, the newest first."""
    below = read_number(cursor)
    with database.session() as db_session:
        found = runs.list_entries(db_session, limit=limit + 1, below=below, status=run_status, owners=caller.owners)
    return page_of(found, limit, describe, lambda entry: entry.run.number)


@router.get("/{run_id}", summary="Describe a meta-training run", responses=responses(problems.RUN_NOT_FOUND))
def get_meta_training_run(run_id: RunId, caller: UsesCaller, database: UsesDatabase) -> RunInfo:
    """One run as it is now."""
    with database.session() as db_session:
        return describe(runs.get_entry(db_session, run_id, caller.owners))


@router.get(
    "/{run_id}/metrics",
    summary="Read or follow a run's metrics",
    response_model=RunMetrics,
    responses={
        200: {
            "description": "A row an outer step: as JSON, or one event each where the request accepts event streams",
            "content": {EVENT_STREAM: {"schema": {"type": "string"}}},
        },
        **responses(problems.RUN_NOT_FOUND),
    },
)
def get_meta_training_metrics(
    request: Request,
    run_id: RunId,
    caller: UsesCaller,
    keys: UsesKeys,
    database: UsesDatabase,
    accept: Annotated[str, Header(include_in_schema=False)] = "",
    last_event_id: LastEventId = 0,
) -> RunMetrics | Response:
    """What the run has measured, a row an outer step, evenly thinned to at most 2,000 and always with the last.

    With `Accept: text/event-stream`, every row is an event whose id is its outer step, those to come as they come. The
    event `end`, with the run as it is then, is the last: the run is over. A stream that was cut off goes on behind
    `Last-Event-ID`. A key that is revoked or expires cuts it off.
    """
    with database.session() as db_session:
        run = runs.get_run(db_session, run_id, caller.owners)
        if EVENT_STREAM not in accept:
            rows = runs.list_thinned_metrics(db_session, run, at_most=MAX_POINTS)
            return RunMetrics([describe_row(row) for row in rows])
    authorization = request.headers.get("authorization")
    return stream(database, run_id, lambda: keys.caller(authorization).owners, after=last_event_id)


@router.post(
    "/{run_id}/cancel",
    summary="Cancel a meta-training run",
    status_code=status.HTTP_202_ACCEPTED,
    responses=responses(problems.RUN_NOT_FOUND, problems.RUN_CONFLICT),
)
def cancel_meta_training_run(run_id: RunId, caller: UsesCaller, database: UsesDatabase) -> RunInfo:
    """End a run: at once where it waits; where it runs, its worker ends it at its next outer step, with a version."""
    with database.session(write=True) as db_session:
        runs.cancel_run(db_session, runs.get_run(db_session, run_id, caller.owners, lock=True))
        return describe(runs.get_entry(db_session, run_id, caller.owners))


@router.post(
    "/{run_id}/resume",
    summary="Resume a meta-training run",
    status_code=status.HTTP_202_ACCEPTED,
    responses=responses(
        problems.MALFORMED_BODY,
        problems.RUN_NOT_FOUND,
        problems.RUN_CONFLICT,
        problems.BODY_TOO_LARGE,
        problems.UNSUPPORTED_MEDIA_TYPE,
        problems.RECIPE_INVALID,
    ),
)
def resume_meta_training_run(
    run_id: RunId, caller: UsesCaller, database: UsesDatabase, body: ResumeRequest | None = None
) -> RunInfo:
    """Let a run that has failed, was cancelled or has succeeded go on from its last training checkpoint.

    `outer_steps` is how many it shall make in all; a run that has succeeded needs more than it had.
    """
    with recipes.naming_the_key(), database.session(write=True) as db_session:
        run = runs.get_run(db_session, run_id, caller.owners, lock=True)
        runs.resume_run(db_session, run, None if body is None else body.outer_steps, at_most=caller.limits.runs)
        return describe(runs.get_entry(db_session, run_id, caller.owners))


def _create(
    database: Database,
    settings: Settings,
    body: dict[str, Any],
    caller: Caller,
    idempotency_key: str | None,
    fingerprint: str,
) -> RunInfo:
    run = _find(database, caller.name, idempotency_key)
    if run is None:
        recipe = recipes.check(database, body, settings)
        with database.session(write=True) as db_session:
            run = runs.add_run(
                db_session,
                recipe.content,
                start_from=recipe.start_from,
                owner=caller.name,
                idempotency_key=idempotency_key,
                fingerprint=fingerprint,
                at_most=caller.limits.runs,
            )
    if run.fingerprint != fingerprint:
        raise IdempotencyConflict(str(idempotency_key))
    with database.session() as db_session:
        return describe(runs.get_entry(db_session, run.id))


def _find(database: Database, owner: str, idempotency_key: str | None) -> MetaTrainingRun | None:
    if idempotency_key is None:
        return None
    with database.session() as db_session:
        return runs.find_run_by_key(db_session, owner, idempotency_key)
