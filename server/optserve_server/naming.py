"""Names in error messages: repeated without flooding the reader, and with the known name that comes nearest."""

import difflib
from collections.abc import Iterable

SHOWN = 80  # characters of what was given that an error message repeats


def shown(value: object) -> str:
    """A name or a number as an error message repeats it: quoted, and cut where it is very long."""
    text = str(value)
    short = text if len(text) <= SHOWN else text[:SHOWN] + "…"
    return repr(short) if isinstance(value, str) else short


def nearest(name: object, known: Iterable[str]) -> str:
    """` (did you mean 'lstm'?)` where a known name is close, else nothing; to be put behind the name."""
    near = difflib.get_close_matches(str(name)[:SHOWN], list(known), n=1)
    return f" (did you mean {near[0]!r}?)" if near else ""
