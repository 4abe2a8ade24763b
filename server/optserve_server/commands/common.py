"""What several commands share."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from optserve_server.settings import Settings


def settings_from(**options: Any) -> "Settings":
    """The settings from a command's options, the environment and `optserve.toml`.

    Raises:
        typer.BadParameter: a setting is unknown or unusable; one line names it.
    """
    from optserve_server.settings import SettingsInvalid, load

    try:
        return load(**options)
    except SettingsInvalid as error:
        raise typer.BadParameter(str(error)) from error


def require_writable(target: Path, option: str) -> None:
    """Check before the work that its result can be written.

    Raises:
        typer.BadParameter: of the option that named the file.
    """
    if target.is_dir() or not os.access(target.parent, os.W_OK):
        raise typer.BadParameter(
            f"{target} cannot be written; name a file in a folder that is there", param_hint=option
        )
