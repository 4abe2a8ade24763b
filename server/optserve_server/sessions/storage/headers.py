"""The beginning of each file: what it is, as JSON, under a checksum, in whole blocks."""

import json
import struct
from pathlib import Path
from typing import Any, BinaryIO

from xxhash import xxh3_64_intdigest as checksum

from optserve_server.sessions.storage.errors import Damaged
from optserve_server.sessions.storage.files import BLOCK, round_up

_BEGINNING = struct.Struct("<8sII")  # magic, blocks, bytes of JSON
_CHECKSUM = struct.Struct("<Q")  # of everything else, in the header's last bytes
_MOST_BLOCKS = 1 << 16


def pack(magic: bytes, fields: dict[str, Any]) -> bytes:
    """The header's blocks; `magic` has 8 bytes and names the kind of file and the version of its format."""
    text = json.dumps(fields, ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode()
    size = round_up(_BEGINNING.size + len(text) + _CHECKSUM.size, BLOCK)
    content = (_BEGINNING.pack(magic, size // BLOCK, len(text)) + text).ljust(size - _CHECKSUM.size, b"\0")
    return content + _CHECKSUM.pack(checksum(content))


def read(file: BinaryIO, path: Path, magic: bytes) -> tuple[dict[str, Any], int]:
    """The fields of the header that the file begins with, and how many bytes it has.

    Raises:
        Damaged: it is not whole, or of another kind or version.
    """
    beginning = file.read(_BEGINNING.size)
    if len(beginning) < _BEGINNING.size:
        raise Damaged(path, "its header is cut off")
    found, blocks, length = _BEGINNING.unpack(beginning)
    if found != magic:
        raise Damaged(path, f"it begins with {found!r}, not {magic!r}: damaged, or written by another version")
    size = blocks * BLOCK
    if not 0 < blocks <= _MOST_BLOCKS or length > size - _BEGINNING.size - _CHECKSUM.size:
        raise Damaged(path, "its header has an impossible length")
    rest = file.read(size - len(beginning))
    content = beginning + rest[: -_CHECKSUM.size]
    if len(rest) != size - len(beginning) or rest[-_CHECKSUM.size :] != _CHECKSUM.pack(checksum(content)):
        raise Damaged(path, "its header does not match its checksum")
    fields: dict[str, Any] = json.loads(content[_BEGINNING.size : _BEGINNING.size + length])
    return fields, size
