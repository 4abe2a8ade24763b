"""`optserve keys`: API keys, made and revoked in the database itself; a server takes notice within a second."""

import dataclasses
import getpass
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from optserve_server.commands.common import DatabaseUrl, DataDir, opened_database, require_schema, settings_from

if TYPE_CHECKING:
    from sqlalchemy.orm import Session

    from optserve.wire.limits import Limits

app = typer.Typer(
    name="keys",
    no_args_is_help=True,
    help="API keys. As soon as there is one, a server on this database serves nobody without.",
)

_AS_SET = "[default: as the server's settings say]"

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@app.command()
def create(
    scope: Annotated[str, typer.Option(help="client: train and read; admin: change what is served as well.")],
    name: Annotated[str, typer.Option(help="What people call the key.")],
    expires_in: Annotated[
        float | None, typer.Option(metavar="DAYS", help="Refuse the key after so many days.  [default: never]")
    ] = None,
    max_sessions: Annotated[int | None, typer.Option(help=f"Sessions at once.  {_AS_SET}")] = None,
    max_coordinates: Annotated[int | None, typer.Option(help=f"Coordinates of all of them.  {_AS_SET}")] = None,
    max_bytes_in_flight: Annotated[
        int | None, typer.Option(help=f"Bytes of bodies that are not answered yet.  {_AS_SET}")
    ] = None,
    max_requests_per_second: Annotated[
        float | None, typer.Option(help=f"Requests a second, on average.  {_AS_SET}")
    ] = None,
    max_runs: Annotated[int | None, typer.Option(help=f"Meta-training runs at once.  {_AS_SET}")] = None,
    database_url: DatabaseUrl = None,
    data_dir: DataDir = None,
    as_json: AsJson = False,
) -> None:
    """Make an API key and print it, this once: only its SHA-256 is kept."""
    from optserve.wire.limits import Limits
    from optserve_server.registry import api_keys

    limits = Limits(max_sessions, max_coordinates, max_bytes_in_flight, max_requests_per_second, max_runs)
    details = {"name": name, "scope": scope, "expires_in_days": expires_in, "limits": _given(limits) or None}
    details = {name: value for name, value in details.items() if value is not None}
    with (
        _written_down("create_api_key", name, details),
        _transaction(database_url, data_dir, create=True) as db_session,
    ):
        row, key = api_keys.add_key(db_session, name, scope, expires_in_days=expires_in, limits=limits)
    made = api_keys.describe(row)
    if as_json:
        typer.echo(json.dumps({**dataclasses.asdict(made), "key": key}))
        return
    typer.echo(key)
    until = f", valid until {made.expires_at}" if made.expires_at else ""
    typer.echo(f"This is the {scope} key {name!r}{until}. Keep it now: it is not shown again.", err=True)


@app.command("list")
def list_(database_url: DatabaseUrl = None, data_dir: DataDir = None, as_json: AsJson = False) -> None:
    """List all API keys, revoked ones too."""
    from optserve.cli.common import minute, print_table
    from optserve_server.registry import api_keys

    with _transaction(database_url, data_dir) as db_session:
        found = [api_keys.describe(key) for key in api_keys.list_keys(db_session)]
    if as_json:
        typer.echo(json.dumps([dataclasses.asdict(one) for one in found]))
        return
    columns = ("id", "name", "scope", "begins", "made", "expires", "last used", "revoked", "limits")
    print_table(
        columns,
        (
            (one.id, one.name, one.scope, one.prefix, *map(minute, moments), _own(one.limits))
            for one in found
            for moments in [(one.created_at, one.expires_at, one.last_used_at, one.revoked_at)]
        ),
        unbroken={*columns} - {"name", "limits"},
        dispensable=("made", "limits", "last used"),
    )


@app.command()
def revoke(
    key: Annotated[str, typer.Argument(metavar="ID-or-NAME", help="Which key.")],
    database_url: DatabaseUrl = None,
    data_dir: DataDir = None,
) -> None:
    """Refuse an API key for ever, on every server of this database, within a second."""
    from optserve_server.registry import api_keys

    with _written_down("revoke_api_key", key), _transaction(database_url, data_dir) as db_session:
        row = api_keys.get_key(db_session, key)
        already = " already" if row.revoked_at else ""
        api_keys.revoke_key(db_session, row)
        others = api_keys.has_keys(db_session)
    typer.echo(f"the {row.scope} key {row.name!r} ({row.prefix}…) is revoked{already}")
    if not others:
        typer.echo("That was the last key: a server that only this machine reaches is open again to everybody on it.")


def _given(limits: "Limits") -> dict[str, float]:
    return {name: value for name, value in dataclasses.asdict(limits).items() if value is not None}


def _own(limits: "Limits") -> str:
    return ", ".join(f"{name.replace('_', ' ')} {value:g}" for name, value in _given(limits).items())


@contextmanager
def _written_down(action: str, target: str, details: dict[str, Any] | None = None) -> Iterator[None]:
    """What is done in the block goes into the audit trail, in the name of the user who runs the command."""
    from optserve_server.registry.acts import Act, acting

    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # one without a name, as in some containers
        user = f"user {os.getuid()}"
    with acting(Act(user, "command line", action, target, details)):
        yield


@contextmanager
def _transaction(database_url: str | None, data_dir: Path | None, *, create: bool = False) -> Iterator["Session"]:
    """A transaction on the migrated database, which is named on stderr; what the registry refuses is one more line."""
    from optserve_server.registry.errors import RegistryError

    with opened_database(settings_from(database_url=database_url, data_dir=data_dir)) as database:
        if not create:
            require_schema(database)
        is_new = database.current() is None
        database.upgrade()
        typer.echo(f"made a new database at {database.shown}" if is_new else f"in {database.shown}", err=True)
        try:
            with database.session(write=True) as db_session:
                yield db_session
        except RegistryError as error:
            raise _fail(str(error)) from error


def _fail(message: str) -> typer.Exit:
    typer.secho(f"error: {message}", err=True, fg="red")
    return typer.Exit(1)
