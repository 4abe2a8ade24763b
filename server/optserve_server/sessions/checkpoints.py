"""Copies of a session's state, kept under names in memory."""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from optserve_server.sessions.errors import CheckpointNotFound, RequestInvalid
from optserve_server.sessions.pages import FLOAT_BYTES, Arena, StateMemory
from optserve_server.sessions.plan import MAX_TEXT_CHARACTERS
from optserve_server.sessions.whole import Arrays

_OWN_BYTES = 1024  # what a checkpoint takes even where an optimizer keeps no hidden state
_NO_CHARACTER = "\ufffd"  # what bytes that are not UTF-8 decode to


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A copy of everything that a step changes."""

    name: str
    step: int
    created_at: datetime
    pages: Tensor  # page numbers in the session's arena, int64
    arrays: Arrays  # never changed in place, so they are the session's own
    clocks: NDArray[np.int64]
    theta: Tensor | None  # [pages, 256]
    reserved: int  # bytes beside the pages


class Checkpoints:
    """The checkpoints of one session."""

    def __init__(self, arena: Arena, memory: StateMemory) -> None:
        self._arena = arena
        self._memory = memory
        self._by_name: dict[str, Checkpoint] = {}

    def __iter__(self) -> Iterator[Checkpoint]:
        return iter(self._by_name.values())

    def get(self, name: str) -> Checkpoint:
        """The checkpoint of that name.

        Raises:
            CheckpointNotFound: there is none.
        """
        if name not in self._by_name:
            raise CheckpointNotFound(name, list(self._by_name))
        return self._by_name[name]

    def save(
        self,
        name: str,
        step: int,
        pages: Tensor,
        arrays: Arrays,
        clocks: NDArray[np.int64],
        theta: Tensor | None,
    ) -> Checkpoint:
        """Copy this state; what had the name before is gone.

        Raises:
            RequestInvalid: `name` is no name.
            StateTooLarge: there is no room for another copy; what had the name before is still there.
        """
        if not 1 <= len(name) <= MAX_TEXT_CHARACTERS or not name.isprintable():
            raise RequestInvalid(f"A checkpoint's name has 1 to {MAX_TEXT_CHARACTERS} printable characters.")
        if _NO_CHARACTER in name:
            raise RequestInvalid("The checkpoint's name is not in UTF-8.")
        before = self._by_name.get(name)
        tensors = (*arrays.values(), *(() if theta is None else (theta,)))
        reserved = _OWN_BYTES + clocks.nbytes + sum(tensor.numel() * FLOAT_BYTES for tensor in tensors)
        with self._memory.reserved(reserved):
            kept = before.pages if before is not None else self._arena.allocate(len(pages))
        if before is not None:
            self._memory.release(before.reserved)
        self._arena.copy(pages, kept)
        copied = None if theta is None else theta.clone()
        saved = Checkpoint(name, step, datetime.now(UTC), kept, arrays, clocks.copy(), copied, reserved)
        self._by_name[name] = saved
        return saved

    def clear(self) -> None:
        """Delete all of them and give their memory back."""
        for checkpoint in self:
            self._arena.free(checkpoint.pages)
            self._memory.release(checkpoint.reserved)
        self._by_name = {}
