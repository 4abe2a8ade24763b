"""The JSON of meta-training runs.

Plain dataclasses, as in `bodies`. A number that is not finite is null, for JSON has no infinity.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

from optserve.wire.schema import REPLY, REQUEST, WholeNumber

OVER = frozenset({"succeeded", "failed", "cancelled"})
"""The statuses of a run that no worker has or will have, unless it is resumed."""


@dataclass(slots=True)
class RunInfo:
    """A meta-training run as it is now."""

    id: str
    name: str
    """The optimizer whose versions it writes."""
    status: str
    """`queued`, `running`, `succeeded`, `failed` or `cancelled`."""
    outer_step: int
    """How many outer steps are made."""
    outer_steps: int
    eta_seconds: float | None
    """How long the rest takes by the pace of the last outer steps; null where it does not run."""
    meta_loss: float | None
    """Of the last outer step."""
    meta_loss_held_out: float | None
    """Of the last validation on held-out tasks."""
    versions: list[int]
    """The numbers of the versions that it has written, the oldest first."""
    worker: str | None
    """Who carries it out, or did so last."""
    device: str | None
    attempt: int
    """1, and one more each time that another worker had to take it up or it was resumed."""
    cancel_requested: bool
    error: str | None
    """Why it failed: where, of what, and which version is still good."""
    owner: str
    """Who asked for it: the name of the API key."""
    created_at: str
    """RFC 3339, UTC; so are the next two."""
    started_at: str | None
    finished_at: str | None
    recipe: dict[str, Any]
    """Complete, with the defaults of all keys; `start_from` is NAME@N."""

    __pydantic_config__: ClassVar[Any] = REPLY


@dataclass(slots=True)
class RunMetrics:
    """What a run has measured."""

    items: list[dict[str, Any]]
    """A row an outer step: `outer_step`, `meta_loss`, `meta_loss_held_out` where φ was validated, and whatever else was
    measured. Evenly thinned where there are many, always with the last."""

    __pydantic_config__: ClassVar[Any] = REPLY


@dataclass(slots=True)
class ResumeRequest:
    """Let a run that is over go on."""

    outer_steps: WholeNumber | None = None
    """How many it shall make in all; absent, as many as it was to make before."""

    __pydantic_config__: ClassVar[Any] = REQUEST
