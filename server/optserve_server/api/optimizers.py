"""Optimizers, their immutable versions, and the aliases that point at them."""

import asyncio
import hashlib
from dataclasses import asdict
from typing import Annotated

from fastapi import APIRouter, Depends, Header, Path, Query, Request, Response, status
from fastapi.concurrency import run_in_threadpool
from sqlalchemy.orm import Session

from optserve.wire import API_PREFIX, problems
from optserve.wire.bodies import (
    AliasInfo,
    AliasMove,
    OptimizerInfo,
    OptimizerSummary,
    Page,
    VersionInfo,
    VersionSummary,
)
from optserve.wire.differences import VersionDiff
from optserve.wire.gradients import OCTET_STREAM, SAFETENSORS
from optserve_server.api.authorisation import RequiresAdmin, UsesCaller
from optserve_server.api.bodies import JsonRoute, read_body
from optserve_server.api.dependencies import (
    Cursor,
    IdempotencyKey,
    Limit,
    UsesDatabase,
    UsesSettings,
    idempotency_keys,
)
from optserve_server.api.problems import Problem, responses
from optserve_server.naming import is_name
from optserve_server.optimizers import HAND_DESIGNED, build, hyperparameters
from optserve_server.registry import aliases, models, optimizers, references, weight_files
from optserve_server.registry.database import Database
from optserve_server.registry.differences import differences
from optserve_server.registry.models import Version
from optserve_server.registry.optimizers import Entry
from optserve_server.sessions.idempotency import IdempotencyKeys
from optserve_server.settings import Settings

router = APIRouter(prefix="/optimizers", tags=["optimizers"], route_class=JsonRoute)

MAX_WEIGHTS_BYTES = 256 << 20
"""Of an imported file; each version is one value in the database."""

Name = Annotated[str, Path(description="The optimizer's name")]
Number = Annotated[int, Path(description="1, 2, 3, …")]


_importing = asyncio.Lock()
_BINARY = {"schema": {"type": "string", "format": "binary"}}


@router.get("", summary="List the optimizers", responses=responses())
def list_optimizers(
    database: UsesDatabase, settings: UsesSettings, limit: Limit = 100, cursor: Cursor = None
) -> Page[OptimizerSummary]:
    """Every optimizer, in the order of their names."""
    after = _name_cursor(cursor)
    with database.session() as db_session:
        entries = optimizers.list_entries(db_session, limit=limit + 1, after=after)
        page = entries[:limit]
        items = [_summary(entry, settings) for entry in page]
    return Page(items, page[-1].optimizer.name if len(entries) > limit else None)


@router.get(
    "/{name}",
    summary="Describe an optimizer",
    responses=responses(problems.OPTIMIZER_NOT_FOUND),
)
def get_optimizer(name: Name, database: UsesDatabase, settings: UsesSettings) -> OptimizerInfo:
    """An optimizer with what it takes, its aliases and their history, and its versions, the newest of each first."""
    with database.session() as db_session:
        return _info(db_session, optimizers.get_entry(db_session, name), settings)


@router.get(
    "/{name}/versions",
    summary="List an optimizer's versions",
    responses=responses(problems.OPTIMIZER_NOT_FOUND),
)
def list_versions(
    name: Name, database: UsesDatabase, limit: Limit = 100, cursor: Cursor = None
) -> Page[VersionSummary]:
    """An optimizer's versions, the newest first."""
    below = _number_cursor(cursor)
    with database.session() as db_session:
        optimizer = optimizers.get_optimizer(db_session, name)
        versions = optimizers.list_versions(db_session, optimizer, limit=limit + 1, below=below)
    page = versions[:limit]
    return Page(
        [_version_summary(version) for version in page], str(page[-1].number) if len(versions) > limit else None
    )


