"""What a session is for ever: what was asked for at its creation. It is kept in `session.json`."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from typing import Any

from optserve_server.sessions.guard_options import GuardOptions
from optserve_server.sessions.layout import Layout, lay_out
from optserve_server.sessions.plan import Plan

FORMAT = 1


@dataclass(frozen=True, slots=True)
class VersionReference:
    """The optimizer version that a session holds."""

    name: str
    number: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Settings:
    """What of a session can change between two steps; `hyperparameters` are all that its optimizer has."""

    hyperparameters: dict[str, Any]
    label: str
    ttl_seconds: float

    def changed(self, changes: Mapping[str, Any]) -> "Settings":
        """The settings after a change, which holds the members that change and of `hyperparameters` those that do."""
        hyperparameters = self.hyperparameters | changes.get("hyperparameters", {})
        return replace(self, **{**changes, "hyperparameters": hyperparameters})


@dataclass(frozen=True, slots=True)
class Description:
    """One session; `number` is in the order of creation. `plan` is what was asked for, and may have changed since."""

    id: str
    number: int
    created_at: datetime
    version: VersionReference
    layout: Layout
    plan: Plan
    idempotency_key: str | None = None
    fingerprint: str = ""  # of the request under that key

    def to_json(self) -> dict[str, Any]:
        """The description as JSON can hold it."""
        return {
            "format": FORMAT,
            "id": self.id,
            "number": self.number,
            "created_at": self.created_at.isoformat(),
            "optimizer": asdict(self.version),
            "parameters": [[one.name, list(one.shape)] for one in self.layout.parameters],
            **asdict(self.plan),
            "idempotency_key": self.idempotency_key,
            "fingerprint": self.fingerprint,
        }

    @classmethod
    def from_json(cls, found: Mapping[str, Any]) -> "Description":
        """The description that `to_json` gave."""
        rest = dict(found)
        if rest.pop("format") != FORMAT:
            raise ValueError("it was written by another version of optserve")
        parameters: list[tuple[str, list[int]]] = rest.pop("parameters")
        guard = rest.pop("guard", None)  # sessions made before there were guards have none
        return cls(
            id=rest.pop("id"),
            number=rest.pop("number"),
            created_at=datetime.fromisoformat(rest.pop("created_at")),
            version=VersionReference(**rest.pop("optimizer")),
            layout=lay_out(parameters, max_coordinates=1 << 62),
            idempotency_key=rest.pop("idempotency_key"),
            fingerprint=rest.pop("fingerprint"),
            plan=Plan(**rest, guard=None if guard is None else GuardOptions(**guard)),
        )
