"""What computed a version, beside the recipe."""

import functools
import platform
import subprocess

from optserve_server.resources import checkout_directory


def environment(device: str) -> dict[str, str]:
    """Python, the device, and optserve's commit where it runs from a git checkout."""
    found = {"device": device, "python": platform.python_version()}
    commit = _commit()
    return found if commit is None else {**found, "commit": commit}


@functools.cache
def _commit() -> str | None:
    """The commit that is checked out, with `-dirty` where files have changed since."""
    checkout = checkout_directory()
    if not (checkout / ".git").exists():
        return None
    try:
        described = subprocess.run(
            ["git", "-C", str(checkout), "describe", "--always", "--abbrev=40", "--exclude=*", "--dirty"],
            capture_output=True,
            text=True,
            check=False,
        )
    except FileNotFoundError:  # a checkout may be there without git
        return None
    return described.stdout.strip() or None
