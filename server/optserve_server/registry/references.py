"""Names and references: NAME, NAME@7 and NAME@ALIAS."""

import re
from dataclasses import dataclass

from optserve_server.naming import NAME_RULE, is_name, shown
from optserve_server.registry.errors import NameInvalid

LATEST, BEST, CHAMPION = "latest", "best", "champion"
KEPT_BY_SERVER = frozenset({LATEST, BEST})
"""Aliases that follow the versions by themselves; `champion` moves only by a person."""

NEWEST_NUMBER = 2**31 - 1  # what the database's integers hold

_NUMBER = re.compile(r"[0-9]+")


@dataclass(frozen=True, slots=True)
class Reference:
    """A parsed reference: at most one of `number` and `alias` is there; neither means the default version."""

    name: str
    number: int | None = None
    alias: str | None = None


def parse(reference: str) -> Reference:
    """Take NAME, NAME@7 or NAME@ALIAS apart; whether it exists is another question.

    Raises:
        NameInvalid: there is an @ with nothing behind it.
    """
    name, at, selector = reference.partition("@")
    if not at:
        return Reference(name)
    if not selector:
        raise NameInvalid(f"{shown(reference)} ends in @; write NAME, NAME@7 (a version) or NAME@champion (an alias).")
    if not _NUMBER.fullmatch(selector):
        return Reference(name, alias=selector)
    digits = selector.lstrip("0") or "0"
    return Reference(name, number=int(digits) if len(digits) <= len(str(NEWEST_NUMBER)) else NEWEST_NUMBER + 1)


def require_name(name: str) -> None:
    """Check the name of an optimizer.

    Raises:
        NameInvalid: it has other characters than names have, or too many.
    """
    if not is_name(name):
        raise NameInvalid(f"{shown(name)} cannot be a name; {NAME_RULE}.")


def require_alias(alias: str) -> None:
    """Check the name of an alias.

    Raises:
        NameInvalid: no name at all, or one that a reference would read as a version.
    """
    require_name(alias)
    if _NUMBER.fullmatch(alias):
        raise NameInvalid(f"{alias!r} cannot be an alias, for NAME@{alias} is a version; put a letter in it.")
