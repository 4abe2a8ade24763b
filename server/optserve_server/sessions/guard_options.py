"""Which update guard a session has: what is asked for at its creation."""

import math
from dataclasses import dataclass, fields
from typing import Any

from optserve_server.naming import nearest, shown
from optserve_server.sessions.errors import RequestInvalid

FALLBACKS = ("adam",)
MAX_PATIENCE = 1_000_000
MAX_UPDATE_RMS = 1e30  # far above every update of use; float32 holds a few times as much

_POINTER = "/guard"


@dataclass(frozen=True, slots=True)
class GuardOptions:
    """The guard of a session.

    `max_update_rms` is the largest root mean square of one tensor's update, in the parameters' units; `patience` counts
    steps; `fallback` names what takes the place of the optimizer's own updates.
    """

    max_update_rms: float = 1.0
    patience: int = 50
    fallback: str = "adam"


def guard_options(asked: Any, *, learned: bool) -> GuardOptions | None:
    """The guard that is asked for: a table of options, true for the defaults, false for none.

    None: with the defaults for a learned optimizer, none for one designed by hand.

    Raises:
        RequestInvalid: neither of these, an unknown option (names the nearest), or a value out of its range.
    """
    if asked is None:
        return GuardOptions() if learned else None
    if isinstance(asked, bool):
        return GuardOptions() if asked else None
    if not isinstance(asked, dict):
        raise RequestInvalid(f"`guard` is {shown(asked)}; it is a table of options, true or false.", _POINTER)
    known = [field.name for field in fields(GuardOptions)]
    for name in asked:
        if name not in known:
            raise RequestInvalid(
                f"`guard` has no option {shown(name)}{nearest(name, known)}; it takes {', '.join(known)}.", _POINTER
            )
    options = GuardOptions(**asked)
    _require_rms(options.max_update_rms)
    _require_patience(options.patience)
    if options.fallback not in FALLBACKS:
        raise RequestInvalid(
            f"`guard.fallback` is {shown(options.fallback)}{nearest(options.fallback, FALLBACKS)}; "
            f"it is {' or '.join(map(repr, FALLBACKS))}.",
            f"{_POINTER}/fallback",
        )
    return GuardOptions(float(options.max_update_rms), options.patience, options.fallback)


def _require_rms(value: Any) -> None:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not (is_number and math.isfinite(value) and 0 < value <= MAX_UPDATE_RMS):
        raise RequestInvalid(
            f"`guard.max_update_rms` is {shown(value)}; it is a number above 0, at most {MAX_UPDATE_RMS:g}.",
            f"{_POINTER}/max_update_rms",
        )


def _require_patience(value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= MAX_PATIENCE:
        raise RequestInvalid(
            f"`guard.patience` is {shown(value)}; it is a number of steps from 1 to {MAX_PATIENCE}.",
            f"{_POINTER}/patience",
        )
