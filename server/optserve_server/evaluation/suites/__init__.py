"""Suites: plans of evaluations that have a name, each a TOML file in this folder. A new file is a new suite."""

import tomllib
from importlib import resources
from typing import Any

_SUFFIX = ".toml"


def names() -> list[str]:
    """All suites there are."""
    files = (file.name for file in resources.files(__name__).iterdir())
    return sorted(name.removesuffix(_SUFFIX) for name in files if name.endswith(_SUFFIX))


def read(name: str) -> dict[str, Any]:
    """The keys of a plan that the suite fills in."""
    return tomllib.loads((resources.files(__name__) / f"{name}{_SUFFIX}").read_text(encoding="utf-8"))
