"""`optserve sessions`: the client's commands, and one that reads the sessions' files."""

import asyncio
import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from optserve.cli import sessions as client_commands
from optserve.cli.common import AsJson, fail, print_table
from optserve_server.commands.common import DatabaseUrl, opened_database, require_schema, settings_from

if TYPE_CHECKING:
    from optserve_server.registry.database import Database

app = typer.Typer(name="sessions", no_args_is_help=True, help=client_commands.HELP)
app.command("list")(client_commands.list_)

SessionIds = Annotated[
    list[str] | None,
    typer.Argument(metavar="[ID]…", help="Which sessions; of an id the first characters do.  [default: all]"),
]
SessionsDataDir = Annotated[
    Path | None, typer.Option(help="The server's directory, or a copy of it.  [default: optserve-data]")
]


@app.command()
def verify(
    session_ids: SessionIds = None,
    replay: Annotated[
        bool, typer.Option("--replay", help="Compute every step again too, and compare it with every snapshot.")
    ] = False,
    database_url: DatabaseUrl = None,
    data_dir: SessionsDataDir = None,
    as_json: AsJson = False,
) -> None:
    """Check every checksum of what a server keeps of its sessions; exit code 1 if anything is damaged.

    Files are only read, so the server may be running. The database is asked for the optimizers, only with --replay.
    """
    from optserve_server.sessions.storage import verification

    settings = settings_from(data_dir=data_dir, database_url=database_url)
    found = [verification.verify(settings.sessions / session) for session in _chosen(settings.sessions, session_ids)]
    verified: list[dict[str, Any]] = [dataclasses.asdict(one) for one in found if one is not None]
    if replay:
        with opened_database(settings) as database:
            require_schema(database)
            for one in verified:
                if not one["damage"]:
                    one.update(_replayed(settings.sessions / one["session"], database))
    if as_json:
        typer.echo(json.dumps(verified, indent=2))
    else:
        _print(verified)
    if any(one["damage"] for one in verified):
        raise typer.Exit(1)


def _replayed(place: Path, database: "Database") -> dict[str, Any]:
    """What a replay adds to what is known of a sound session."""
    from optserve_server.api.versions import VersionCache
    from optserve_server.sessions.description import Description
    from optserve_server.sessions.errors import VersionMissing
    from optserve_server.sessions.replaying import replay_all
    from optserve_server.sessions.storage.directory import read_description

    description = Description.from_json(read_description(place))
    try:
        version = asyncio.run(VersionCache(database).load(description.version))
    except VersionMissing as error:
        raise fail(f"session {place.name} cannot be replayed: {error}") from error
    while place.exists():
        try:
            replay = replay_all(place, description, version)
        except FileNotFoundError:  # the server has no use for a file any more: what it needs is in others
            continue
        return dataclasses.asdict(replay)
    return {}


def _chosen(directory: Path, session_ids: Sequence[str] | None) -> Sequence[str]:
    from optserve_server.sessions.storage.directory import session_names

    try:
        known = session_names(directory)
    except FileNotFoundError:
        raise fail(f"there are no sessions at {directory}; name the server's directory with --data-dir") from None
    return [_meant(session, known, directory) for session in session_ids] if session_ids else known


def _meant(session: str, known: Sequence[str], directory: Path) -> str:
    """The session of this id, or the only one whose id begins so."""
    from optserve_server.naming import nearest, shown

    found = [session] if session in known else [one for one in known if one.startswith(session)]
    if len(found) > 1:
        raise fail(f"the ids of {len(found)} sessions at {directory} begin with {shown(session)}; give more of it")
    if not found:
        raise fail(f"there is no session {shown(session)}{nearest(session, known)} at {directory}")
    return found[0]


def _print(verified: Sequence[dict[str, Any]]) -> None:
    columns = {
        "id": "session",
        "next step": "next_step",
        "back to": "oldest_step",
        "generations": "generations",
        "checkpoints": "checkpoints",
        "bytes": "bytes",
    }
    if any("replayed_steps" in one for one in verified):
        columns["replayed"] = "replayed_steps"
    print_table(
        (*columns, ""),
        ((*(one.get(key) for key in columns.values()), _judgement(one)) for one in verified),
        unbroken={*columns, ""},
        dispensable=("generations", "checkpoints"),
    )
    damaged = [one for one in verified if one["damage"]]
    for one in damaged:
        for damage in one["damage"]:
            typer.echo(f"\n{one['session']}/{damage['file']}: {damage['reason']}\n  {damage['mend']}")
    typer.echo(f"\n{len(damaged)} of {len(verified)} sessions {'is' if len(damaged) == 1 else 'are'} damaged")


def _judgement(one: dict[str, Any]) -> str:
    return "DAMAGED" if one["damage"] else "sound" if one.get("same_kernel", True) else "sound; another kernel"
