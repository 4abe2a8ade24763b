"""Names: which an optimizer can have, and how error messages repeat them and guess the one that was meant."""

import difflib
import re
from collections.abc import Iterable
from itertools import islice

SHOWN = 80  # characters of what was given that an error message repeats
_COMPARED = 200  # known names a name is compared with: more take longer than a server should give to a typo

NAME_RULE = "names have 1 to 64 lower-case letters, digits, '-', '_' and '.'"
_NAME = re.compile(r"(?!\.{1,2}\Z)[a-z0-9._-]{1,64}")


def is_name(text: str) -> bool:
    """Whether an optimizer or an alias can have this name (`.` and `..` mean something else in an address)."""
    return _NAME.fullmatch(text) is not None


def shown(value: object) -> str:
    """A name or a number as an error message repeats it: quoted, and cut where it is very long."""
    text = str(value)
    short = text if len(text) <= SHOWN else text[:SHOWN] + "…"
    return repr(short) if isinstance(value, str) else short


def nearest(name: object, known: Iterable[str]) -> str:
    """` (did you mean 'lstm'?)` where a known name is close, else nothing; to be put behind the name."""
    candidates = list(islice(known, _COMPARED))
    near = difflib.get_close_matches(str(name)[:SHOWN], candidates, n=1)
    return f" (did you mean {near[0]!r}?)" if near else ""
