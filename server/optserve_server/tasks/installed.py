"""Task families of other packages, found by their entry points in the group `optserve.tasks`."""

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from itertools import groupby
from typing import Any

from pydantic import TypeAdapter
from pydantic.errors import PydanticUserError

from optserve_server.naming import NAME_RULE, is_name

GROUP = "optserve.tasks"


class FamilyError(TypeError):
    """What an entry point names is no task family; the message says what it lacks."""


@dataclass(frozen=True, slots=True)
class Families:
    """The families that can be used, by name; and of those that cannot, by name, the reason."""

    usable: dict[str, type[Any]]
    unusable: dict[str, str]


def load(built_in: Mapping[str, type[Any]]) -> Families:
    """The built-in families and those that entry points name; imports the packages.

    A package at fault takes down nothing but the name that it claims. A name that is claimed twice is nobody's: which
    family a recipe means is not for us to guess.
    """
    families = Families(dict(built_in), {})
    found = sorted(entry_points(group=GROUP), key=lambda entry: (entry.name, _package(entry)))
    for name, claims in groupby(found, key=lambda entry: entry.name):
        entry, *others = claims
        claimants = [_package(one) for one in (entry, *others)] + ["optserve"] * (name in built_in)
        if len(claimants) > 1:
            families.usable.pop(name, None)
            families.unusable[name] = (
                f"there are several task families {name!r}, of the packages {' and '.join(claimants)}; "
                "rename one, or uninstall its package"
            )
            continue
        try:
            families.usable[name] = checked(entry.load(), name)
        except Exception as error:  # a package's module may raise anything; whoever asks for the family is told
            reason = str(error) if isinstance(error, FamilyError) else f"{type(error).__name__}: {error}"
            families.unusable[name] = (
                f"the task family {name!r} of the package {claimants[0]} ({entry.value}) cannot be used: {reason}"
            )
    return families


def checked(family: Any, name: str) -> type[Any]:
    """`family`, if it is a task family of this name.

    Raises:
        FamilyError: it is not; the message lists all that is missing.
    """
    if not (isinstance(family, type) and dataclasses.is_dataclass(family)):
        raise FamilyError(f"{family!r} is not a dataclass")
    faults = list(_faults(family, name))
    if faults:
        raise FamilyError(f"{family.__qualname__} {', and '.join(faults)}")
    return family


def _faults(family: type[Any], name: str) -> Iterator[str]:
    if not family.__dataclass_params__.frozen:
        yield "is not frozen (write @dataclass(frozen=True))"
    if not is_name(name):
        yield f"has an entry point that is not a name; {NAME_RULE}"
    elif getattr(family, "name", None) != name:
        yield f"has not `name: ClassVar[str] = {name!r}`, which its entry point is called"
    description = getattr(family, "description", None)
    if not (isinstance(description, str) and description):
        yield "has no `description: ClassVar[str]`"
    if not hasattr(family, "shapes"):
        yield "has no property `shapes`"
    for method in ("sample", "initial", "batch", "loss"):
        if not callable(getattr(family, method, None)):
            yield f"has no method `{method}`"
    for field in dataclasses.fields(family):
        if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            yield f"has the parameter `{field.name}` without a default"
    try:
        TypeAdapter(family).json_schema()
    except PydanticUserError as error:
        yield f"has parameters that JSON cannot say: {error.message}"


def _package(entry: EntryPoint) -> str:
    return entry.dist.name if entry.dist is not None else entry.value
