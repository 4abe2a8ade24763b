"""What several commands share."""

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
