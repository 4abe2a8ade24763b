"""The command line `optserve`: the client's commands, and those of every package that brings more.

A package adds commands by an entry point of the group `optserve.commands`: a function that is given the app. The
server's commands come that way, so this module imports nothing of the server.
"""

import sys
from importlib.metadata import entry_points
from typing import Annotated, NoReturn

import typer

from optserve.cli import audit, evaluations, optimizers, runs, sessions, tasks, usage
from optserve.errors import OptserveError

ENTRY_POINTS = "optserve.commands"


def build() -> typer.Typer:
    """The app with all commands."""
    app = typer.Typer(
        name="optserve",
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        rich_markup_mode="markdown",
        context_settings={"help_option_names": ["-h", "--help"]},
        help="Learned optimizers as a service: post gradients, get back updates from an optimizer that was learned.",
        epilog="`optserve serve` starts a server; every other command finds it by `--url` or OPTSERVE_URL.",
    )
    app.callback()(_options)
    app.add_typer(sessions.app)
    app.add_typer(optimizers.app)
    app.add_typer(tasks.app)
    app.add_typer(runs.app)
    app.add_typer(evaluations.app)
    app.add_typer(usage.app)
    app.add_typer(audit.app)
    app.command()(runs.metatrain)
    for entry_point in sorted(entry_points(group=ENTRY_POINTS), key=lambda found: found.name):
        entry_point.load()(app)
    return app


def main() -> None:
    """Run the command line. What goes wrong is one line on stderr and exit code 1."""
    try:
        build()()
    except ModuleNotFoundError as error:
        _fail(f"this command needs {error.name}, which is not installed: pip install 'optserve[server]'")
    except (OptserveError, OSError) as error:
        _fail(" ".join(str(error).split()))


def _print_version(wanted: bool) -> None:
    if wanted:
        import optserve

        typer.echo(optserve.__version__)
        raise typer.Exit


def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """What may stand before the command."""


def _fail(message: str) -> NoReturn:
    typer.secho(f"error: {message}", err=True, fg=typer.colors.RED)
    sys.exit(1)
