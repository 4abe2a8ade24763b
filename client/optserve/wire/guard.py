"""What an update guard tells of a step: the header `Optserve-Guard`, a list of structured fields (RFC 9651).

("weight" "bias");event=fallback;reason=update-rms;count=2, ("scale");event=held;reason=non-finite;count=1;afresh

Each inner list names the first few of `count` tensors; one that is not ASCII is a display string: `%"gr%c3%b6%c3%9fe"`.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, ClassVar
from urllib.parse import quote, unquote

from optserve.wire.schema import REPLY as _REPLY

FALLBACK, BACK, HELD = "fallback", "back", "held"
"""What happens to a tensor: its updates are the fallback's from this step on; are its optimizer's again; are still the
fallback's."""

GUARD_SCHEMA: dict[str, Any] = {
    "anyOf": [
        {
            "type": "object",
            "additionalProperties": False,
            "properties": {
                "max_update_rms": {"type": "number", "exclusiveMinimum": 0, "maximum": 1e30},
                "patience": {"type": "integer", "minimum": 1, "maximum": 1_000_000},
                "fallback": {"type": "string", "enum": ["adam"]},
            },
        },
        {"type": "boolean"},
        {"type": "null"},
    ]
}
"""Of what asks for a guard."""

_MOST_CHARACTERS = 600  # of the names in one inner list, so that a header is small whatever parameters are called
_UNESCAPED = "".join(chr(code) for code in range(0x20, 0x7F) if chr(code) not in '%"\\')  # within a display string
_STRING = r'%?"(?:[^"\\]|\\.)*"'
_MEMBER = re.compile(rf"\((?P<names>(?:{_STRING}| )*)\)(?P<parameters>(?:;[a-z]+(?:=[a-z0-9-]+)?)*)")
_NAME = re.compile(_STRING)


@dataclass(slots=True)
class GuardNote:
    """What the guard did to some tensors at one step."""

    event: str
    """`fallback`: from this step on their updates are the fallback's. `back`: they are the optimizer's own again.
    `held`: they are the fallback's, as before."""
    reason: str
    """`non-finite` or `update-rms`, of the updates that the optimizer wanted; `loss-rise`, of the loop."""
    count: int
    """How many tensors."""
    tensors: list[str] = field(default_factory=list)
    """The names of the first few."""
    afresh: bool = False
    """Whether hidden state of theirs was not finite, and has begun again at 0."""

    __pydantic_config__: ClassVar[Any] = _REPLY


@dataclass(slots=True)
class GuardEvent:
    """A `fallback` or a `back` in a session's history."""

    step: int
    event: str
    reason: str
    count: int
    tensors: list[str]
    afresh: bool

    __pydantic_config__: ClassVar[Any] = _REPLY


def format_notes(notes: Iterable[GuardNote]) -> str:
    """The value of the header."""
    return ", ".join(_member(note) for note in notes)


def parse_notes(value: str) -> list[GuardNote]:
    """What `format_notes` made a value of; parameters that a newer server adds are passed over."""
    notes = []
    for member in _MEMBER.finditer(value):
        parameters = dict(one.partition("=")[::2] for one in member["parameters"].split(";")[1:])
        names = [_read(name[0]) for name in _NAME.finditer(member["names"])]
        count = int(parameters.get("count", len(names)))
        event, reason = parameters.get("event", ""), parameters.get("reason", "")
        notes.append(GuardNote(event, reason, count, names, "afresh" in parameters))
    return notes


def _member(note: GuardNote) -> str:
    names, length = [], 0
    for name in note.tensors:
        written = _write(name)
        length += len(written)
        if length > _MOST_CHARACTERS:
            break
        names.append(written)
    afresh = ";afresh" if note.afresh else ""
    return f"({' '.join(names)});event={note.event};reason={note.reason};count={note.count}{afresh}"


def _write(name: str) -> str:
    if name.isascii():
        escaped = name.replace("\\", "\\\\").replace('"', '\\"')
        return f'"{escaped}"'
    return f'%"{re.sub("%[0-9A-F]{2}", lambda found: found[0].lower(), quote(name, safe=_UNESCAPED))}"'


def _read(written: str) -> str:
    if written.startswith("%"):
        return unquote(written[2:-1])
    return re.sub(r"\\(.)", r"\1", written[1:-1])
