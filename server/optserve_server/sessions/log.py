"""What an awake session writes down: every step and every change, before anybody is told that it was done."""

import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from optserve_server.sessions.awake import Awake
from optserve_server.sessions.description import Settings
from optserve_server.sessions.plan import configured
from optserve_server.sessions.snapshotting import take_snapshot
from optserve_server.sessions.steps import Numbers, StepGradients
from optserve_server.sessions.storage.journal import Generation, Journal, alignment_for
from optserve_server.sessions.storage.lineage import Lineage
from optserve_server.sessions.storage.records import Body, Kind, Record
from optserve_server.sessions.storage.snapshots import Snapshot

SNAPSHOT_STEPS = 64
"""So many steps after a snapshot of a small session another one is due; of a large one half as many, at least."""

REPLAY_SECONDS = 0.002
"""Or, after an eighth of those steps, as soon as replaying them takes so long: most of what waking a session takes.
A thousand sessions are then awake again within five seconds on two cores."""


class SessionLog:
    """The newest generation of an awake session. Its methods are called by whoever has the session's turn."""

    def __init__(self, session: str, lineage: Lineage, journal: Journal, replayed: int = 0) -> None:
        """`replayed`: how many steps were replayed since the nearest snapshot."""
        self.session = session
        self.lineage = lineage
        self.journal = journal
        self._steps = replayed

    @property
    def steps(self) -> int:
        """How many steps a replay has to take, since the nearest snapshot."""
        return self._steps

    def is_snapshot_due(self, awake: Awake) -> bool:
        """Whether a snapshot should be made: of a large state only when as many bytes of records have been written."""
        if awake.is_small:
            dear = awake.replay_seconds >= REPLAY_SECONDS and self._steps >= SNAPSHOT_STEPS // 8
            return dear or self._steps >= SNAPSHOT_STEPS
        return self._steps >= SNAPSHOT_STEPS // 2 and self._steps * awake.step_bytes >= awake.state_bytes

    def step(self, awake: Awake, gradients: StepGradients) -> Record:
        """The record of the step that comes next."""
        self._steps += 1
        skipped = gradients.selection.skipped
        extras = {"skip": sorted(skipped)} if skipped else {}
        return self._record(Kind.STEP, awake, gradients.body, extras, gradients.loss)

    def change(self, awake: Awake, changes: Mapping[str, Any]) -> Record:
        """The record of a change of settings."""
        return self._record(Kind.CHANGE, awake, Body(0), dict(changes))

    def parameters(self, awake: Awake, numbers: Numbers) -> Record:
        """The record of the parameters θ."""
        return self._record(Kind.PARAMETERS, awake, numbers.body, {})

    def go_on(self, awake: Awake, settings: Settings) -> None:
        """Begin the next generation where the present one ends.

        Raises:
            OSError: it cannot be written; then nothing has changed.
        """
        self._begin(awake, settings, self.journal.generation.number, None)

    def start_anew(self, awake: Awake, settings: Settings, parent: int | None = None) -> None:
        """Begin a generation with the present state as its snapshot, which comes from nowhere else.

        `parent` is the generation that can still be gone back to, if there is one.

        Raises:
            OSError: it cannot be written; then nothing has changed on disk.
        """
        self._begin(awake, settings, parent, take_snapshot(self.session, awake))

    def close(self) -> None:
        """Write no more."""
        self.journal.close()

    def _record(
        self, kind: Kind, awake: Awake, body: Body, extras: dict[str, Any], loss: float | None = None
    ) -> Record:
        return Record(kind, awake.next_step, time.time(), body, loss, extras, awake.updates_digest())

    def _begin(self, awake: Awake, settings: Settings, parent: int | None, snapshot: Snapshot | None) -> None:
        generation = generation_of(self.session, awake, settings, parent)
        journal = self.lineage.begin(generation, snapshot)
        self.journal.close()
        self.journal = journal
        self._steps = 0
        awake.replay_seconds = 0.0


def begin_anew(
    session: str, place: Path, awake: Awake, settings: Settings, *, parent: int | None, snapshot: Path | None = None
) -> SessionLog:
    """Begin a generation of a session that sleeps: with the state of `awake`, whatever its state was.

    Args:
        session: its identifier.
        place: where its files are.
        awake: the state.
        settings: the session's, which `awake` is given too.
        parent: the generation that has that state, if one has; what was before can still be gone back to.
        snapshot: the file of a snapshot that has that state, if there is one.

    Raises:
        OSError: it cannot be written; then nothing has changed on disk.
    """
    awake.optimizer = configured(awake.version.optimizer, settings.hyperparameters)
    lineage = Lineage(place)
    generation = generation_of(session, awake, settings, parent)
    return SessionLog(session, lineage, lineage.begin(generation, snapshot or take_snapshot(session, awake)))


def generation_of(session: str, awake: Awake, settings: Settings, parent: int | None) -> Generation:
    """The header of a generation, the session's first, that begins with the present state."""
    alignment = alignment_for(awake.step_bytes)
    return Generation(session, 1, awake.next_step, parent, awake.kernel, asdict(settings), alignment)
