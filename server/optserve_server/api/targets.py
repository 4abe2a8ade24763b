"""Where the numbers of a body go."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

from optserve_server.naming import nearest, shown
from optserve_server.sessions.errors import Invalid
from optserve_server.sessions.layout import Selection

_HINTS = {"gradients": " A parameter without a gradient this time is named in `?skip=`.", "parameters": ""}


@dataclass(frozen=True, slots=True)
class Target:
    """Where the numbers of a body go, and what to raise if they are wrong."""

    key: str  # what holds the numbers in a JSON body: `gradients` or `parameters`
    bits: NDArray[Any]
    selection: Selection
    dtype: str
    invalid: type[Invalid]


def require_names(given: Iterable[str], target: Target) -> None:
    """Check that a body names every selected parameter and nothing else.

    Raises:
        Invalid: names the first that is unknown, skipped or missing.
    """
    expected = {parameter.name: None for parameter in target.selection.parameters}
    names = set(given)
    for name in given:
        if name in target.selection.skipped:
            raise target.invalid(f"{shown(name)} is in `skip` and in the body; it can be in one only.", parameter=name)
        if name not in expected:
            raise target.invalid(
                f"{shown(name)} is no parameter of this session{nearest(name, expected)}.", parameter=name[:256]
            )
    for name in expected:
        if name not in names:
            raise target.invalid(f"The body lacks {shown(name)}.{_HINTS[target.key]}", parameter=name)
