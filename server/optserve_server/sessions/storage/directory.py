"""The directory of all sessions of a server, each in a directory of its own."""

import fcntl
import json
import os
import shutil
from contextlib import suppress
from pathlib import Path
from typing import Any

from xxhash import xxh3_64_hexdigest as checksum

from optserve_server.sessions.storage import snapshots
from optserve_server.sessions.storage.errors import Damaged, DirectoryInUse
from optserve_server.sessions.storage.files import TEMPORARY, sync_directory, write_whole
from optserve_server.sessions.storage.journal import Generation, Journal
from optserve_server.sessions.storage.lineage import journal_path, snapshot_path
from optserve_server.sessions.storage.snapshots import Snapshot

_DESCRIPTION = "session.json"
_CHECKSUM = "xxh3"
_REMOVED = ".removed"
_CREATED = ".created"


class SessionDirectory:
    """Where the sessions are. One server has it at a time."""

    def __init__(self, path: Path) -> None:
        """Take the directory, which is made if it is not there.

        Raises:
            DirectoryInUse: another process has it.
            OSError: it cannot be written to.
        """
        self.path = path
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._lock = os.open(path / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(self._lock)
            raise DirectoryInUse(path) from None
        for ending in (_CREATED, _REMOVED):
            for leftover in path.glob(f"*{ending}"):
                shutil.rmtree(leftover)

    def close(self) -> None:
        """Let another process have it."""
        os.close(self._lock)

    def sessions(self) -> list[str]:
        """The identifiers of all sessions, sorted."""
        return session_names(self.path)

    def size(self) -> int:
        """The bytes of all sessions' files; takes some ten milliseconds for a thousand sessions."""
        return sum(_size(self.path / session) for session in self.sessions())

    def place(self, session: str) -> Path:
        """Where that session's files are."""
        return self.path / session

    def create(
        self, session: str, description: dict[str, Any], generation: Generation, snapshot: Snapshot | None = None
    ) -> Journal:
        """A directory for a session, with its description and its first generation; on disk before the return.

        Args:
            session: its identifier.
            description: what never changes.
            generation: the header of the first journal.
            snapshot: of its beginning, where that is not h_0 = 0.

        Raises:
            OSError: it cannot be written; then nothing of it is there.
        """
        place = self.path / (session + _CREATED)
        place.mkdir(mode=0o700)
        try:
            write_whole(place / _DESCRIPTION, [_sealed(description)])
            if snapshot is not None:
                snapshots.write(snapshot_path(place, generation.number), snapshot)
            Journal.begin(journal_path(place, generation.number), generation).close()
            place.rename(self.place(session))
        except OSError:
            shutil.rmtree(place)
            raise
        sync_directory(self.path)
        return Journal.resume(journal_path(self.place(session), generation.number))

    def remove(self, session: str) -> None:
        """Remove a session's files; after a crash it is there as a whole, or not at all.

        Raises:
            OSError: it cannot be removed.
        """
        removed = self.path / (session + _REMOVED)
        self.place(session).rename(removed)
        sync_directory(self.path)
        shutil.rmtree(removed)


def session_names(path: Path) -> list[str]:
    """The identifiers of all sessions in a directory, sorted, whether or not a server has it.

    Raises:
        FileNotFoundError: there is no such directory.
    """
    return sorted(entry.name for entry in os.scandir(path) if entry.is_dir() and "." not in entry.name)


def _size(place: Path) -> int:
    total = 0
    for parent, _, names in os.walk(place):  # what is removed meanwhile counts for nothing
        for name in names:
            with suppress(FileNotFoundError):
                total += (Path(parent) / name).stat().st_size
    return total


def read_description(place: Path) -> dict[str, Any]:
    """What the session was created with.

    Raises:
        Damaged: the file is not what was written.
    """
    path = place / _DESCRIPTION
    try:
        found = path.read_bytes()
        description: dict[str, Any] = json.loads(found)
        description.pop(_CHECKSUM)
    except (OSError, ValueError, KeyError, AttributeError) as error:
        raise Damaged(path, f"it cannot be read: {error}") from error
    if _sealed(description) != found:
        raise Damaged(path, "it does not match its checksum")
    return description


def remove_unfinished(place: Path) -> None:
    """Remove the files that were being written when everything stopped."""
    for path in place.rglob(f"*{TEMPORARY}"):
        path.unlink()


def _sealed(description: dict[str, Any]) -> bytes:
    """The description as JSON that carries its own checksum."""
    text = json.dumps(description, ensure_ascii=False, allow_nan=False)
    return (json.dumps({**description, _CHECKSUM: checksum(text.encode())}, ensure_ascii=False) + "\n").encode()
