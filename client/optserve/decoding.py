"""JSON replies as the dataclasses of `optserve.wire.bodies`; keys a newer server adds are passed over."""

import dataclasses
import functools
import json
import types
from collections.abc import Mapping
from typing import Any, TypeVar, Union, cast, get_args, get_origin, get_type_hints

from optserve.errors import ReplyInvalid

T = TypeVar("T")


def decode(kind: type[T], content: bytes | bytearray) -> T:
    """Parse JSON into `kind`, a dataclass.

    Raises:
        ReplyInvalid: not JSON, or a member is missing or of another kind.
    """
    try:
        value = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise ReplyInvalid(
            f"the reply is not JSON ({error}); does the URL point at an optserve server, or at something before it?"
        ) from error
    return cast(T, _convert(kind, value, kind.__name__))


def _convert(kind: Any, value: Any, where: str) -> Any:
    """`value` as `kind`: a dataclass, `list[…]`, an optional, or what JSON holds already."""
    origin, arguments = get_origin(kind), get_args(kind)
    if dataclasses.is_dataclass(origin or kind):
        return _build(kind, value, where)
    if origin is list:
        if not isinstance(value, list):
            raise _mismatch(where, "a list", value)
        return [_convert(arguments[0], item, f"{where}[{i}]") for i, item in enumerate(value)]
    if kind is Any:
        return value
    if origin in (Union, types.UnionType):
        return None if value is None else _convert(arguments[0], value, where)
    if kind is float and isinstance(value, int):
        return float(value)
    expected = origin or kind
    if isinstance(expected, type) and not isinstance(value, expected):
        raise _mismatch(where, f"a {expected.__name__}", value)
    return value


def _build(kind: Any, value: Any, where: str) -> Any:
    if not isinstance(value, dict):
        raise _mismatch(where, "an object", value)
    arguments: dict[str, Any] = {}
    for name, (hint, required) in _fields(kind).items():
        if name in value:
            arguments[name] = _convert(hint, value[name], f"{where}.{name}")
        elif required:
            raise ReplyInvalid(f"the reply lacks {where}.{name}; is the server of another version than this client?")
    return kind(**arguments)


@functools.cache
def _fields(kind: Any) -> Mapping[str, tuple[Any, bool]]:
    """Each field's type, with the type variables filled in, and whether a reply must have it."""
    class_ = get_origin(kind) or kind
    variables = dict(zip(getattr(class_, "__parameters__", ()), get_args(kind), strict=False))
    hints = get_type_hints(class_)
    return {
        field.name: (
            _fill(hints[field.name], variables),
            field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING,
        )
        for field in dataclasses.fields(class_)
    }


def _fill(hint: Any, variables: Mapping[Any, Any]) -> Any:
    if variables and get_origin(hint) is list and get_args(hint)[0] in variables:
        return list[variables[get_args(hint)[0]]]  # type: ignore[misc]
    return hint


def _mismatch(where: str, expected: str, value: Any) -> ReplyInvalid:
    return ReplyInvalid(
        f"{where} of the reply is {str(value)[:40]!r}, not {expected}; "
        "is the server of another version than this client?"
    )
