"""Files that are there whole or not at all, and memory that can be written past the page cache."""

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Octets = NDArray[np.uint8]

BLOCK = 4096
"""What the address, the length and the offset of a direct write are multiples of."""

TEMPORARY = ".writing"
"""Ends the names of files that are not whole yet."""


def write_whole(path: Path, parts: Iterable[Any], *, sync_name: bool = True) -> None:
    """Write a file that is there whole or not at all, whatever happens meanwhile; it is synced before the return.

    Without `sync_name` a power cut may take it as long as its directory is not synced, and then as a whole.

    Raises:
        OSError: it cannot be written; what stood at `path` stands there still.
    """
    unfinished = path.with_name(path.name + TEMPORARY)
    try:
        with unfinished.open("wb") as file:
            for part in parts:
                file.write(part)
            file.flush()
            os.fdatasync(file.fileno())
        unfinished.rename(path)
    except BaseException:
        unfinished.unlink(missing_ok=True)
        raise
    if sync_name:
        sync_directory(path.parent)


def sync_directory(path: Path) -> None:
    """Let the names in a directory survive a power cut."""
    directory = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def round_up(count: int, multiple: int) -> int:
    """The smallest multiple that is not less."""
    return -(-count // multiple) * multiple


def aligned_octets(count: int) -> Octets:
    """`count` bytes, not initialised, at an address that a direct write can begin at."""
    octets = np.empty(count + BLOCK, np.uint8)
    start = -octets.ctypes.data % BLOCK
    return octets[start : start + count]
