"""Check that constraints.txt pins everything that is installed for development, at the versions that are installed.

It walks pyproject.toml's requirements, with all extras that `make` installs, down to the last one. What comes only with
a GPU's torch is not pinned: there the Makefile takes the newest.
"""

import re
import sys
import tomllib
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

CHECKOUT = Path(__file__).parents[1]
OF_VENV = {"pip", "setuptools"}
OF_GPUS = re.compile(r"(torch|triton|nvidia-.*|cuda-.*)$")


def main() -> int:
    """Print what is wrong; 1 if anything is."""
    pinned = dict(re.findall(r"^([^=\s]+)==(\S+)$", (CHECKOUT / "constraints.txt").read_text(), re.MULTILINE))
    pins = {canonicalize_name(name): version for name, version in pinned.items()}
    wrong = [f"{name}: {fault}" for name in sorted(installed()) if (fault := _fault(name, pins))]
    for line in wrong:
        print(line)
    if wrong:
        print("Run `make constraints` once the new versions are what you want.")
    return bool(wrong)


def _fault(name: str, pins: dict[str, str]) -> str:
    version = distribution(name).version.partition("+")[0]
    if OF_GPUS.match(name) or name in OF_VENV or pins.get(name) == version:
        return ""
    return f"is installed at {version}, and constraints.txt has {pins.get(name, 'no line for it')}"


def installed() -> set[str]:
    """The names of everything that this project requires for development, directly or not, and that is installed."""
    project = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    waiting = [Requirement(line) for line in (*project["dependencies"], *extras["dev"])]
    found: set[str] = set()
    seen: set[tuple[str, str]] = set()
    while waiting:
        required = waiting.pop()
        name = canonicalize_name(required.name)
        for extra in required.extras or {""}:
            if (name, extra) in seen or not _applies(required, ""):
                continue
            seen.add((name, extra))
            if name == project["name"]:
                waiting += map(Requirement, extras[extra])
                continue
            try:
                of_its_own = distribution(name).requires or []
            except PackageNotFoundError:
                print(f"{name}: is required and not installed; run `make venv`")
                continue
            found.add(name)
            waiting += [one for line in of_its_own if _applies(one := Requirement(line), extra)]
    return found


def _applies(requirement: Requirement, extra: str) -> bool:
    return requirement.marker is None or requirement.marker.evaluate({"extra": extra})


if __name__ == "__main__":
    sys.exit(main())
