"""The names that point at an optimizer's versions: moved and removed. `GET /optimizers/{name}` tells where they are."""

from typing import Annotated

from fastapi import APIRouter, Path, status

from optserve.wire import problems
from optserve.wire.bodies import AliasInfo, AliasRequest
from optserve_server.api.authorisation import RequiresAdmin, UsesCaller
from optserve_server.api.bodies import JsonRoute
from optserve_server.api.dependencies import UsesDatabase
from optserve_server.api.optimizers import Name
from optserve_server.api.problems import responses
from optserve_server.registry import aliases, optimizers

router = APIRouter(
    prefix="/optimizers/{name}/aliases", tags=["optimizers"], route_class=JsonRoute, dependencies=[RequiresAdmin]
)

AliasName = Annotated[str, Path(description="The alias; `latest` and `best` are the server's own")]


@router.put(
    "/{alias}",
    summary="Point an alias at a version",
    responses=responses(
        problems.MALFORMED_BODY,
        problems.OPTIMIZER_NOT_FOUND,
        problems.VERSION_NOT_FOUND,
        problems.EVALUATION_NOT_FOUND,
        problems.ALIAS_RESERVED,
        problems.PROMOTION_UNPROVEN,
    ),
)
def set_alias(
    name: Name, alias: AliasName, body: AliasRequest, caller: UsesCaller, database: UsesDatabase
) -> AliasInfo:
    """Point an alias at a version, and write the move into the history.

    `champion` is what the bare name means. To take another champion's place, a version needs an `evaluation` in which
    it beat that one, or `"force": true`; the history says which.
    """
    with database.session(write=True) as db_session:
        optimizer = optimizers.get_optimizer(db_session, name, lock=True)
        version = optimizers.get_version(db_session, name, body.version)
        proof = aliases.Proof(body.evaluation, body.force)
        moved = aliases.set_alias(db_session, optimizer, alias, version, moved_by=caller.name, proof=proof)
        return AliasInfo(moved.alias, moved.number)


@router.delete(
    "/{alias}",
    summary="Remove an alias",
    status_code=status.HTTP_204_NO_CONTENT,
    responses=responses(problems.OPTIMIZER_NOT_FOUND, problems.ALIAS_NOT_FOUND, problems.ALIAS_RESERVED),
)
def remove_alias(name: Name, alias: AliasName, caller: UsesCaller, database: UsesDatabase) -> None:
    """Remove an alias; its history stays."""
    with database.session(write=True) as db_session:
        optimizer = optimizers.get_optimizer(db_session, name, lock=True)
        aliases.remove_alias(db_session, optimizer, alias, moved_by=caller.name)
