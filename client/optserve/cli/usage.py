"""`optserve usage`: what an API key uses."""

import dataclasses
from typing import Annotated

import typer

from optserve.cli.common import ApiKey, AsJson, Url, connect, print_json, print_table

app = typer.Typer()

_LIMITED = ("sessions", "coordinates", "bytes_in_flight", "runs")
_COUNTED = ("requests", "steps", "bytes_received", "bytes_sent")


@app.command()
def usage(
    key: Annotated[
        str | None, typer.Argument(metavar="[ID-or-NAME]", help="Of another key, as an admin.", show_default=False)
    ] = None,
    url: Url = None,
    api_key: ApiKey = None,
    json: AsJson = False,
) -> None:
    """Print what an API key uses now, its limits, and what it has used so far."""
    with connect(url, api_key) as client:
        found = client.api_keys.usage(key)
    if json:
        print_json(found)
        return
    uses, limits = dataclasses.asdict(found), dataclasses.asdict(found.limits)
    rows = [(name, uses[name], limits[name]) for name in _LIMITED]
    rows.append(("requests_per_second", None, limits["requests_per_second"]))
    rows += [(f"{name} so far", uses[name], None) for name in _COUNTED]
    print_table((found.key, "uses", "at most"), ((name.replace("_", " "), *numbers) for name, *numbers in rows))
