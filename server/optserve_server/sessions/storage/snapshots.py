"""Snapshots: the whole state of a session at one step, in a file that is there whole or not at all.

header   JSON: what the state is of, and the name, length and checksum of each section
section  one after another
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from xxhash import xxh3_64_intdigest as checksum

from optserve_server.sessions.storage import headers
from optserve_server.sessions.storage.errors import Damaged
from optserve_server.sessions.storage.files import write_whole

FORMAT = 1
_MAGIC = b"OPTSNAP1"


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A state at step `step`, which comes next. `fields` says more of it, as JSON can; `sections` are its bytes."""

    session: str
    step: int
    fields: dict[str, Any]
    sections: Mapping[str, Any]


def write(path: Path, snapshot: Snapshot, *, sync_name: bool = True) -> None:
    """Write a snapshot; it is synced before the return, but without `sync_name` its name is not yet.

    Raises:
        OSError: it cannot be written; what stood at `path` stands there still.
    """
    sections = {name: memoryview(octets).cast("B") for name, octets in snapshot.sections.items()}
    fields = {
        "format": FORMAT,
        "session": snapshot.session,
        "step": snapshot.step,
        "fields": snapshot.fields,
        "sections": [[name, len(octets), checksum(octets)] for name, octets in sections.items()],
    }
    write_whole(path, [headers.pack(_MAGIC, fields), *sections.values()], sync_name=sync_name)


def read(path: Path) -> Snapshot:
    """Read a snapshot.

    Raises:
        Damaged: something in it is not what was written.
        FileNotFoundError: there is none.
    """
    with path.open("rb") as file:
        header, _ = headers.read(file, path, _MAGIC)
        sections: dict[str, bytes] = {}
        for name, size, expected in header["sections"]:
            octets = file.read(size)
            if len(octets) != size or checksum(octets) != expected:
                raise Damaged(path, f"its section {name!r} does not match its checksum")
            sections[name] = octets
        if file.read(1):
            raise Damaged(path, "it goes on behind its end")
    return Snapshot(header["session"], header["step"], header["fields"], sections)


def read_fields(path: Path) -> Snapshot:
    """A snapshot without its sections.

    Raises:
        Damaged: its header is not what was written.
        FileNotFoundError: there is none.
    """
    with path.open("rb") as file:
        header, _ = headers.read(file, path, _MAGIC)
    return Snapshot(header["session"], header["step"], header["fields"], {})
