"""What the server counts and measures about itself, in one place; `GET /metrics` shows it.

Whoever has something to tell calls a function or one of the objects here. Labels come from small closed sets, never
from requests: no session's id, no path, no name of a key. Counting takes 0.3 µs and a histogram's `observe` 0.7 µs.

Names and units are those of https://prometheus.io/docs/practices/naming: seconds, bytes, and `_total` behind a counter.
"""

import asyncio
from collections.abc import Iterable

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    GCCollector,
    Histogram,
    Info,
    PlatformCollector,
    ProcessCollector,
    disable_created_metrics,
)

from optserve.wire.guard import BACK, HELD

disable_created_metrics()  # type: ignore[no-untyped-call]  # a second series of each, which nobody asks for

REGISTRY = CollectorRegistry()
"""All of this process. The command line's processes have one too, which nobody reads."""

ProcessCollector(registry=REGISTRY)
PlatformCollector(registry=REGISTRY)
GCCollector(registry=REGISTRY)

_STEP_BUCKETS = (2.5e-5, 5e-5, 1e-4, 2.5e-4, 5e-4, 1e-3, 2.5e-3, 5e-3, 1e-2, 2.5e-2, 5e-2, 0.1, 0.25, 0.5, 1, 2.5, 10)
_LAG_BUCKETS = (1e-3, 2.5e-3, 5e-3, 1e-2, 2.5e-2, 5e-2, 0.1, 0.25, 1, 5)

BUILD = Info("optserve_build", "The version of optserve that runs", registry=REGISTRY)

# --- steps ------------------------------------------------------------------------------------------------------------

STEPS = Counter("optserve_steps", "Steps answered", registry=REGISTRY)
COORDINATES = Counter("optserve_coordinates", "Coordinates of the steps answered", registry=REGISTRY)
STEP_SECONDS = Histogram(
    "optserve_step_seconds",
    "Parts of a step: in the queue, of computation, in the journal; the last two run side by side",
    ["part"],
    buckets=_STEP_BUCKETS,
    registry=REGISTRY,
)
_QUEUE, _COMPUTE, _JOURNAL = (STEP_SECONDS.labels(part) for part in ("queue", "compute", "journal"))
JOURNAL_BATCH = Histogram(
    "optserve_journal_batch_records",
    "Records of the journals that were written and synced at once",
    buckets=(1, 2, 4, 8, 16, 32),
    registry=REGISTRY,
)


def step_taken(coordinates: int, *, queue: float, compute: float, journal: float | None = None) -> None:
    """Count a step of so many coordinates, and the seconds of its parts; `journal` where it was written."""
    STEPS.inc()
    COORDINATES.inc(coordinates)
    _QUEUE.observe(queue)
    _COMPUTE.observe(compute)
    if journal is not None:
        _JOURNAL.observe(journal)


GUARD_EVENTS = Counter(
    "optserve_guard_events",
    "Parameter tensors that an update guard has put under its fallback, or back under their optimizer",
    ["event", "reason"],
    registry=REGISTRY,
)
GUARDED_STEPS = Counter(
    "optserve_guarded_steps", "Steps answered with a tensor under the fallback of an update guard", registry=REGISTRY
)


def guard_acted(notes: Iterable[tuple[str, str, int]]) -> None:
    """Count what a guard did at a step: event, reason and number of tensors each."""
    events = list(notes)
    for event, reason, tensors in events:
        if event != HELD:
            GUARD_EVENTS.labels(event, reason).inc(tensors)
    if any(event != BACK for event, _, _ in events):
        GUARDED_STEPS.inc()


# --- sessions: whoever opens the store gives these their functions, `SESSIONS.labels("awake").set_function(…)` --------

SESSIONS = Gauge("optserve_sessions", "Sessions: awake in memory, parked on disk", ["state"], registry=REGISTRY)
STATE_MEMORY = Gauge(
    "optserve_state_memory_bytes",
    "Bytes of memory that awake sessions take",
    registry=REGISTRY,
)
SESSION_FILES = Gauge("optserve_session_files_bytes", "Bytes on disk of all sessions", registry=REGISTRY)
STATE_MEMORY_LIMIT = Gauge("optserve_state_memory_limit_bytes", "The most memory for hidden states", registry=REGISTRY)

# --- the database: told by those who look at it -----------------------------------------------------------------------

DATABASE_UP = Gauge("optserve_database_up", "1 if the database answered when last asked", registry=REGISTRY)
WORK = Gauge(
    "optserve_runs",
    "Meta-training runs and evaluations by status; none while the database is away",
    ["kind", "status"],
    registry=REGISTRY,
)

# --- the process ------------------------------------------------------------------------------------------------------

EVENT_LOOP_LAG = Histogram(
    "optserve_event_loop_lag_seconds",
    "How late the event loop came back to a timer",
    buckets=_LAG_BUCKETS,
    registry=REGISTRY,
)
_LAG_SECONDS = 0.5

WORKERS = Gauge("optserve_workers", "Worker processes that this server keeps and that run", registry=REGISTRY)
WORKER_DEATHS = Counter("optserve_worker_deaths", "Worker processes of this server that died", registry=REGISTRY)


async def measure_event_loop_lag() -> None:
    """Look twice a second, for ever, how late the event loop is."""
    loop = asyncio.get_running_loop()
    while True:
        due = loop.time() + _LAG_SECONDS
        await asyncio.sleep(_LAG_SECONDS)
        EVENT_LOOP_LAG.observe(max(0.0, loop.time() - due))


# --- requests ---------------------------------------------------------------------------------------------------------

REQUESTS = Counter(
    "optserve_requests", "Requests answered, by the route's template", ["method", "route", "status"], registry=REGISTRY
)
REQUESTS_IN_HAND = Gauge("optserve_requests_in_hand", "Requests that are not answered yet", registry=REGISTRY)
BODY_BYTES = Gauge(
    "optserve_body_bytes", "Bytes of the bodies of requests that are not answered yet", registry=REGISTRY
)
PROBLEMS = Counter("optserve_problems", "Problems answered, by their type", ["type"], registry=REGISTRY)
