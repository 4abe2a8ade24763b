"""The application: its rooms opened at the start, closed at the end, and its routes."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import structlog
from fastapi import APIRouter, FastAPI

import optserve
from optserve.wire import API_PREFIX, SYNCED
from optserve_server import metrics
from optserve_server.api import (
    aliases,
    api_keys,
    audit,
    documents,
    evaluations,
    health,
    meta_training_runs,
    optimizers,
    past,
    problems,
    sessions,
    states,
    steps,
    tasks,
    usage,
)
from optserve_server.api import metrics as metrics_page
from optserve_server.api.accounts import WRITE_SECONDS, Accounts
from optserve_server.api.authorisation import Authorisation
from optserve_server.api.database_watch import DatabaseWatch
from optserve_server.api.key_ring import KeyRing
from optserve_server.api.metering import BodyMemory, Metering
from optserve_server.api.periodic import Periodic
from optserve_server.api.traffic import Drain, Traffic
from optserve_server.api.versions import VersionCache
from optserve_server.machine import memory_bytes
from optserve_server.optimizers.serving import compile_served
from optserve_server.registry.bundled import register_bundled
from optserve_server.registry.database import Database
from optserve_server.sessions.pages import StateMemory
from optserve_server.sessions.storage.directory import SessionDirectory
from optserve_server.sessions.store import SessionStore
from optserve_server.settings import Settings

log = structlog.get_logger(__name__)

DATABASE_PATIENCE_SECONDS = 5.0
"""Then whoever asks hears that the database is away."""


def create_app(settings: Settings) -> FastAPI:
    """The application of one server process, with its database opened and migrated.

    Raises:
        ValueError: the database's URL is none.
        sqlalchemy.exc.SQLAlchemyError: the database cannot be reached or migrated.
        RegistryError: a bundled optimizer is damaged.
        DirectoryInUse: another server keeps its sessions in the same directory.
    """
    app = FastAPI(
        title="optserve",
        version=optserve.__version__,
        summary="Learned optimizers as a service",
        description="Post gradients, get back updates from an optimizer that was itself learned.",
        lifespan=_lifespan,
        generate_unique_id_function=lambda route: route.name,
        redoc_url=None,
        redirect_slashes=False,
    )
    app.state.settings = settings
    app.state.database = _open_database(settings)
    app.state.directory = SessionDirectory(settings.sessions)
    app.state.database_watch = DatabaseWatch(app.state.database)
    app.state.idempotency_keys = {}
    app.state.accounts = accounts = Accounts(app.state.database)
    app.state.bodies = bodies = BodyMemory(settings.body_memory or memory_bytes() // 4)
    app.state.drain = drain = Drain()
    log.info("loading the kernels; the first time on a machine they are compiled, which takes half a minute or more")
    compile_served()
    versioned = APIRouter(prefix=API_PREFIX)
    for resource in (
        sessions,
        states,
        past,
        optimizers,
        aliases,
        tasks,
        meta_training_runs,
        evaluations,
        usage,
        api_keys,
        audit,
    ):
        versioned.include_router(resource.router)
    versioned.include_router(states.plain_router)
    app.include_router(steps.router, prefix=API_PREFIX)  # first, for it is looked up at every step
    app.include_router(versioned)
    app.include_router(health.router)
    app.include_router(metrics_page.router)
    app.add_middleware(Metering, accounts=accounts, bodies=bodies)
    app.add_middleware(Authorisation, metrics_token=settings.metrics_token)
    app.add_middleware(Traffic, drain=drain)  # the last one added is the first to see a request
    problems.install(app)
    documents.install(app)
    return app


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    settings: Settings = app.state.settings
    database: Database = app.state.database
    app.state.versions = versions = VersionCache(database)
    app.state.store = store = SessionStore(
        StateMemory(settings.state_memory or memory_bytes() // 2),
        app.state.directory,
        versions.load,
        sync=settings.durability == SYNCED,
        park_after=settings.park_after,
    )
    app.state.keys = keys = KeyRing(database, settings.limits, may_be_open=settings.may_be_open)
    await keys.start()
    accounts: Accounts = app.state.accounts
    counting = Periodic(WRITE_SECONDS, accounts.write, "what API keys have used cannot be written down")
    counting.start()
    store.start()
    _watch(store, app.state.drain, app.state.bodies)
    lag = asyncio.create_task(metrics.measure_event_loop_lag())
    log.info("ready", state_memory=store.memory.limit)
    try:
        yield
    finally:
        lag.cancel()
        await store.close()
        await counting.close(last=True)
        await keys.close()
        database.close()
        log.info("stopped", sessions=len(store))


def _watch(store: SessionStore, drain: Drain, bodies: BodyMemory) -> None:
    metrics.BUILD.info({"version": optserve.__version__})
    metrics.SESSIONS.labels("awake").set_function(lambda: store.awake)
    metrics.SESSIONS.labels("parked").set_function(lambda: len(store) - store.awake)
    metrics.STATE_MEMORY.set_function(lambda: store.memory.used)
    metrics.REQUESTS_IN_HAND.set_function(lambda: len(drain.in_hand))
    metrics.BODY_BYTES.set_function(lambda: bodies.used)
    metrics.STATE_MEMORY_LIMIT.set_function(lambda: store.memory.limit)


def _open_database(settings: Settings) -> Database:
    database = Database(settings.database, patience=DATABASE_PATIENCE_SECONDS)
    database.upgrade()
    register_bundled(database)
    return database
