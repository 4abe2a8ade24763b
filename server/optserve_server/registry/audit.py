"""Every query on the audit trail, to which rows are only added."""

from collections.abc import Sequence

from sqlalchemy import select
from sqlalchemy.orm import Session

from optserve_server.registry.acts import Act
from optserve_server.registry.models import AuditEntry, now


def add(db_session: Session, act: Act, outcome: str) -> None:
    """Write down what came of an act: `done`, `refused` or `failed`."""
    db_session.add(
        AuditEntry(
            at=now(),
            actor=act.actor,
            address=act.address,
            action=act.action,
            target=act.target,
            details=act.details,
            outcome=outcome,
        )
    )
    db_session.flush()


def list_entries(db_session: Session, *, limit: int, below: int | None = None) -> Sequence[AuditEntry]:
    """At most `limit` entries, the newest first: those with an id `below` the given one."""
    query = select(AuditEntry).order_by(AuditEntry.id.desc()).limit(limit)
    return db_session.scalars(query if below is None else query.where(AuditEntry.id < below)).all()
