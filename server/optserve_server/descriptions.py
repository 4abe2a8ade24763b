"""Descriptions of work that come as TOML or JSON: recipes and evaluations, checked key by key."""

import tomllib
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from optserve_server.naming import nearest


class DescriptionError(ValueError):
    """A description that nothing can be made of; `path` names the key."""

    def __init__(self, path: str, message: str) -> None:
        super().__init__(f"{path}: {message}" if path else message)
        self.path = path
        self.message = message


class Table(BaseModel):
    """One table of a description: its fields are the keys, and there are no others.

    A check of several keys raises a `DescriptionError` whose path begins at the table.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)


TableType = TypeVar("TableType", bound=Table)


def parse(table: type[TableType], content: Mapping[str, Any], error: type[DescriptionError]) -> TableType:
    """A description from its keys.

    Raises:
        DescriptionError: of the class `error`: the first thing wrong; an unknown key's message names the nearest.
    """
    try:
        return table.model_validate(content)
    except ValidationError as invalid:
        # An unknown key first: a misspelt key is also reported as the missing one.
        first = min(invalid.errors(), key=lambda found: found["type"] != "extra_forbidden")
        # Tags of unions are written in brackets and are no keys.
        keys = [str(part) for part in first["loc"] if not str(part).startswith("(")]
        path = ".".join(keys)
        if first["type"] == "extra_forbidden":
            raise error(path, _unknown_key(table, first["loc"])) from invalid
        cause = first.get("ctx", {}).get("error")
        if isinstance(cause, DescriptionError):
            raise error(".".join([*keys, cause.path]), cause.message) from invalid
        message = first["msg"].removeprefix("Value error, ")
        raise error(path, f"{message[0].lower()}{message[1:]}") from invalid


def read_toml(path: Path, error: type[DescriptionError]) -> dict[str, Any]:
    """The keys of a TOML file.

    Raises:
        DescriptionError: of the class `error`: not TOML.
        OSError: the file cannot be read.
    """
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except ValueError as invalid:  # also where it is not UTF-8, or a number has thousands of digits
        raise error("", f"{path} is not TOML: {invalid}") from invalid
    except RecursionError as invalid:
        raise error("", f"{path} is nested too deeply") from invalid


def _unknown_key(table: type[Table], location: tuple[int | str, ...]) -> str:
    for part in location[:-1]:
        if part in table.model_fields:
            table = next(_tables_in(table.model_fields[str(part)].annotation), table)
    known = list(table.model_fields)
    return f"unknown key{nearest(location[-1], known)}; there are {', '.join(known)}"


def _tables_in(annotation: Any) -> typing.Iterator[type[Table]]:
    """The tables that a field can hold."""
    if isinstance(annotation, type) and issubclass(annotation, Table):
        yield annotation
    for argument in typing.get_args(annotation):
        yield from _tables_in(argument)
