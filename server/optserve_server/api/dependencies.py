"""What the routes need of the application."""

from collections.abc import Callable, Coroutine, Sequence
from typing import Annotated, Any, TypeVar

from fastapi import Depends, Header, Query, Request

from optserve.wire import problems
from optserve.wire.bodies import Page
from optserve_server.api.problems import Problem
from optserve_server.api.versions import VersionCache
from optserve_server.naming import shown
from optserve_server.registry.database import Database
from optserve_server.registry.references import NEWEST_NUMBER
from optserve_server.sessions.idempotency import IdempotencyKeys
from optserve_server.sessions.store import SessionStore
from optserve_server.settings import Settings

Found = TypeVar("Found")
Item = TypeVar("Item")


def _settings(request: Request) -> Settings:
    settings: Settings = request.app.state.settings
    return settings


def _database(request: Request) -> Database:
    database: Database = request.app.state.database
    return database


def _store(request: Request) -> SessionStore:
    store: SessionStore = request.app.state.store
    return store


def _versions(request: Request) -> VersionCache:
    versions: VersionCache = request.app.state.versions
    return versions


def idempotency_keys(resource: str) -> Callable[[Request], Coroutine[Any, Any, IdempotencyKeys]]:
    """A dependency: the idempotency keys under which requests have created this kind of thing."""

    async def kept(request: Request) -> IdempotencyKeys:
        by_resource: dict[str, IdempotencyKeys] = request.app.state.idempotency_keys
        return by_resource.setdefault(resource, IdempotencyKeys())

    return kept


UsesSettings = Annotated[Settings, Depends(_settings)]
UsesDatabase = Annotated[Database, Depends(_database)]
UsesStore = Annotated[SessionStore, Depends(_store)]
UsesVersions = Annotated[VersionCache, Depends(_versions)]

Limit = Annotated[int, Query(ge=1, le=1000, description="How many items a page has at most")]
Cursor = Annotated[str | None, Query(description="`next_cursor` of the page before", max_length=200)]
IdempotencyKey = Annotated[
    str | None,
    Header(
        alias="Idempotency-Key",
        min_length=1,
        max_length=255,
        description="Any string of your own: the same key with the same body creates nothing twice",
    ),
]


def read_number(cursor: str | None) -> int | None:
    """The number of the row behind which a page begins, of a list whose cursors are such numbers.

    Raises:
        Problem: it is no cursor of such a list.
    """
    if cursor is None:
        return None
    if not (cursor.isascii() and cursor.isdigit() and int(cursor) <= NEWEST_NUMBER):
        detail = f"{shown(cursor)} is no cursor of this list; send `next_cursor` as it came."
        raise Problem(problems.REQUEST_INVALID, detail, errors=[{"parameter": "cursor", "detail": detail}])
    return int(cursor)


def page_of(
    found: Sequence[Found], limit: int, describe: Callable[[Found], Item], cursor: Callable[[Found], object]
) -> Page[Item]:
    """The first `limit` of what was found; if there is more, with the cursor of the last one for the next page."""
    page = found[:limit]
    return Page([describe(one) for one in page], str(cursor(page[-1])) if len(found) > limit else None)
