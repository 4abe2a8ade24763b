"""What can be said of a session that sleeps, without awaking it."""

import time
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from optserve_server.sessions.description import Description, Settings
from optserve_server.sessions.storage.directory import read_description, remove_unfinished
from optserve_server.sessions.storage.errors import Damaged
from optserve_server.sessions.storage.journal import reading
from optserve_server.sessions.storage.lineage import Lineage, journal_path
from optserve_server.sessions.storage.records import Kind

GRACE_SECONDS = 3600.0
"""So long at least a session lives after the server was started, or for its `ttl_seconds` if that is less."""


@dataclass(frozen=True, slots=True)
class Summary:
    """One session as its files tell of it. Where they are damaged, it tells of what came before the damage."""

    description: Description
    settings: Settings
    next_step: int
    moment: float  # of the last record, in seconds since 1970

    def seconds_left(self) -> float:
        """How long it has still to live.

        A clock that was set back since does not make the session older than it is.
        """
        now, ttl_seconds = time.time(), self.settings.ttl_seconds
        return max(min(self.moment, now) + ttl_seconds - now, min(ttl_seconds, GRACE_SECONDS))


def summarise(place: Path) -> Summary:
    """Read what the files in `place` tell of their session.

    Raises:
        Damaged: its description is not what was written.
        OSError: a file cannot be read.
    """
    remove_unfinished(place)
    try:
        description = Description.from_json(read_description(place))
    except (KeyError, TypeError, ValueError) as error:
        raise Damaged(place, f"its description cannot be used: {error}") from error
    plan = description.plan
    try:
        lineage = Lineage(place)
        try:
            return _tell(description, journal_path(place, lineage.newest))
        except Damaged:  # of its header
            chain, damage = lineage.standing()
            told = _tell(description, journal_path(place, chain[0].number))
            return told if damage is None or damage.step is None else replace(told, next_step=damage.step)
    except Damaged:  # whoever wakes it is told
        settings = Settings(plan.hyperparameters, plan.label, plan.ttl_seconds)
        return Summary(description, settings, 0, description.created_at.timestamp())


def _tell(description: Description, path: Path) -> Summary:
    """What a journal tells, as far as its records can be read.

    Raises:
        Damaged: its header is not what was written.
    """
    with reading(path) as (generation, reader):
        settings, moment = Settings(**generation.settings), generation.moment
        with suppress(Damaged):  # whoever wakes it is told
            for heading in reader.headings():
                moment = heading.moment
                if heading.kind == Kind.CHANGE:
                    settings = settings.changed(heading.extras)
        return Summary(description, settings, reader.next_step, moment)
