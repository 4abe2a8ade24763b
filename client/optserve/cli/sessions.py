"""`optserve sessions`: list."""

import typer

from optserve.cli.common import ApiKey, AsJson, Url, connect, minute, print_json, print_table

HELP = "Sessions: each is the hidden state of one training loop."

app = typer.Typer(name="sessions", no_args_is_help=True, help=HELP)


@app.command("list")
def list_(url: Url = None, api_key: ApiKey = None, json: AsJson = False) -> None:
    """List every session of this API key, the oldest first."""
    with connect(url, api_key) as client:
        found = [session.info for session in client.sessions.list()]
    if json:
        print_json(found)
        return
    columns = ("id", "optimizer", "next step", "coordinates", "label", "created", "expires")
    rows = (
        (
            one.id,
            f"{one.optimizer.name}@{one.optimizer.version}",
            one.next_step,
            one.coordinates,
            one.label,
            minute(one.created_at),
            minute(one.expires_at),
        )
        for one in found
    )
    print_table(columns, rows, unbroken={*columns} - {"label"}, dispensable=("coordinates", "expires", "created"))
