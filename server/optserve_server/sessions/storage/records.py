"""Records: what happened to a session, one after another in a journal.

    header   64 bytes, their checksum in 8 more
    extras   JSON, UTF-8
    zeros    to the next multiple of the journal's alignment
    body     numbers as they travel, or JSON
    zeros    as many as it takes for the end to be such a multiple
    end      the header's checksum again, 8 bytes: what was cut off lacks it

Everything between header and end is under the checksum `body_checksum`. All checksums are XXH3 (64 bits), the header's
seeded with the journal's `nonce`; integers and floats are little-endian.
"""

import json
import math
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import IntEnum
from io import BufferedReader
from pathlib import Path
from typing import Any

import numpy as np
from xxhash import xxh3_64, xxh3_64_intdigest

from optserve_server.sessions.storage.errors import Damaged
from optserve_server.sessions.storage.files import BLOCK, Octets, aligned_octets, round_up

_MAGIC = b"rec1"
# magic, kind, sequence number, bytes of extras, step, bytes of body, moment, loss, digest of the updates, body checksum
_HEADER = struct.Struct("<4sBxxxIIQQddQQ")
_CHECKSUM = struct.Struct("<Q")
_LEAD = _HEADER.size + _CHECKSUM.size
_MOST_EXTRAS = 64 << 20

NO_LOSS = float("nan")


class Kind(IntEnum):
    """What happened."""

    STEP = 1  # `body`: gradients as they travel
    CHANGE = 2  # of hyperparameters, label or time to live, in `extras`
    PARAMETERS = 3  # `body`: θ as it travels


class Body:
    """The numbers of a record, at the beginning of zeroed memory that goes on to the end of a block."""

    __slots__ = ("size", "whole")

    def __init__(self, size: int) -> None:
        """Room for `size` bytes, not initialised; write them to `octets`."""
        self.size = size
        self.whole = aligned_octets(round_up(size + _CHECKSUM.size, BLOCK))
        self.whole[size:] = 0

    @property
    def octets(self) -> Octets:
        """The numbers' own memory."""
        return self.whole[: self.size]


@dataclass(frozen=True, slots=True)
class Record:
    """One record.

    `step` is the step that was taken, or the one that comes next after anything else; `moment` is in seconds
    since 1970. `updates_digest` is the digest of the last updates that the session had given before this record, 0
    for none.
    """

    kind: Kind
    step: int
    moment: float
    body: Body
    loss: float | None = None
    extras: dict[str, Any] = field(default_factory=dict)
    updates_digest: int = 0


def digest(octets: Any) -> int:
    """The digest of updates as they travel; never 0."""
    return xxh3_64_intdigest(octets) or 1


def encode(record: Record, sequence: int, nonce: int, alignment: int) -> list[bytes | memoryview]:
    """The bytes of a record, in parts whose lengths and addresses are multiples of the alignment; or in one part, if 1.

    Nothing is written into the body's own memory, for the step may be computed from it meanwhile.
    """
    body, extras = record.body, json.dumps(record.extras).encode() if record.extras else b""
    between = extras.ljust(round_up(_LEAD + len(extras), alignment) - _LEAD, b"\0")
    padded = body.whole[: _padded(body.size, alignment)].data
    checked = xxh3_64(between)
    checked.update(padded)
    header = _HEADER.pack(
        _MAGIC,
        record.kind,
        sequence,
        len(extras),
        record.step,
        body.size,
        record.moment,
        NO_LOSS if record.loss is None else record.loss,
        record.updates_digest,
        checked.intdigest(),
    )
    end = _CHECKSUM.pack(xxh3_64_intdigest(header, nonce))
    if alignment == 1:
        return [b"".join((header, end, between, padded, end))]
    whole = len(padded) // BLOCK * BLOCK  # the blocks before the one that ends in the checksum
    front, last = aligned_octets(_LEAD + len(between)), aligned_octets(BLOCK)
    front[:] = np.frombuffer(header + end + between, np.uint8)
    last[:] = np.frombuffer(bytes(padded[whole:]) + end, np.uint8)
    return [front.data, padded[:whole], last.data]


def _padded(size: int, alignment: int) -> int:
    """How many bytes a body has with the zeros behind it, before the record's end."""
    return round_up(size + _CHECKSUM.size, alignment) - _CHECKSUM.size


