"""Every query on what the holders of API keys have used."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass

from sqlalchemy import select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from optserve_server.registry.models import Usage


@dataclass(frozen=True, slots=True)
class Counts:
    """How much was used."""

    requests: int = 0
    steps: int = 0
    bytes_received: int = 0
    bytes_sent: int = 0

    def __add__(self, other: "Counts") -> "Counts":
        return Counts(*(one + two for one, two in zip(self.values(), other.values(), strict=True)))

    def __sub__(self, other: "Counts") -> "Counts":
        return Counts(*(one - two for one, two in zip(self.values(), other.values(), strict=True)))

    def values(self) -> tuple[int, ...]:
        """The four numbers."""
        return tuple(asdict(self).values())


def add(db_session: Session, used: Mapping[str, Counts]) -> None:
    """Count what each owner has used since it was counted last; several servers may do so at once."""
    for owner, counts in sorted(used.items()):  # in one order, so that two servers do not wait for each other
        if not _add(db_session, owner, counts):
            try:
                with db_session.begin_nested():
                    db_session.add(Usage(owner=owner, **asdict(counts)))
            except IntegrityError:  # another server was the first
                _add(db_session, owner, counts)


def get(db_session: Session, owner: str) -> Counts:
    """What an owner has used so far, as it was counted last."""
    row = db_session.scalar(select(Usage).where(Usage.owner == owner))
    return Counts() if row is None else Counts(row.requests, row.steps, row.bytes_received, row.bytes_sent)


def _add(db_session: Session, owner: str, counts: Counts) -> bool:
    more = {name: getattr(Usage, name) + count for name, count in asdict(counts).items()}
    found = db_session.execute(update(Usage).where(Usage.owner == owner).values(more).returning(Usage.owner))
    return found.scalar() is not None
