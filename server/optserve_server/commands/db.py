"""`optserve db`: the schema of the database."""

import json
from typing import Annotated

import typer

from optserve_server.commands.common import DatabaseUrl, DataDir, opened_database, settings_from

app = typer.Typer(name="db", no_args_is_help=True, help="The database's schema.")


@app.command()
def upgrade(database_url: DatabaseUrl = None, data_dir: DataDir = None) -> None:
    """Bring the schema to the newest revision; nothing is lost. `optserve serve` does it by itself."""
    with opened_database(settings_from(database_url=database_url, data_dir=data_dir)) as database:
        database.upgrade()
        typer.echo(f"the schema is at revision {database.current()}")


@app.command()
def current(
    database_url: DatabaseUrl = None,
    data_dir: DataDir = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Print the schema's revision."""
    with opened_database(settings_from(database_url=database_url, data_dir=data_dir)) as database:
        revision = database.current()
    typer.echo(json.dumps({"revision": revision}) if as_json else revision or "the database has no schema yet")
