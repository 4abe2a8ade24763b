"""Journals: what happened to one session, from a step on.

A journal file begins a *generation* of its session: at `first_step`, with the state that the generation `parent` has
there. It is appended to until the next generation begins, and never written again.
"""

import errno
import os
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Self

from optserve_server.sessions.storage import headers
from optserve_server.sessions.storage.errors import Damaged
from optserve_server.sessions.storage.files import BLOCK, write_whole
from optserve_server.sessions.storage.records import Record, RecordReader, encode
from optserve_server.sessions.storage.writing import Append

FORMAT = 1

NOTHING = 0
"""The parent of a generation that begins with h_0 = 0."""

_MAGIC = b"OPTJRNL1"
_DIRECT = getattr(os, "O_DIRECT", 0)

DIRECT_BYTES = 256 << 10
"""Records of so many bytes are written past the page cache, which takes a quarter of the time for megabytes."""


@dataclass(frozen=True, slots=True)
class Generation:
    """The header of a journal.

    `parent` is the generation that it goes on from, `NOTHING` for h_0 = 0, or None where only its own snapshot
    knows the state.
    `settings` is what a CHANGE record can change, as it was when the generation began; `kernel` names whose bits the
    updates have.
    """

    session: str
    number: int
    first_step: int
    parent: int | None
    kernel: str
    settings: dict[str, Any]
    alignment: int = 1
    moment: float = field(default_factory=time.time)
    nonce: int = field(default_factory=lambda: secrets.randbits(63))
    format: int = FORMAT


def alignment_for(record_bytes: int) -> int:
    """The alignment of a journal whose records have about so many bytes."""
    return BLOCK if record_bytes >= DIRECT_BYTES else 1


class Journal:
    """The newest generation of a session, open for more records.

    Its methods are called one at a time, but from any thread.
    """

    def __init__(self, path: Path, generation: Generation, position: int, sequence: int) -> None:
        self.path = path
        self.generation = generation
        self.position = position
        self._sequence = sequence
        self._last_size = 0
        self._file = _open_for_writing(path, generation.alignment)

    @classmethod
    def begin(cls, path: Path, generation: Generation) -> Self:
        """A journal without records; it is on disk before the return.

        Raises:
            OSError: it cannot be written; then it is not there.
        """
        header = headers.pack(_MAGIC, asdict(generation))
        write_whole(path, [header])
        return cls(path, generation, len(header), 0)

    @classmethod
    def resume(cls, path: Path) -> Self:
        """The journal behind its last whole record; a torn one is cut off.

        Raises:
            Damaged: something in it is not what was written.
        """
        with reading(path) as (generation, reader):
            for _ in reader:
                pass
        return cls.behind(path, generation, reader)

    @classmethod
    def behind(cls, path: Path, generation: Generation, reader: RecordReader) -> Self:
        """The journal where `reader` came to its end; a torn record is cut off."""
        journal = cls(path, generation, reader.position, reader.sequence)
        if reader.torn:
            journal.cut()
        return journal

    def append(self, record: Record, *, sync: bool = True) -> None:
        """Write a record, and sync it.

        Raises:
            OSError: it cannot be written, and nothing of it is left.
        """
        try:
            written = self.write(record)
            if sync:
                self.sync()
        except OSError:
            self.cut()
            raise
        self.accept(written)

    def write(self, record: Record) -> int:
        """Write a record behind the last, and return how many bytes it has; it counts once it is accepted.

        Raises:
            OSError: not all of it is written.
        """
        parts = encode(record, self._sequence, self.generation.nonce, self.generation.alignment)
        size = sum(len(part) for part in parts)
        try:
            written = os.pwritev(self._file, parts, self.position)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            # Direct writes are not for this file system, or end at a limit that is not a multiple of a block.
            direct, self._file = self._file, os.open(self.path, os.O_WRONLY)
            os.close(direct)
            written = os.pwritev(self._file, parts, self.position)
        if written < size:  # a disk that gets full says so first by writing less
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.path))
        return size

    def ordered(self, record: Record) -> Append:
        """A record, of a journal whose alignment is 1, as the bytes to append; it counts once it is accepted."""
        (octets,) = encode(record, self._sequence, self.generation.nonce, self.generation.alignment)
        return Append(self._file, bytes(octets), self.position)

    def sync(self) -> None:
        """Let all that is written survive a power cut."""
        os.fdatasync(self._file)

    def accept(self, size: int) -> None:
        """Count the record of so many bytes that was written last: the next goes behind it."""
        self.position += size
        self._sequence += 1
        self._last_size = size

    def take_back(self) -> None:
        """Cut the record off that was accepted last."""
        self.position -= self._last_size
        self._sequence -= 1
        self._last_size = 0
        self.cut()

    def cut(self) -> None:
        """Take back what was written behind the last record that counts."""
        os.ftruncate(self._file, self.position)
        self.sync()

    def close(self) -> None:
        """Append no more."""
        os.close(self._file)


@contextmanager
def reading(path: Path) -> Iterator[tuple[Generation, RecordReader]]:
    """A journal's header and records.

    Raises:
        Damaged: the header is not what was written.
    """
    with path.open("rb") as file:
        fields, position = headers.read(file, path, _MAGIC)
        try:
            generation = Generation(**fields)
        except TypeError as error:
            raise Damaged(path, "its header has other fields") from error
        nonce, alignment, first_step = generation.nonce, generation.alignment, generation.first_step
        yield generation, RecordReader(file, path, nonce, alignment, position, first_step)


def read_generation(path: Path) -> Generation:
    """A journal's header.

    Raises:
        Damaged: it is not what was written.
    """
    with reading(path) as (generation, _):
        return generation


def _open_for_writing(path: Path, alignment: int) -> int:
    if alignment > 1:
        try:
            return os.open(path, os.O_WRONLY | _DIRECT)
        except OSError:  # some file systems, such as tmpfs, have no direct writes
            pass
    return os.open(path, os.O_WRONLY)
