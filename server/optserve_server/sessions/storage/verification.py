"""Is everything of a session as it was written? Every checksum, and whether its files fit together, without a replay.

Files are only read, so a server may be at work on them meanwhile.
"""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from optserve_server.sessions.storage import snapshots
from optserve_server.sessions.storage.directory import read_description
from optserve_server.sessions.storage.errors import Damaged
from optserve_server.sessions.storage.journal import NOTHING, Generation, reading
from optserve_server.sessions.storage.lineage import Lineage, journal_path, snapshot_path

_CHECKPOINTS = "checkpoints/*.snapshot"
_ANOTHER_STATE = "what is left: restore a checkpoint, or PUT a state that was kept elsewhere into a new session"
_NOTHING_LOST = "nothing is lost: the session does not come from it any more"


@dataclass(frozen=True, slots=True)
class Damage:
    """A file that is not what was written, why, and what can be done."""

    file: str
    reason: str
    mend: str


@dataclass(frozen=True, slots=True)
class Verification:
    """What was found of one session.

    The journals lead to `next_step`, and the steps from `oldest_step` on can be gone back to as far as nothing is
    damaged; both are None where there is no such step. `bytes` is what all its files have.
    """

    session: str
    next_step: int | None
    oldest_step: int | None
    generations: int
    checkpoints: int
    bytes: int
    damage: tuple[Damage, ...]


def verify(place: Path) -> Verification | None:
    """Verify the session of that directory; None if it has been deleted meanwhile.

    A server at work may remove a file before it is read. So damage is what is there a second time.
    """
    before: tuple[Damage, ...] = ()
    while place.exists():
        found = _Examination(place).verification()
        if found.damage == before:
            return found
        before = found.damage
    return None


@dataclass(slots=True)
class _Journal:
    """What a journal leads to: every step below `reached` can be read."""

    generation: Generation
    reached: int


