"""Appends to many files without the interpreter's lock: one system call after another, and nothing between them.

Under load the event loop has the lock nearly always. A thread that gives it up for each of a group's system calls waits
for it again after each, longer than they take.
"""

# mypy: disable-error-code="no-untyped-def, no-untyped-call"

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numba import carray, njit, types  # type: ignore[attr-defined]

_write: Any = types.ExternalFunction("pwrite", types.int64(types.int32, types.uintp, types.uintp, types.int64))
_sync: Any = types.ExternalFunction("fdatasync", types.int32(types.int32))
_errno: Any = types.ExternalFunction("__errno_location", types.CPointer(types.int32)())

SHORT = -1
"""The outcome of an append that wrote less than it should have."""


class Append(NamedTuple):
    """Bytes that go into an open file, at an offset."""

    file: int
    octets: bytes
    offset: int


def append_all(appends: Sequence[Append], *, sync: bool) -> list[int]:
    """Write all, then sync all; of each 0, or the `errno` of what failed, or `SHORT`."""
    octets = [np.frombuffer(append.octets, np.uint8) for append in appends]
    orders = np.array(
        [(one.file, data.ctypes.data, len(data), one.offset) for one, data in zip(appends, octets, strict=True)],
        np.int64,
    ).reshape(-1, 4)
    outcomes = np.zeros(len(appends), np.int64)
    _append_all(orders.reshape(-1, 4), sync, outcomes)
    return outcomes.tolist()


@njit(nogil=True, cache=True)
def _append_all(orders, sync, outcomes):
    for place in range(len(orders)):
        file, address, size, offset = orders[place]
        written = _write(file, address, size, offset)
        if written < 0:
            outcomes[place] = carray(_errno(), 1)[0]
        elif written < size:
            outcomes[place] = SHORT
    if sync:
        for place in range(len(orders)):
            if outcomes[place] == 0 and _sync(orders[place, 0]) < 0:
                outcomes[place] = carray(_errno(), 1)[0]
