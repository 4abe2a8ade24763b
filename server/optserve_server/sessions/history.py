"""What a session's training loop looked like: the loss and the norms of its steps, thinned."""

import math
from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from optserve.wire.bodies import HistoryItem
from optserve.wire.guard import HELD, GuardEvent, GuardNote

MOST_ITEMS = 1024
"""So many steps are kept at most. At twice as many every other one would go; half as many are enough for a picture."""

MOST_GUARD_EVENTS = 200
"""So many events of the guard are kept, the newest."""

_ROW = np.dtype([("step", "<u8"), ("loss", "<f8"), ("gradient_norm", "<f8"), ("update_norm", "<f8")])
_STRIDE = np.dtype("<u8")
_FIRST_CAPACITY = 32
_SMALLEST_SUM = 1e-30  # a float32 sum of squares below has lost digits

HISTORY_BYTES = MOST_ITEMS * _ROW.itemsize


class History:
    """The steps whose number is a multiple of the stride, which doubles when they get too many; and the newest one."""

    __slots__ = ("_count", "_rows", "_stride", "guard_events")

    def __init__(self) -> None:
        self.guard_events: list[GuardEvent] = []
        self._rows = np.empty(_FIRST_CAPACITY, _ROW)
        self._count = 0
        self._stride = 1

    def add(self, step: int, loss: float | None, gradient_norm: float, update_norm: float) -> None:
        """Add the step that was just taken."""
        if self._count and int(self._rows["step"][self._count - 1]) % self._stride:
            self._count -= 1  # it was there only as the newest
        if self._count == MOST_ITEMS:
            self._thin()
        elif self._count == len(self._rows):
            self._rows = np.concatenate([self._rows, np.empty_like(self._rows)])
        self._rows[self._count] = step, math.nan if loss is None else loss, gradient_norm, update_norm
        self._count += 1

    def note(self, step: int, notes: Iterable[GuardNote]) -> None:
        """Add what the guard did at a step; what it goes on doing is no event."""
        for one in notes:
            if one.event != HELD:
                self.guard_events.append(
                    GuardEvent(step, one.event, one.reason, one.count, list(one.tensors), one.afresh)
                )
        del self.guard_events[:-MOST_GUARD_EVENTS]

    def items(self) -> list[HistoryItem]:
        """The steps, the oldest first."""
        return [
            HistoryItem(step, _finite(loss), _finite(gradient_norm), _finite(update_norm))
            for step, loss, gradient_norm, update_norm in self._rows[: self._count].tolist()
        ]

    def to_bytes(self) -> bytes:
        """The history as `from_bytes` takes it: the stride, and of each step 32 bytes, little-endian."""
        return np.array(self._stride, _STRIDE).tobytes() + self._rows[: self._count].tobytes()

    @classmethod
    def from_bytes(cls, octets: bytes) -> "History":
        """The history that `to_bytes` gave."""
        history = cls()
        history._stride = int(np.frombuffer(octets, _STRIDE, 1)[0])
        rows = np.frombuffer(octets, _ROW, offset=_STRIDE.itemsize)
        history._count = len(rows)
        history._rows = np.concatenate([rows, np.empty(_FIRST_CAPACITY, _ROW)])
        return history

    def _thin(self) -> None:
        self._stride *= 2
        rows = self._rows[: self._count]
        kept = rows[rows["step"] % self._stride == 0]
        self._rows[: len(kept)] = kept
        self._count = len(kept)


def norm(numbers: NDArray[np.float32]) -> float:
    """‖x‖₂ to six digits.

    The sum is float32, which is fast; where it leaves that range it is taken once more in float64.
    """
    flat: NDArray[Any] = numbers.reshape(-1)
    with np.errstate(over="ignore"):
        squares = float(np.dot(flat, flat))
    if not _SMALLEST_SUM < squares < math.inf:
        wide = flat.astype(np.float64)
        squares = float(np.dot(wide, wide))
    return math.sqrt(squares)


def _finite(number: float) -> float | None:
    return number if math.isfinite(number) else None