@dataclass(frozen=True, slots=True)
class Heading:
    """A record without its body."""

    kind: Kind
    step: int
    moment: float
    extras: dict[str, Any]


class RecordReader:
    """Reads the records of one journal, from behind its header on.

    `position` is where the last whole record ends, and the step `next_step` comes after it. A record that was being
    written when everything stopped is `torn`: the file ends in it. It was never acknowledged.
    """

    def __init__(
        self, file: BufferedReader, path: Path, nonce: int, alignment: int, position: int, first_step: int
    ) -> None:
        self.position = position
        self.sequence = 0
        self.torn = False
        self.next_step = first_step
        self._file, self._path, self._nonce, self._alignment = file, path, nonce, alignment

    def __iter__(self) -> Iterator[Record]:
        """The records, one after another.

        Raises:
            Damaged: what stands there is not what was written.
        """
        while (record := self._next()) is not None:
            yield record

    def headings(self) -> Iterator[Heading]:
        """The records without their bodies, which are not looked at but for their ends.

        Raises:
            Damaged: what stands there is not what was written.
        """
        while (front := self._next_front()) is not None:
            self._file.seek(self.position + _LEAD + len(front.between) + _padded(front.body_size, self._alignment))
            if not self._is_whole(self._file.read(_CHECKSUM.size), front):
                return
            self._accept(front)
            yield Heading(front.kind, front.step, front.moment, front.extras)

    def _next(self) -> Record | None:
        front = self._next_front()
        if front is None:
            return None
        body = Body(front.body_size)
        padded = body.whole[: _padded(front.body_size, self._alignment)]
        missing = self._file.readinto(padded.data) < len(padded)
        if not self._is_whole(b"" if missing else self._file.read(_CHECKSUM.size), front):
            return None
        checked = xxh3_64(front.between)
        checked.update(padded.data)
        if checked.intdigest() != front.checksum:
            raise self._damaged("a record does not match its checksum")
        self._accept(front)
        loss = None if math.isnan(front.loss) else front.loss
        return Record(front.kind, front.step, front.moment, body, loss, front.extras, front.updates_digest)

    def _next_front(self) -> "_Front | None":
        self._file.seek(self.position)
        lead = self._file.read(_LEAD)
        if len(lead) < _LEAD:
            self.torn = bool(lead)
            return None
        if lead[-_CHECKSUM.size :] != _CHECKSUM.pack(xxh3_64_intdigest(lead[: _HEADER.size], self._nonce)):
            if self._nothing_but_zeros(lead):
                self.torn = True
                return None
            raise self._damaged("a record's header does not match its checksum")
        magic, kind, sequence, extras_size, *others = _HEADER.unpack_from(lead)
        if magic != _MAGIC or sequence != self.sequence or extras_size > _MOST_EXTRAS:
            raise self._damaged("a record is not the one that belongs there")
        between = self._file.read(round_up(_LEAD + extras_size, self._alignment) - _LEAD)
        return _Front(lead[-_CHECKSUM.size :], between, extras_size, Kind(kind), *others)

    def _is_whole(self, end: bytes, front: "_Front") -> bool:
        if len(end) < _CHECKSUM.size or not any(end):
            self.torn = True
            return False
        if end != front.end:
            raise self._damaged("a record does not match its checksum")
        return True

    def _accept(self, front: "_Front") -> None:
        size = _LEAD + len(front.between) + _padded(front.body_size, self._alignment) + _CHECKSUM.size
        self.position += size
        self.sequence += 1
        self.next_step = front.step + (front.kind == Kind.STEP)

    def _nothing_but_zeros(self, front: bytes) -> bool:
        chunk: bytes = front
        while chunk:
            if chunk.strip(b"\0"):
                return False
            chunk = self._file.read(1 << 20)
        return True

    def _damaged(self, reason: str) -> Damaged:
        where = f"at byte {self.position}, before step {self.next_step} is read"
        return Damaged(self._path, f"{where}, {reason}", self.next_step)


@dataclass(frozen=True, slots=True)
class _Front:
    """What stands before a record's body."""

    end: bytes
    between: bytes
    extras_size: int
    kind: Kind
    step: int
    body_size: int
    moment: float
    loss: float
    updates_digest: int
    checksum: int

    @property
    def extras(self) -> dict[str, Any]:
        return json.loads(self.between[: self.extras_size]) if self.extras_size else {}