@router.get(
    "/{name}/versions/{number}",
    summary="Describe a version",
    responses=responses(problems.OPTIMIZER_NOT_FOUND, problems.VERSION_NOT_FOUND),
)
def get_version(name: Name, number: Number, database: UsesDatabase) -> VersionInfo:
    """One immutable version: its architecture, and where it came from."""
    with database.session() as db_session:
        return _version_info(optimizers.get_version(db_session, name, number))


@router.get(
    "/{name}/versions/{number}/diff",
    summary="Compare two versions",
    responses=responses(problems.OPTIMIZER_NOT_FOUND, problems.VERSION_NOT_FOUND, problems.ALIAS_NOT_FOUND),
)
def diff_versions(
    name: Name,
    number: Number,
    other: Annotated[str, Query(alias="with", description="The version to compare with: NAME, NAME@7 or NAME@ALIAS")],
    database: UsesDatabase,
) -> VersionDiff:
    """In what the version `with` differs from this one: architecture, and the recipe it was meta-trained by."""
    with database.session() as db_session:
        before = optimizers.get_version(db_session, name, number)
        after = optimizers.get_referenced(db_session, other)
        return VersionDiff(_reference(before), _reference(after), differences(before, after))


@router.get(
    "/{name}/versions/{number}/weights",
    summary="Download a version's weights",
    response_class=Response,
    responses={
        200: {
            "description": "A safetensors file; its metadata has the architecture",
            "content": {SAFETENSORS: _BINARY},
        },
        304: {"description": "The file of the entity tag in `If-None-Match`"},
        **responses(problems.OPTIMIZER_NOT_FOUND, problems.VERSION_NOT_FOUND),
    },
)
def download_weights(
    name: Name, number: Number, database: UsesDatabase, if_none_match: Annotated[str | None, Header()] = None
) -> Response:
    """The weights file exactly as it is stored; its entity tag is its sha256."""
    with database.session() as db_session:
        version = optimizers.get_version(db_session, name, number)
        headers = {"ETag": f'"{version.sha256}"'}
        if if_none_match is not None and headers["ETag"] in if_none_match:
            return Response(status_code=status.HTTP_304_NOT_MODIFIED, headers=headers)
        data = version.weights
    headers["Content-Disposition"] = f'attachment; filename="{name}-{number}.safetensors"'
    return Response(data, media_type=SAFETENSORS, headers=headers)


@router.post(
    "/{name}/versions",
    summary="Import a weights file",
    dependencies=[RequiresAdmin],
    status_code=status.HTTP_201_CREATED,
    openapi_extra={"requestBody": {"required": True, "content": {SAFETENSORS: _BINARY, OCTET_STREAM: _BINARY}}},
    responses={
        200: {"description": "These very weights were a version already", "model": VersionInfo},
        **responses(
            problems.MALFORMED_BODY,
            problems.IDEMPOTENCY_CONFLICT,
            problems.BODY_TOO_LARGE,
            problems.UNSUPPORTED_MEDIA_TYPE,
            problems.WEIGHTS_INVALID,
        ),
    },
)
async def import_version(
    name: Name,
    request: Request,
    response: Response,
    caller: UsesCaller,
    database: UsesDatabase,
    settings: UsesSettings,
    keys: Annotated[IdempotencyKeys, Depends(idempotency_keys("versions"))],
    idempotency_key: IdempotencyKey = None,
) -> VersionInfo:
    """Make a safetensors file the optimizer's next version; an optimizer that is not there yet is created.

    The file's metadata must have the key `architecture`, and may have `recipe`, `metrics` and `description`. The same
    file sent again is still the same version.
    """
    _require_weights(request)
    data = await read_body(request, min(settings.max_body_bytes, MAX_WEIGHTS_BYTES))
    fingerprint = hashlib.sha256(f"{name}\n".encode() + data).hexdigest()
    async with _importing:  # a key is looked up and remembered before another import can bring the same one
        replayed = idempotency_key is not None and keys.find(caller.name, idempotency_key, fingerprint) is not None
        info, created = await run_in_threadpool(_import, database, name, data)
        if idempotency_key is not None:
            keys.remember(caller.name, idempotency_key, fingerprint, str(info.version))
    response.status_code = status.HTTP_201_CREATED if created or replayed else status.HTTP_200_OK
    response.headers["Location"] = f"{API_PREFIX}/optimizers/{name}/versions/{info.version}"
    return info


