"""What API keys use: each its own, and admins that of any."""

from typing import Annotated

from fastapi import APIRouter, Depends, Request
from sqlalchemy.orm import Session

from optserve.wire import problems
from optserve.wire.limits import Limits, Usage
from optserve_server.api.accounts import Accounts
from optserve_server.api.api_keys import IdOrName
from optserve_server.api.authorisation import RequiresAdmin, UsesCaller, UsesKeys
from optserve_server.api.dependencies import UsesDatabase, UsesStore
from optserve_server.api.problems import responses
from optserve_server.registry import api_keys, runs, usage
from optserve_server.sessions.store import SessionStore

router = APIRouter(tags=["API keys"])


async def _accounts(request: Request) -> Accounts:
    accounts: Accounts = request.app.state.accounts
    return accounts


UsesAccounts = Annotated[Accounts, Depends(_accounts)]


@router.get("/usage", summary="Read one's own usage", responses=responses())
def get_usage(caller: UsesCaller, accounts: UsesAccounts, store: UsesStore, database: UsesDatabase) -> Usage:
    """What the key of this request uses now and has used so far, and its limits."""
    with database.session() as db_session:
        return _usage(db_session, caller.name, caller.limits, accounts, store)


@router.get(
    "/api-keys/{id_or_name}/usage",
    summary="Read an API key's usage",
    dependencies=[RequiresAdmin],
    responses=responses(problems.API_KEY_NOT_FOUND),
)
def get_api_key_usage(
    id_or_name: IdOrName, ring: UsesKeys, accounts: UsesAccounts, store: UsesStore, database: UsesDatabase
) -> Usage:
    """What any key uses now and has used so far, and its limits."""
    with database.session() as db_session:
        key = api_keys.get_key(db_session, id_or_name)
        return _usage(db_session, key.name, ring.limits(key), accounts, store)


def _usage(db_session: Session, owner: str, limits: Limits, accounts: Accounts, store: SessionStore) -> Usage:
    account = accounts.look(owner)
    so_far = usage.get(db_session, owner) + account.unwritten()
    return Usage(
        key=owner,
        limits=limits,
        sessions=store.holdings.of(owner).sessions,
        coordinates=store.holdings.of(owner).coordinates,
        bytes_in_flight=account.bytes_in_flight,
        runs=runs.count_unfinished(db_session, owner),
        requests=so_far.requests,
        steps=so_far.steps,
        bytes_received=so_far.bytes_received,
        bytes_sent=so_far.bytes_sent,
    )
