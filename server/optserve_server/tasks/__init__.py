"""Task families: distributions of optimizees f to meta-train and evaluate on, looked up by name."""

from collections.abc import Mapping
from functools import cache
from typing import Any

from pydantic import TypeAdapter, ValidationError

from optserve_server.naming import nearest
from optserve_server.tasks.base import TaskFamily
from optserve_server.tasks.digits_mlp import DigitsMLP
from optserve_server.tasks.quadratic import Quadratic

__all__ = ["FAMILIES", "TaskFamily", "build", "parameters_schema"]

FAMILIES: dict[str, type[Any]] = {family.name: family for family in (Quadratic, DigitsMLP)}


def build(name: str, parameters: Mapping[str, Any]) -> TaskFamily:
    """The family `name` with its parameters; absent ones have their defaults.

    Raises:
        ValueError: an unknown family or parameter (the message names the nearest), or a value out of its range.
    """
    if name not in FAMILIES:
        raise ValueError(f"there is no task family {name!r}{nearest(name, FAMILIES)}; there are {', '.join(FAMILIES)}")
    known = parameters_schema(name)["properties"]
    for parameter in parameters:
        if parameter not in known:
            near = nearest(parameter, known)
            raise ValueError(f"family {name!r} has no parameter {parameter!r}{near}; it has {', '.join(known)}")
    try:
        family: TaskFamily = _adapter(name).validate_python(dict(parameters))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise ValueError(f"parameters.{where} is {first['input']!r}: {first['msg']}") from error
    return family


def parameters_schema(name: str) -> dict[str, Any]:
    """JSON schema of a family's parameters."""
    return _adapter(name).json_schema()


@cache
def _adapter(name: str) -> TypeAdapter[Any]:
    return TypeAdapter(FAMILIES[name])
