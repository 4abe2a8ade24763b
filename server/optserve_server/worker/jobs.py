"""What a worker expects of each kind of work."""

import traceback
from typing import Any, Protocol

import torch

from optserve_server.worker.holding import Holding

_MAX_REASON = 2000  # characters


class Job(Protocol):
    """How one kind of work is carried out; made anew for every piece of work."""

    def __init__(self, holding: Holding[Any], device: torch.device) -> None: ...

    def carry_out(self) -> None:
        """Do the work to its end, or until it is cancelled or the worker shuts down, and persist what came of it.

        Raises:
            LeaseLost: the work is no longer this worker's.
            Exception: whatever is wrong with the work; it fails for that.
        """
        ...

    def explain(self, error: BaseException) -> str:
        """What to tell of work that fails because `carry_out` raised this."""
        ...


def last_line(error: BaseException) -> str:
    """What the traceback of an error ends with, as one line."""
    return " ".join("".join(traceback.format_exception_only(error)).split())[:_MAX_REASON]
