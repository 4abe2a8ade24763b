"""The audit trail: what admins have done, to read."""

from fastapi import APIRouter

from optserve.wire.audit import AuditEntry
from optserve.wire.bodies import Page
from optserve_server.api.authorisation import RequiresAdmin
from optserve_server.api.dependencies import Cursor, Limit, UsesDatabase, page_of, read_number
from optserve_server.api.problems import responses
from optserve_server.registry import audit, models

router = APIRouter(prefix="/audit", tags=["API keys"], dependencies=[RequiresAdmin])


@router.get("", summary="List what admins have done", responses=responses())
def list_audit_entries(database: UsesDatabase, limit: Limit = 100, cursor: Cursor = None) -> Page[AuditEntry]:
    """Every act of an admin, the newest first: who, when, from which address, what, and what came of it."""
    below = read_number(cursor)
    with database.session() as db_session:
        found = audit.list_entries(db_session, limit=limit + 1, below=below)
    return page_of(found, limit, _describe, lambda entry: entry.id)


def _describe(entry: models.AuditEntry) -> AuditEntry:
    return AuditEntry(
        id=entry.id,
        at=entry.at.isoformat(),
        actor=entry.actor,
        address=entry.address,
        action=entry.action,
        target=entry.target,
        details=entry.details,
        outcome=entry.outcome,
    )
