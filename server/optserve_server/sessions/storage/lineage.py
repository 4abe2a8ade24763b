"""The generations of one session: which of them its present state comes from, and which can go.

1 ──steps 0…31──▶ 2 ──32…63──▶ 3 ──64…80──         3 is the newest; each may have a snapshot of where it begins
                  └──▶ 4 ──40…──                   after going back to step 40: now 4 is the newest, and 3 is lost
"""

import os
import re
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise
from pathlib import Path

from optserve_server.sessions.storage import snapshots
from optserve_server.sessions.storage.errors import Damaged, StepNotRetained
from optserve_server.sessions.storage.files import sync_directory
from optserve_server.sessions.storage.journal import NOTHING, Generation, Journal, read_generation, reading
from optserve_server.sessions.storage.snapshots import Snapshot

_JOURNAL = re.compile(r"([0-9]{8,})\.journal")


def journal_path(place: Path, number: int) -> Path:
    """Where a generation's journal is."""
    return place / f"{number:08d}.journal"


def snapshot_path(place: Path, number: int) -> Path:
    """Where the snapshot of a generation's beginning is, if it has one."""
    return place / f"{number:08d}.snapshot"


@dataclass(frozen=True)
class Leg:
    """Records to replay: those of `generation` whose step is below `until`; None: all."""

    generation: Generation
    until: int | None


@dataclass(frozen=True)
class Route:
    """The way to a state: from the snapshot of the first leg's generation, or from h_0 = 0 without one, leg by leg."""

    snapshot: Path | None
    legs: tuple[Leg, ...]


