"""`optserve audit`: what admins have done."""

import json as jsons
from typing import Annotated

import typer

from optserve.cli.common import ApiKey, AsJson, Url, connect, print_json, print_table

app = typer.Typer()


@app.command()
def audit(
    limit: Annotated[int, typer.Option(min=1, help="How many entries, the newest first.")] = 50,
    url: Url = None,
    api_key: ApiKey = None,
    json: AsJson = False,
) -> None:
    """Print what admins have done: who, when, from where, what, and what came of it."""
    with connect(url, api_key) as client:
        entries = client.audit.list(limit)
    if json:
        print_json(entries)
        return
    print_table(
        ("at", "actor", "address", "what", "outcome"),
        (
            (one.at[:19].replace("T", " "), one.actor, one.address, f"{one.action} {one.target}{details}", one.outcome)
            for one in entries
            for details in ["" if one.details is None else f" {jsons.dumps(one.details, ensure_ascii=False)}"]
        ),
        unbroken=("at", "address", "outcome"),
    )
