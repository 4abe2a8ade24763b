"""What a run is and has measured, as JSON and as Server-Sent Events (WHATWG HTML, section 9.2)."""

import json
from collections.abc import AsyncIterator, Callable, Set
from dataclasses import asdict
from typing import Any

import anyio
from fastapi.concurrency import run_in_threadpool
from sse_starlette import EventSourceResponse, ServerSentEvent

from optserve.wire.meta_training import RunInfo
from optserve_server.api.problems import Problem
from optserve_server.api.traffic import RETRY_AFTER_SECONDS
from optserve_server.registry import leases, runs
from optserve_server.registry.database import UNREACHABLE, Database
from optserve_server.registry.models import MetaTrainingMetrics
from optserve_server.registry.runs import RunEntry

EVENT_STREAM = "text/event-stream"

_POLL_SECONDS = 0.5
_AWAY_SECONDS = 2.0  # between two looks at a database that is away
_ROWS = 500  # that are read at once


def stream(database: Database, run_id: str, owners: Callable[[], Set[str]], *, after: int) -> EventSourceResponse:
    """An event for each row behind the outer step `after`, and `end` once the run is over.

    A server that stops ends the stream with a comment in its place; whoever watches comes back with the last id.
    `owners` tells whose runs the one who watches sees, and is asked again for every look at the run; it may raise a
    Problem.
    """
    stopping = anyio.Event()
    return EventSourceResponse(
        _events(database, run_id, owners, after, stopping),
        sep="\n",
        shutdown_event=stopping,
        shutdown_grace_period=4 * _POLL_SECONDS,
    )


def describe(entry: RunEntry) -> RunInfo:
    """A run as JSON tells of it."""
    run = entry.run
    pace = run.seconds_per_outer_step if run.status == leases.RUNNING else None
    return RunInfo(
        id=run.id,
        name=run.name,
        status=run.status,
        outer_step=run.outer_step,
        outer_steps=run.outer_steps,
        eta_seconds=None if pace is None else pace * (run.outer_steps - run.outer_step),
        meta_loss=entry.meta_loss,
        meta_loss_held_out=entry.meta_loss_held_out,
        versions=entry.versions,
        worker=run.worker,
        device=run.device,
        attempt=run.attempt,
        cancel_requested=run.cancel_requested,
        error=run.error,
        owner=run.owner,
        created_at=run.created_at.isoformat(),
        started_at=None if run.started_at is None else run.started_at.isoformat(),
        finished_at=None if run.finished_at is None else run.finished_at.isoformat(),
        recipe=run.recipe,
    )


def describe_row(row: MetaTrainingMetrics) -> dict[str, Any]:
    """One outer step as JSON tells of it; without `meta_loss_held_out` where φ was not validated."""
    held_out = {} if row.meta_loss_held_out is None else {"meta_loss_held_out": row.meta_loss_held_out}
    return {"outer_step": row.outer_step, "meta_loss": row.meta_loss, **held_out, **row.details}


async def _events(
    database: Database, run_id: str, owners: Callable[[], Set[str]], after: int, stopping: anyio.Event
) -> AsyncIterator[ServerSentEvent]:
    while not stopping.is_set():
        try:
            allowed = owners()
        except Problem:  # the key is of no use any more, as whoever comes back is told
            return
        try:
            info, rows = await run_in_threadpool(_read, database, run_id, allowed, after)
        except UNREACHABLE:  # as the log says for others; the stream goes on with the database
            await anyio.sleep(_AWAY_SECONDS)
            continue
        for row in rows:
            yield ServerSentEvent(json.dumps(row), id=str(row["outer_step"]))
        after = rows[-1]["outer_step"] if rows else after
        if len(rows) == _ROWS:
            continue
        if info.status in leases.OVER:
            yield ServerSentEvent(json.dumps(asdict(info)), event="end", id=str(after))
            return
        await anyio.sleep(_POLL_SECONDS)
    # `retry` says when browsers come back.
    yield ServerSentEvent(comment="the server is shutting down", retry=1000 * RETRY_AFTER_SECONDS)


def _read(database: Database, run_id: str, owners: Set[str], after: int) -> tuple[RunInfo, list[dict[str, Any]]]:
    # The run first: where it is over, all its rows are there when they are read.
    with database.session() as db_session:
        entry = runs.get_entry(db_session, run_id, owners)
        rows = runs.list_metrics_after(db_session, entry.run, after, limit=_ROWS)
    return describe(entry), [describe_row(row) for row in rows]
