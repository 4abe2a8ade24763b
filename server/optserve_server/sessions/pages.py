"""Pages: the memory of hidden states.

A page holds the hidden state of 256 coordinates, `[features, 256]` float32. All sessions of one optimizer version
share one arena, a tensor `[capacity, features, 256]` over a reserved range of addresses. The system gives it real
memory where it is first written, so the arena grows without ever being moved or copied, and page numbers stay what
they are. Pages that are free hold zeros, and where the system allows it no memory.
"""

import math
import mmap
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from optserve_server.optimizers.base import PAGE
from optserve_server.sessions.errors import StateTooLarge

FLOAT_BYTES = 4
_NO_RESERVE = {"linux": 0x4000}.get(sys.platform, 0)  # MAP_NORESERVE, which Python's mmap does not name before 3.13
_FEATURELESS_CAPACITY = 1 << 40  # pages that hold nothing are not limited by memory
_COPY_PAGES = 1024  # pages copied at once: enough to be quick, few enough to need no memory to speak of
_RETURN_BYTES = 16 << 20  # memory returned to the system at once: the call holds the interpreter lock


class StateMemory:
    """The limit on the memory of all sessions together, in bytes. Safe to use from several threads."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.used = 0
        self._lock = threading.Lock()

    @property
    def free(self) -> int:
        """How many bytes are left."""
        return self.limit - self.used

    def reserve(self, count: int) -> None:
        """Take `count` bytes from the limit.

        Raises:
            StateTooLarge: fewer are left.
        """
        with self._lock:
            if count > self.free:
                raise StateTooLarge(count, self.free)
            self.used += count

    @contextmanager
    def reserved(self, count: int) -> Iterator[None]:
        """Take `count` bytes, and give them back if the block fails.

        Raises:
            StateTooLarge: fewer are left.
        """
        self.reserve(count)
        try:
            yield
        except BaseException:
            self.release(count)
            raise

    def release(self, count: int) -> None:
        """Give `count` bytes back."""
        with self._lock:
            self.used -= count


class Arena:
    """The pages of one optimizer version. Safe to use from several threads, each with pages of its own."""

    def __init__(self, features: int, memory: StateMemory) -> None:
        self.features = features
        self.page_bytes = features * PAGE * FLOAT_BYTES
        self._memory = memory
        self._map, self.pages = _reserve_pages(self.page_bytes, memory.limit)
        self._free = torch.empty(0, dtype=torch.int64)  # sorted
        self._untouched = 0  # no page from this number on was ever used
        self._lock = threading.Lock()

    @property
    def used(self) -> int:
        """How many pages are allocated."""
        return self._untouched - len(self._free)

    def allocate(self, count: int) -> Tensor:
        """The numbers of `count` pages of zeros, ascending, int64.

        Raises:
            StateTooLarge: the limit on memory does not allow it.
        """
        with self._memory.reserved(count * self.page_bytes), self._lock:
            recycled = self._free[:count]
            fresh = count - len(recycled)
            if self._untouched + fresh > len(self.pages):
                raise StateTooLarge(count * self.page_bytes, (len(self.pages) - self.used) * self.page_bytes)
            self._free = self._free[count:]
            numbers = torch.cat([recycled, torch.arange(self._untouched, self._untouched + fresh)])
            self._untouched += fresh
        return numbers

    def free(self, numbers: Tensor) -> None:
        """Take pages back; their contents are lost."""
        for first, stop in _runs(numbers):
            self._clear(first, stop)
        with self._lock:
            self._free = torch.cat([self._free, numbers]).sort().values
        self._memory.release(len(numbers) * self.page_bytes)

    def read_into(self, numbers: Tensor, values: NDArray[np.float32]) -> None:
        """Copy the contents of these pages, one after another, into `values`, `[features, coordinates]`."""
        for pages, columns in _groups(numbers, values.shape[1]):
            contents = self.pages[pages].transpose(0, 1).reshape(self.features, len(pages) * PAGE)
            values[:, columns] = contents.numpy()[:, : columns.stop - columns.start]

    def write(self, numbers: Tensor, values: NDArray[np.float32]) -> None:
        """Fill these pages with `values`, `[features, coordinates]`, and with zeros behind them."""
        for pages, columns in _groups(numbers, values.shape[1]):
            contents = torch.zeros(self.features, len(pages) * PAGE)
            contents.numpy()[:, : columns.stop - columns.start] = values[:, columns]
            self.pages[pages] = contents.view(self.features, len(pages), PAGE).transpose(0, 1)

    def copy(self, source: Tensor, target: Tensor) -> None:
        """Copy the contents of the pages `source` into as many pages `target`."""
        for start in range(0, len(source), _COPY_PAGES):
            rows = slice(start, start + _COPY_PAGES)
            self.pages[target[rows]] = self.pages[source[rows]]

    def _clear(self, first: int, stop: int) -> None:
        # Whole pages of the system in the middle are returned to it, and read as zeros from then on.
        start, end = first * self.page_bytes, stop * self.page_bytes
        inner_start = -(-start // mmap.PAGESIZE) * mmap.PAGESIZE
        inner_end = end // mmap.PAGESIZE * mmap.PAGESIZE
        if self._map is None or sys.platform != "linux" or inner_start >= inner_end:
            self.pages[first:stop] = 0
            return
        flat = self.pages.view(-1)
        flat[start // FLOAT_BYTES : inner_start // FLOAT_BYTES] = 0
        flat[inner_end // FLOAT_BYTES : end // FLOAT_BYTES] = 0
        for piece in range(inner_start, inner_end, _RETURN_BYTES):
            self._map.madvise(mmap.MADV_DONTNEED, piece, min(_RETURN_BYTES, inner_end - piece))


def _reserve_pages(page_bytes: int, limit: int) -> tuple[mmap.mmap | None, Tensor]:
    features = page_bytes // (PAGE * FLOAT_BYTES)
    if not features:
        return None, torch.empty((_FEATURELESS_CAPACITY, 0, PAGE))
    capacity = max(1, limit // page_bytes)
    while True:
        try:
            addresses = mmap.mmap(-1, capacity * page_bytes, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _NO_RESERVE)
            break
        except OSError:  # a limit on addresses (ulimit -v) or strict overcommit: make do with less
            if capacity == 1:
                raise
            capacity = math.ceil(capacity / 2)
    pages = torch.frombuffer(addresses, dtype=torch.float32).view(capacity, features, PAGE)
    return addresses, pages


def _groups(numbers: Tensor, coordinates: int) -> Iterator[tuple[Tensor, slice]]:
    """Groups of pages that are moved at once, and the coordinates that each holds."""
    for start in range(0, len(numbers), _COPY_PAGES):
        pages = numbers[start : start + _COPY_PAGES]
        yield pages, slice(start * PAGE, min((start + len(pages)) * PAGE, coordinates))


def _runs(numbers: Tensor) -> Iterator[tuple[int, int]]:
    """Runs of consecutive numbers, each as its first and the number after its last."""
    if not len(numbers):
        return
    ordered = numbers.sort().values
    breaks = (torch.nonzero(ordered.diff() != 1).flatten() + 1).tolist()
    for start, stop in zip([0, *breaks], [*breaks, len(ordered)], strict=True):
        yield int(ordered[start]), int(ordered[stop - 1]) + 1
