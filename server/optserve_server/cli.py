"""The server's commands, added to the command line `optserve`; what is heavy is imported when a command runs."""

import typer

from optserve_server.commands import db, keys, sessions
from optserve_server.commands.demo import demo
from optserve_server.commands.evaluate import evaluate
from optserve_server.commands.metatrain import metatrain
from optserve_server.commands.serve import serve
from optserve_server.commands.worker import worker


def register(app: typer.Typer) -> None:
    """Add the server's commands to `app`."""
    for command in (serve, worker, metatrain, evaluate, demo):
        app.command()(command)
    app.add_typer(db.app)
    app.add_typer(keys.app)
    app.add_typer(sessions.app)
