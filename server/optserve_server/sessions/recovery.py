"""A session's state from its files: the nearest snapshot, and every record after it once more."""

from pathlib import Path

import structlog

from optserve_server.sessions.awake import Awake
from optserve_server.sessions.description import Settings
from optserve_server.sessions.log import SessionLog
from optserve_server.sessions.plan import configured
from optserve_server.sessions.snapshotting import put_snapshot
from optserve_server.sessions.steps import Numbers, StepGradients
from optserve_server.sessions.storage import snapshots
from optserve_server.sessions.storage.errors import Damaged
from optserve_server.sessions.storage.journal import Journal, reading
from optserve_server.sessions.storage.lineage import Leg, Lineage, Route, journal_path
from optserve_server.sessions.storage.records import Kind, Record, RecordReader

log = structlog.get_logger(__name__)


def recover(session: str, place: Path, awake: Awake, settings: Settings) -> SessionLog:
    """Give an awake part, at h_0, the session's present state.

    If the journals name another kernel than the awake part, or some updates turn out to be others, the session goes on
    in a generation of its own from here, and `awake.is_approximate`.

    Raises:
        Damaged: a file is not what was written.
        StateTooLarge: there is no room for θ.
        OSError: a file cannot be read or written.
    """
    lineage = Lineage(place)
    route, reader = replay(awake, lineage)
    generation = route.legs[-1].generation
    journal = Journal.behind(journal_path(place, generation.number), generation, reader)
    kept = SessionLog(session, lineage, journal, replayed=awake.next_step - route.legs[0].generation.first_step)
    if awake.is_approximate:
        kept.start_anew(awake, settings, parent=generation.number)
    return kept


def replay(awake: Awake, lineage: Lineage, step: int | None = None) -> tuple[Route, RecordReader]:
    """Take an awake part, at h_0, to the state before `step`, or to the present.

    What is damaged is in nobody's way who only wants to come as far as that. A snapshot that is damaged only makes the
    way longer, as long as the journals before it are there.

    Returns:
        The way, and the reader, at its end, of the last journal on it.

    Raises:
        StepNotRetained: the step is not on the way to the present any more.
        Damaged: a file is not what was written.
        StateTooLarge: there is no room for θ.
        OSError: a file cannot be read.
    """
    route = _begin(awake, lineage, step)
    began, awake.is_approximate, is_untold = awake.next_step, False, awake.is_approximate
    *before, last = route.legs
    for leg in before:
        replay_leg(awake, journal_path(lineage.place, leg.generation.number), leg)
    reader = replay_leg(awake, journal_path(lineage.place, last.generation.number), last, destination=last.until)
    if is_untold and awake.next_step == began:  # the reply to a step would have told it
        awake.is_approximate = True
    return route, reader


def _begin(awake: Awake, lineage: Lineage, step: int | None) -> Route:
    """Put the nearest snapshot that can be read; the way that begins with it."""
    while True:
        route = lineage.route(step)
        if route.snapshot is None:
            return route
        try:
            snapshot = snapshots.read(route.snapshot)
        except Damaged as damage:
            told = {"session": lineage.place.name, "file": damage.path.name, "reason": damage.reason}
            log.warning("a damaged snapshot is passed over", **told)
            lineage.do_without(route, damage)
            continue
        put_snapshot(awake, snapshot)
        return route


def replay_leg(awake: Awake, path: Path, leg: Leg, destination: int | None = None) -> RecordReader:
    """Take an awake part, where the leg begins, to its end; damage at the step `destination` is in nobody's way.

    Raises:
        Damaged: a record is not what was written.
        StateTooLarge: there is no room for θ.
    """
    if leg.generation.kernel != awake.kernel:
        awake.is_approximate = True
    settings = Settings(**leg.generation.settings)
    awake.optimizer = configured(awake.version.optimizer, settings.hyperparameters)
    with reading(path) as (_, reader):
        try:
            _replay_records(awake, path, reader, leg.until)
        except Damaged:
            if awake.next_step != destination:
                raise
    return reader


def _replay_records(awake: Awake, path: Path, reader: RecordReader, until: int | None) -> None:
    for record in reader:
        if until is not None and record.kind == Kind.STEP and record.step >= until:
            return
        if record.step != awake.next_step:
            raise Damaged(path, f"step {awake.next_step} is missing", awake.next_step)
        if record.updates_digest != awake.updates_digest():
            awake.is_approximate = True
        _replay_record(awake, record)


def _replay_record(awake: Awake, record: Record) -> None:
    layout = awake.layout
    if record.kind == Kind.STEP:
        selection = layout.select(record.extras.get("skip", ()))
        gradients = StepGradients(selection, awake.dtype, record.loss, record.body)
        awake.take(gradients, awake.observe(gradients))
    elif record.kind == Kind.PARAMETERS:
        awake.put_parameters(Numbers(layout.complete, awake.dtype, record.body))
    else:
        awake.optimizer = awake.configured(record.extras.get("hyperparameters", {}))
