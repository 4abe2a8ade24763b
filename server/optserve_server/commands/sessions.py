"""`optserve sessions`: the client's commands, and one that reads the sessions' files."""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from optserve.cli import sessions as client_commands
from optserve.cli.common import AsJson, fail, print_table
from optserve_server.commands.common import DataDir, settings_from

if TYPE_CHECKING:
    from optserve_server.sessions.storage.verification import Verification

app = typer.Typer(name="sessions", no_args_is_help=True, help=client_commands.HELP)
app.command("list")(client_commands.list_)

SessionIds = Annotated[list[str] | None, typer.Argument(metavar="[ID]…", help="Which sessions.  [default: all]")]


@app.command()
def verify(session_ids: SessionIds = None, data_dir: DataDir = None, as_json: AsJson = False) -> None:
    """Check every checksum of what a server keeps of its sessions; exit code 1 if anything is damaged.

    Files are only read, so the server may be running.
    """
    from optserve_server.sessions.storage import verification

    directory = settings_from(data_dir=data_dir).sessions
    found = [verification.verify(directory / session) for session in _chosen(directory, session_ids)]
    verified = [one for one in found if one is not None]
    if as_json:
        typer.echo(json.dumps([dataclasses.asdict(one) for one in verified], indent=2))
    else:
        _print(verified)
    if any(one.damage for one in verified):
        raise typer.Exit(1)


def _chosen(directory: Path, session_ids: Sequence[str] | None) -> Sequence[str]:
    from optserve_server.naming import nearest, shown
    from optserve_server.sessions.storage.directory import session_names

    try:
        known = session_names(directory)
    except FileNotFoundError:
        raise fail(f"there are no sessions at {directory}; name the server's directory with --data-dir") from None
    for session in session_ids or ():
        if session not in known:
            raise fail(f"there is no session {shown(session)}{nearest(session, known)} at {directory}")
    return session_ids or known


def _print(verified: "Sequence[Verification]") -> None:
    columns = ("id", "next step", "back to", "generations", "checkpoints", "bytes", "")
    print_table(
        columns,
        (
            (
                one.session,
                one.next_step,
                one.oldest_step,
                one.generations,
                one.checkpoints,
                one.bytes,
                "DAMAGED" if one.damage else "sound",
            )
            for one in verified
        ),
        unbroken={*columns} - {"id"},
    )
    damaged = [one for one in verified if one.damage]
    for one in damaged:
        for damage in one.damage:
            typer.echo(f"\n{one.session}/{damage.file}: {damage.reason}\n  {damage.mend}")
    typer.echo(f"\n{len(damaged)} of {len(verified)} sessions {'is' if len(damaged) == 1 else 'are'} damaged")
