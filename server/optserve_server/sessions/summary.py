"""What can be said of a session that sleeps, without awaking it."""

import time
from dataclasses import dataclass
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
    settings = Settings(plan.hyperparameters, plan.label, plan.ttl_seconds)
    next_step, moment = 0, description.created_at.timestamp()
    try:
        with reading(journal_path(place, Lineage(place).newest)) as (generation, reader):
            settings = Settings(**generation.settings)
            next_step, moment = generation.first_step, generation.moment
            for heading in reader.headings():
                next_step, moment = reader.next_step, heading.moment
                if heading.kind == Kind.CHANGE:
                    settings = settings.changed(heading.extras)
    except Damaged:
        pass  # whoever wakes it is told
    return Summary(description, settings, next_step, moment)
