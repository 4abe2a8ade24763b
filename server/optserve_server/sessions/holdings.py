"""What each owner holds: its sessions, and their coordinates."""

from dataclasses import dataclass

from optserve_server.sessions.errors import QuotaExceeded


@dataclass(slots=True)
class Holding:
    """What one owner holds, awake and asleep."""

    sessions: int = 0
    coordinates: int = 0


@dataclass(frozen=True, slots=True)
class Allowance:
    """What one owner may hold; None: as much as there is room for."""

    sessions: int | None = None
    coordinates: int | None = None


NO_LIMITS = Allowance()


class Holdings:
    """The holdings of all owners. To be used on the event loop."""

    def __init__(self) -> None:
        self._holdings: dict[str, Holding] = {}

    def of(self, owner: str) -> Holding:
        """What an owner holds now."""
        return self._holdings.get(owner) or Holding()

    def add(self, owner: str, coordinates: int, allowance: Allowance = NO_LIMITS) -> None:
        """Count a session of so many coordinates.

        Raises:
            QuotaExceeded: the owner may not hold it.
        """
        held = self.of(owner)
        _require(owner, "sessions", held.sessions, 1, allowance.sessions)
        _require(owner, "coordinates", held.coordinates, coordinates, allowance.coordinates)
        self._holdings[owner] = Holding(held.sessions + 1, held.coordinates + coordinates)

    def remove(self, owner: str, coordinates: int) -> None:
        """Count such a session no more."""
        held = self.of(owner)
        if held.sessions == 1:
            del self._holdings[owner]
        else:
            self._holdings[owner] = Holding(held.sessions - 1, held.coordinates - coordinates)


def _require(owner: str, what: str, used: int, more: int, at_most: int | None) -> None:
    if at_most is not None and used + more > at_most:
        raise QuotaExceeded(owner, what, at_most, used, more)