class _Examination:
    """One look at all files of a session."""

    def __init__(self, place: Path) -> None:
        self.place = place
        self.damage: list[Damage] = []
        self._lineage = Lineage(place)
        self._journals: dict[int, _Journal] = {}
        self._broken: list[tuple[int, Damaged]] = []  # journals, by number
        self._sound_snapshots: set[int] = set()

    def verification(self) -> Verification:
        """What it finds."""
        with self._noting("the session cannot be served; put the file back from a copy, or remove the directory"):
            found = read_description(self.place).get("id")
            if found != self.place.name:
                raise Damaged(self.place / "session.json", f"it is of session {found}")
        with self._noting(_ANOTHER_STATE):
            for number in self._lineage.numbers:
                self._read_journal(number)
        self._check_descent()
        for number in self._journals:
            self._read_snapshot(number)
        checkpoints = sorted(self.place.glob(_CHECKPOINTS))
        for path in checkpoints:
            with self._noting("it cannot be restored; save it again, or remove the file"):
                self._require_session(snapshots.read(path), path)
        chain = self._chain()
        self._require_beginning(chain)
        for number, damaged in self._broken:
            self._note(damaged, self._mend(number, damaged, chain))
        return Verification(
            session=self.place.name,
            next_step=chain[0].reached if chain else None,
            oldest_step=self._oldest_step(chain),
            generations=len(self._journals) + sum(number not in self._journals for number, _ in self._broken),
            checkpoints=len(checkpoints),
            bytes=_bytes_below(self.place),
            damage=tuple(sorted(self.damage, key=lambda damage: damage.file)),
        )

    # --- files --------------------------------------------------------------------------------------------------------

    def _read_journal(self, number: int) -> None:
        path = journal_path(self.place, number)
        try:
            with reading(path) as (generation, reader):
                self._require_place(generation, number, path)
                journal = self._journals[number] = _Journal(generation, generation.first_step)
                for record in reader:
                    _require_step(record.step, journal.reached, path)
                    journal.reached = reader.next_step
        except FileNotFoundError:
            self._broken.append((number, Damaged(path, "it has been removed")))
        except Damaged as damaged:
            self._broken.append((number, damaged))

    def _check_descent(self) -> None:
        """Does every journal have the steps from which others go on?"""
        broken = {number for number, _ in self._broken}
        for number, journal in self._journals.items():
            parent, first = journal.generation.parent, journal.generation.first_step
            if parent is None or parent not in self._journals or parent in broken:
                continue
            has = self._journals[parent]
            if not has.generation.first_step <= first <= has.reached:
                reason = f"it ends at step {has.reached}, and generation {number} goes on from its step {first}"
                self._broken.append((parent, Damaged(journal_path(self.place, parent), reason, has.reached)))
                broken.add(parent)

    def _read_snapshot(self, number: int) -> None:
        path, generation = snapshot_path(self.place, number), self._journals[number].generation
        if not path.exists():
            return
        replaceable = generation.parent == NOTHING or generation.parent in self._journals
        mend = "remove the file: the journals give the same state" if replaceable else _ANOTHER_STATE
        with self._noting(mend):
            snapshot = snapshots.read(path)
            self._require_session(snapshot, path)
            if snapshot.step != generation.first_step:
                raise Damaged(path, f"it is of step {snapshot.step}, and its journal begins at {generation.first_step}")
            self._sound_snapshots.add(number)

    def _require_place(self, generation: Generation, number: int, path: Path) -> None:
        if (generation.session, generation.number) != (self.place.name, number):
            raise Damaged(path, f"it is generation {generation.number} of session {generation.session}")

    def _require_session(self, snapshot: snapshots.Snapshot, path: Path) -> None:
        if snapshot.session != self.place.name:
            raise Damaged(path, f"it is of session {snapshot.session}")

    # --- how they fit together ----------------------------------------------------------------------------------------

    def _chain(self) -> list[_Journal]:
        """The newest generation that can be read, its parent, and so on, as far as their headers can be read."""
        chain: list[_Journal] = []
        number = max(self._journals, default=None)
        while number in self._journals:
            chain.append(self._journals[number])
            number = chain[-1].generation.parent
        return chain

    def _oldest_step(self, chain: list[_Journal]) -> int | None:
        """Where the first generation begins that has something to begin with."""
        for generation in (journal.generation for journal in reversed(chain)):
            if generation.parent == NOTHING or generation.number in self._sound_snapshots:
                return generation.first_step
        return None

    def _require_beginning(self, chain: list[_Journal]) -> None:
        """Has the oldest generation something to begin with?"""
        if not chain:
            return
        oldest = chain[-1].generation
        parent_is_broken = any(number == oldest.parent for number, _ in self._broken)
        path = snapshot_path(self.place, oldest.number)
        if oldest.parent != NOTHING and not parent_is_broken and not path.exists():
            self._note(Damaged(path, "it is missing"), _ANOTHER_STATE)

    def _mend(self, number: int, damaged: Damaged, chain: list[_Journal]) -> str:
        """What can be done about a journal that cannot be read to its end."""
        numbers = [journal.generation.number for journal in chain]
        if chain and number > numbers[0]:
            return self._way_back(damaged)
        if number not in numbers and chain and number != chain[-1].generation.parent:
            return _NOTHING_LOST
        younger = numbers[: numbers.index(number)] if number in numbers else numbers
        shortcut = next((one for one in reversed(younger) if one in self._sound_snapshots), None)
        if shortcut is not None:
            after = self._journals[shortcut].generation.first_step
            if damaged.step is None:
                return f"the session goes on, but it can no longer go back to steps before {after}"
            if damaged.step >= after:
                return _NOTHING_LOST
            return _goes_on_without(damaged.step + 1, after - 1)
        return self._way_back(damaged)

    def _way_back(self, damaged: Damaged) -> str:
        """What can be done where the present state cannot be reached."""
        step = damaged.step
        if step is None:
            with suppress(Damaged, FileNotFoundError):  # then there is no way back
                _, lost = self._lineage.standing()
                step = None if lost is None else lost.step
        if step is None:
            return _ANOTHER_STATE
        body = f'{{"step": {step}}}'
        return f"go back to step {step} or an earlier one: POST /v1/sessions/{self.place.name}/restore {body}"

    # --- notes --------------------------------------------------------------------------------------------------------

    @contextmanager
    def _noting(self, mend: str) -> Iterator[None]:
        try:
            yield
        except Damaged as damaged:
            self._note(damaged, mend)
        except FileNotFoundError as error:
            self._note(Damaged(Path(error.filename), "it has been removed"), mend)

    def _note(self, damaged: Damaged, mend: str) -> None:
        self.damage.append(Damage(str(damaged.path.relative_to(self.place)), damaged.reason, mend))


def _goes_on_without(first: int, last: int) -> str:
    if first > last:
        return "the session goes on, and every step can still be gone back to"
    steps = f"step {first}" if first == last else f"the steps {first} to {last}"
    return f"the session goes on, but it can no longer go back to {steps}"


def _require_step(step: int, expected: int, path: Path) -> None:
    if step != expected:
        raise Damaged(path, f"step {step} stands where {expected} belongs", expected)


def _bytes_below(place: Path) -> int:
    """Bytes of all files; what has two names counts once."""
    sizes = {}
    for path in place.rglob("*"):
        try:
            found = path.stat()
        except FileNotFoundError:
            continue
        if path.is_file():
            sizes[found.st_ino] = found.st_size
    return sum(sizes.values())