def _import(database: Database, name: str, data: bytes) -> tuple[VersionInfo, bool]:
    references.require_name(name)
    file = weight_files.read(data)
    weight_files.require_learned(file)
    with database.session(write=True) as db_session:
        optimizers.claim_name(db_session, name)
        known = optimizers.find_version_by_content(db_session, name, file.sha256)
        version = known or optimizers.add_version(db_session, name, file)
        return _version_info(version), known is None


def _require_weights(request: Request) -> None:
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type not in (SAFETENSORS, OCTET_STREAM):
        raise Problem(
            problems.UNSUPPORTED_MEDIA_TYPE,
            f"The body is {media_type or 'of no media type'!r}; "
            f"send a safetensors file with `Content-Type: {SAFETENSORS}`.",
            media_types=[SAFETENSORS, OCTET_STREAM],
        )


def _name_cursor(cursor: str | None) -> str:
    if cursor is not None and not is_name(cursor):
        raise _cursor_invalid()
    return cursor or ""


def _number_cursor(cursor: str | None) -> int | None:
    if cursor is None:
        return None
    number = references.parse(f"x@{cursor}").number if cursor else None
    if number is None or number > references.NEWEST_NUMBER:
        raise _cursor_invalid()
    return number


def _cursor_invalid() -> Problem:
    return Problem(
        problems.REQUEST_INVALID,
        "The cursor is not one that this list gave; send `next_cursor` as it came, or no cursor for the first page.",
        errors=[{"parameter": "cursor", "detail": "not a cursor of this list"}],
    )


def _summary(entry: Entry, settings: Settings) -> OptimizerSummary:
    kind = entry.served.architecture["kind"]
    return OptimizerSummary(
        name=entry.optimizer.name,
        kind=kind,
        learned=kind not in HAND_DESIGNED,
        default=entry.optimizer.name == references.parse(settings.default_optimizer).name,
        latest=entry.latest,
        champion=entry.champion,
        description=entry.optimizer.description,
    )


def _info(db_session: Session, entry: Entry, settings: Settings) -> OptimizerInfo:
    optimizer = build(entry.served.architecture)
    return OptimizerInfo(
        **asdict(_summary(entry, settings)),
        uses=sorted(optimizer.uses),
        needs=sorted(optimizer.needs),
        hyperparameters=hyperparameters(optimizer),
        aliases=[AliasInfo(one.alias, one.number) for one in aliases.list_aliases(db_session, entry.optimizer)],
        alias_history=[_alias_move(move) for move in aliases.list_moves(db_session, entry.optimizer)],
        versions=[_version_summary(one) for one in optimizers.list_versions(db_session, entry.optimizer)],
    )


def _alias_move(move: models.AliasMove) -> AliasMove:
    return AliasMove(move.alias, move.number, move.moved_at.isoformat(), move.moved_by, move.forced, move.evaluation)


def _version_summary(version: Version) -> VersionSummary:
    return VersionSummary(version.number, version.sha256, version.created_at.isoformat(), version.metrics)


def _reference(version: Version) -> str:
    return f"{version.optimizer.name}@{version.number}"


def _version_info(version: Version) -> VersionInfo:
    parent = version.parent
    return VersionInfo(
        version=version.number,
        sha256=version.sha256,
        created_at=version.created_at.isoformat(),
        metrics=version.metrics,
        optimizer=version.optimizer.name,
        architecture=version.architecture,
        recipe=version.recipe,
        parent=_reference(parent) if parent else None,
        run=version.run,
        environment=version.environment,
    )
