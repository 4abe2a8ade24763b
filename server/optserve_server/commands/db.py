"""`optserve db`: the schema of the database."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from optserve_server.registry.database import Database

app = typer.Typer(name="db", no_args_is_help=True, help="The database's schema.")

DatabaseUrl = Annotated[str | None, typer.Option(help="sqlite:///PATH or postgresql://USER:PASSWORD@HOST/DATABASE.")]
DataDir = Annotated[Path | None, typer.Option(help="Where an SQLite file is if no URL is given.")]


@app.command()
def upgrade(database_url: DatabaseUrl = None, data_dir: DataDir = None) -> None:
    """Bring the schema to the newest revision; nothing is lost. `optserve serve` does it by itself."""
    with _opened(database_url, data_dir) as database:
        database.upgrade()
        typer.echo(f"the schema is at revision {database.current()}")


@app.command()
def current(
    database_url: DatabaseUrl = None,
    data_dir: DataDir = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Print the schema's revision."""
    with _opened(database_url, data_dir) as database:
        revision = database.current()
    typer.echo(json.dumps({"revision": revision}) if as_json else revision or "the database has no schema yet")


@contextmanager
def _opened(database_url: str | None, data_dir: Path | None) -> Iterator["Database"]:
    from optserve_server.commands.common import settings_from
    from optserve_server.registry.database import Database, DatabaseUnusable

    settings = settings_from(database_url=database_url, data_dir=data_dir)
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
