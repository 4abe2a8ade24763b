"""How the kernels are compiled: without the interpreter's lock, and kept on disk until one of their sources changes."""

# mypy: disable-error-code="no-untyped-def, no-untyped-call"

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numba.extending
from numba import njit
from numba.core.caching import FunctionCache

_OPTIONS: dict[str, Any] = {"nogil": True, "fastmath": {"contract"}, "error_model": "numpy"}

intrinsic: Any = numba.extending.intrinsic
"""Decorator of what is written in LLVM's terms; its first argument, Numba's own, is not one of the caller's."""
compiled = njit(**_OPTIONS)
"""Decorator of what kernels call."""
inlined = njit(**_OPTIONS, forceinline=True)
"""Decorator of small expressions that kernels are made of, and of what is handed many arrays: a call counts references
to each, which takes longer than the sums over a small tensor."""


def kernel(function: Callable[..., None]) -> Any:
    """Decorator of what Python calls: compiled at its first call, then read from disk."""
    dispatcher = compiled(function)
    dispatcher._cache = _Cache(function)  # where `cache=True` puts its own, which watches one file only
    return dispatcher


class _Cache(FunctionCache):
    """Numba's cache of machine code, with the text of all their sources in the key."""

    def _index_key(self, *arguments):
        return (*super()._index_key(*arguments), _FINGERPRINT)


_SOURCES = sorted(Path(__file__).parents[1].rglob("*.py"))  # the optimizers too, for kernels have their constants
_FINGERPRINT = hashlib.sha256(b"".join(path.read_bytes() for path in _SOURCES)).hexdigest()
