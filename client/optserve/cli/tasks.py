"""`optserve tasks`: the task families."""

import typer

from optserve.cli.common import ApiKey, AsJson, Url, connect, print_json, print_table

app = typer.Typer()


@app.command()
def tasks(url: Url = None, api_key: ApiKey = None, json: AsJson = False) -> None:
    """List the task families that optimizers are meta-trained and evaluated on, with their parameters."""
    with connect(url, api_key) as client:
        families = client.tasks.list()
    if json:
        print_json(families)
        return
    print_table(
        ("family", "parameters", "description"),
        ((one.family, ", ".join(one.parameters_schema.get("properties", {})), one.description) for one in families),
        unbroken=("family",),
    )
