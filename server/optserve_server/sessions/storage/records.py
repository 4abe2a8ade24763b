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
    """The numbers of a record, at the beginning of memory that has room for the record's end."""

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

    The record's end is written into the body's own memory.
    """
    body, extras = record.body, json.dumps(record.extras).encode() if record.extras else b""
    lead = round_up(_LEAD + len(extras), alignment)
    tail = body.whole[body.size :] if alignment > 1 else body.whole[body.size : body.size + _CHECKSUM.size]
    tail[-_CHECKSUM.size :] = 0
    between = extras.ljust(lead - _LEAD, b"\0")
    checked = xxh3_64(between)
    checked.update(body.octets.data)
    checked.update(tail[: -_CHECKSUM.size].data)
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
        return [b"".join((header, end, between, body.octets.data, end))]
    tail[-_CHECKSUM.size :] = np.frombuffer(end, np.uint8)
    front = aligned_octets(lead)
    front[:] = np.frombuffer(header + end + between, np.uint8)
    return [front.data, body.whole.data]


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

    def _next(self) -> Record | None:
        self._file.seek(self.position)
        front = self._file.read(_LEAD)
        if len(front) < _LEAD:
            self.torn = bool(front)
            return None
        end = front[-_CHECKSUM.size :]
        if end != _CHECKSUM.pack(xxh3_64_intdigest(front[: _HEADER.size], self._nonce)):
            if self._nothing_but_zeros(front):
                self.torn = True
                return None
            raise self._damaged("a record's header does not match its checksum")
        fields = _HEADER.unpack_from(front)
        magic, kind, sequence, extras_size, step, body_size, moment, loss, updates_digest, checksum = fields
        if magic != _MAGIC or sequence != self.sequence or extras_size > _MOST_EXTRAS:
            raise self._damaged("a record is not the one that belongs there")
        between = self._file.read(round_up(_LEAD + extras_size, self._alignment) - _LEAD)
        body = Body(body_size)
        tail = round_up(body_size + _CHECKSUM.size, self._alignment) - body_size
        rest = body.whole[: body_size + tail]
        if self._file.readinto(rest.data) < len(rest) or not rest[-_CHECKSUM.size :].any():
            self.torn = True
            return None
        checked = xxh3_64(between)
        checked.update(rest[: -_CHECKSUM.size].data)
        if checked.intdigest() != checksum or rest[-_CHECKSUM.size :].tobytes() != end:
            raise self._damaged("a record does not match its checksum")
        body.whole[body_size:] = 0
        self.position += _LEAD + len(between) + len(rest)
        self.sequence += 1
        self.next_step = step + (kind == Kind.STEP)
        extras = json.loads(between[:extras_size]) if extras_size else {}
        return Record(Kind(kind), step, moment, body, None if math.isnan(loss) else loss, extras, updates_digest)

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
