"""Copies of a session's state, kept under names in files of their own."""

import hashlib
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from optserve_server.sessions.awake import Awake
from optserve_server.sessions.errors import CheckpointNotFound, RequestInvalid, session_damaged
from optserve_server.sessions.plan import MAX_TEXT_CHARACTERS
from optserve_server.sessions.snapshotting import lasting_sections
from optserve_server.sessions.storage import snapshots
from optserve_server.sessions.storage.errors import Damaged
from optserve_server.sessions.storage.snapshots import Snapshot

_DIRECTORY = "checkpoints"
_ENDING = ".snapshot"
_NO_CHARACTER = "\ufffd"  # what bytes that are not UTF-8 decode to


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A copy of everything that a step changes."""

    name: str
    step: int
    created_at: datetime


def require_name(name: str) -> None:
    """Check a checkpoint's name.

    Raises:
        RequestInvalid: it is none.
    """
    if not 1 <= len(name) <= MAX_TEXT_CHARACTERS or not name.isprintable():
        raise RequestInvalid(f"A checkpoint's name has 1 to {MAX_TEXT_CHARACTERS} printable characters.")
    if _NO_CHARACTER in name:
        raise RequestInvalid("The checkpoint's name is not in UTF-8.")


def save(place: Path, session: str, awake: Awake, name: str) -> Checkpoint:
    """Keep all that is h_t under `name`, on disk before the return; what had that name before is gone.

    Raises:
        OSError: they cannot be written; what had the name before is still there.
    """
    path = _path(place, name)
    path.parent.mkdir(exist_ok=True)
    told = {"last": None, "approximate": awake.is_approximate}
    fields = {**told, "name": name, "created_at": datetime.now(UTC).isoformat()}
    snapshot = Snapshot(session, awake.next_step, fields, lasting_sections(awake))
    snapshots.write(path, snapshot)
    return _checkpoint(snapshot)


def find(place: Path, session: str, name: str) -> Path:
    """The file of a checkpoint.

    Raises:
        CheckpointNotFound: there is none of that name.
    """
    path = _path(place, name)
    if not path.exists():
        raise CheckpointNotFound(name, [one.name for one in kept(place, session)])
    return path


def kept(place: Path, session: str) -> list[Checkpoint]:
    """The session's checkpoints, in the order of their names.

    Raises:
        SessionDamaged: a file is not what was written.
    """
    try:
        found = [_checkpoint(snapshots.read_fields(path)) for path in (place / _DIRECTORY).glob(f"*{_ENDING}")]
    except Damaged as damage:
        raise session_damaged(session, damage) from damage
    return sorted(found, key=lambda checkpoint: checkpoint.name)


def _checkpoint(snapshot: Snapshot) -> Checkpoint:
    fields = snapshot.fields
    return Checkpoint(fields["name"], snapshot.step, datetime.fromisoformat(fields["created_at"]))


def _path(place: Path, name: str) -> Path:
    return place / _DIRECTORY / (hashlib.sha256(name.encode()).hexdigest()[:32] + _ENDING)
