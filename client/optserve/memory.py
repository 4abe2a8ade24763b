"""Memory for large arrays that is used again once nobody can see the last array in it.

New memory is dear: the system clears it, page by page, as it is first written to. Of 40 MB that took 20 ms, where
writing them takes 4.
"""

import weakref
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

Octets: TypeAlias = NDArray[np.uint8]

MOST_FREE = 2  # a loop that holds on to its last array while it asks for the next uses two in turn
_WORTH_KEEPING = 1 << 20  # bytes; what is smaller comes from the allocator's own store


class Memory:
    """Lends arrays of one length. Threads may share it."""

    def __init__(self, length: int) -> None:
        self._length = length
        self._free: list[memoryview] = []

    def lend(self) -> Octets:
        """An array of `length` bytes, not initialised: the caller's for as long as it, or a view of it, lives."""
        if self._length < _WORTH_KEEPING:
            return np.empty(self._length, np.uint8)
        try:
            memory = self._free.pop()
        except IndexError:
            memory = np.empty(self._length, np.uint8).data
        # Views of it, and views of those, hold on to this very array, for it is not itself a view of an array.
        lent = np.frombuffer(memory, np.uint8)
        weakref.finalize(lent, self._take_back, memory).atexit = False
        return lent

    def _take_back(self, memory: memoryview) -> None:
        if len(self._free) < MOST_FREE:
            self._free.append(memory)
