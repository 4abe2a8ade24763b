"""What several commands share."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from optserve_server.registry.database import Database
    from optserve_server.settings import Settings

DatabaseUrl = Annotated[str | None, typer.Option(help="sqlite:///PATH or postgresql://USER:PASSWORD@HOST/DATABASE.")]
DataDir = Annotated[
    Path | None, typer.Option(help="The server's directory: its SQLite file is used if no URL is given.")
]


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


@contextmanager
def opened_database(settings: "Settings") -> Iterator["Database"]:
    """The database of these settings, not yet migrated, closed at the end.

    Raises:
        typer.BadParameter: its URL is none that optserve can use.
        typer.Exit: the database cannot be used; one line on stderr says why.
    """
    from optserve_server.registry.database import Database, DatabaseUnusable

    try:
        database = Database(settings.database)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--database-url") from error
    try:
        yield database
    except DatabaseUnusable as error:
        typer.secho(f"error: the database cannot be opened: {error}", err=True, fg="red")
        raise typer.Exit(1) from error
    finally:
        database.close()


def require_schema(database: "Database") -> None:
    """Check that a server has ever used this database.

    Raises:
        typer.Exit: none has; one line on stderr says so.
    """
    if database.current() is None:
        mend = "Name the server's " + ("directory with --data-dir" if database.is_sqlite else "--database-url")
        message = f"there is no database at {database.shown} yet; is it the one the server uses? {mend}"
        typer.secho(f"error: {message}", err=True, fg="red")
        raise typer.Exit(1)