class Lineage:
    """The generations of one session, as they are on disk."""

    def __init__(self, place: Path) -> None:
        self.place = place
        self._without: dict[int, Damaged] = {}  # snapshots that cannot be read, by generation

    @cached_property
    def numbers(self) -> list[int]:
        """The numbers of all generations, ascending.

        Raises:
            Damaged: there is none.
        """
        found = sorted(int(match[1]) for path in self.place.iterdir() if (match := _JOURNAL.fullmatch(path.name)))
        if not found:
            raise Damaged(self.place, "it has no journal")
        return found

    @property
    def newest(self) -> int:
        """The number of the generation that is appended to."""
        return self.numbers[-1]

    def chain(self) -> list[Generation]:
        """The newest generation, its parent, and so on to the oldest that can still be gone back to.

        That is the oldest that is there, unless a header cannot be read: then the next one with a snapshot.

        Raises:
            Damaged: a header is not what was written, and there is no snapshot behind it.
        """
        chain, damage = self.standing()
        if damage is not None:
            raise damage
        return chain

    def standing(self) -> tuple[list[Generation], Damaged | None]:
        """The chain of the newest generation that has one; and the damage that hides younger ones, if any does.

        The damage's step is the first that is lost: the steps up to it can be gone back to, which gives the rest up.
        Without that, nobody may go on from there.

        Raises:
            Damaged: no generation has a chain.
        """
        damage: Damaged | None = None
        for number in reversed(self.numbers):
            try:
                chain = self._chain_from(number)
            except Damaged as found:
                damage = damage or found
                continue
            if damage is not None:
                damage = Damaged(damage.path, damage.reason, self._first_lost(chain))
            return chain, damage
        assert damage is not None
        raise damage

    def _first_lost(self, chain: list[Generation]) -> int:
        """The step at which a chain ends, or at which a younger generation had gone back into it."""
        with reading(journal_path(self.place, chain[0].number)) as (_, reader):
            with suppress(Damaged):  # that is where it ends then
                for _ in reader.headings():
                    pass
            lost = reader.next_step
        for number in (number for number in self.numbers if number > chain[0].number and self._has_snapshot(number)):
            with suppress(Damaged):  # it does not tell
                began = snapshots.read_fields(snapshot_path(self.place, number)).step
                if chain[-1].first_step <= began:
                    lost = min(lost, began)
        return lost

    def _chain_from(self, number: int) -> list[Generation]:
        chain = [read_generation(journal_path(self.place, number))]
        while chain[-1].parent in self.numbers:
            try:
                chain.append(read_generation(journal_path(self.place, chain[-1].parent)))
            except Damaged:
                while chain and not self._has_snapshot(chain[-1].number):
                    chain.pop()
                if not chain:
                    raise
                break
        return chain

    def route(self, step: int | None = None) -> Route:
        """The way to the state before `step` is taken; None: to the present.

        Raises:
            StepNotRetained: it is not on the way to the present any more. Whether it has been reached is not checked.
            Damaged: a header or a snapshot that is needed is not what was written, or a file is missing.
        """
        chain, damage = self.standing()
        oldest = chain[-1].first_step
        if damage is not None and (step is None or damage.step is None or step > damage.step):
            raise damage
        if step is not None:
            if step < oldest:
                raise StepNotRetained(step, oldest, chain[0].first_step)
            while chain[0].first_step > step:
                chain.pop(0)
        legs = [Leg(chain[0], step)]
        for younger, generation in pairwise(chain):
            if self._has_snapshot(younger.number):
                break
            legs.insert(0, Leg(generation, younger.first_step))
        first = legs[0].generation
        if self._has_snapshot(first.number):
            return Route(snapshot_path(self.place, first.number), tuple(legs))
        if first.parent != NOTHING:
            missing = Damaged(snapshot_path(self.place, first.number), "it is missing")
            raise self._without.get(first.number, missing)
        return Route(None, tuple(legs))

    def do_without(self, route: Route, damage: Damaged) -> None:
        """Take no more ways from the snapshot that a route begins with, which cannot be read."""
        self._without[route.legs[0].generation.number] = damage

    def snapshot_after(self, step: int) -> int | None:
        """The first step after `step` at which there is a snapshot on the way to the present.

        Raises:
            Damaged: a header is not what was written.
        """
        snapshots_at = [one.first_step for one in self.chain() if self._has_snapshot(one.number)]
        return min((at for at in snapshots_at if at > step), default=None)

    def begin(self, generation: Generation, snapshot: Snapshot | Path | None = None) -> Journal:
        """Begin the generation that follows the newest, whatever number it has; it is on disk before the return.

        Args:
            generation: its header.
            snapshot: of its beginning: to be written, or a file to be linked. It is needed where there is no parent.

        Raises:
            OSError: it cannot be written; then nothing has changed.
        """
        number = self.newest + 1
        path = snapshot_path(self.place, number)
        path.unlink(missing_ok=True)  # of a beginning that did not come to its end
        if isinstance(snapshot, Path):
            os.link(snapshot, path)
        elif snapshot is not None:
            snapshots.write(path, snapshot, sync_name=False)  # the journal's beginning syncs both names
        journal = Journal.begin(journal_path(self.place, number), replace(generation, number=number))
        self.numbers.append(number)
        return journal

    def prune(self, oldest_step: int) -> int:
        """Remove what no state at `oldest_step` or later comes from; the first step that can still be gone back to.

        Raises:
            Damaged: a header is not what was written.
        """
        chain = self.chain()
        kept = []
        for generation in chain:
            kept.append(generation)
            if generation.first_step <= oldest_step and self._has_snapshot(generation.number):
                break
        numbers = {generation.number for generation in kept}
        sync_directory(self.place)  # the snapshot that makes the rest superfluous is there before that goes
        # The youngest first: what is cut off in between leaves no generation whose parent is gone before it.
        for number in [number for number in reversed(self.numbers) if number not in numbers]:
            journal_path(self.place, number).unlink(missing_ok=True)
            snapshot_path(self.place, number).unlink(missing_ok=True)
            self.numbers.remove(number)
        return kept[-1].first_step

    def _has_snapshot(self, number: int) -> bool:
        return number not in self._without and snapshot_path(self.place, number).exists()
