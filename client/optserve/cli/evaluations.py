"""`optserve evaluations`: list, show. `optserve evaluate` launches them."""

from typing import Annotated

import typer

from optserve.cli.common import ApiKey, AsJson, Url, connect, minute, print_json, print_table, short

app = typer.Typer(
    name="evaluations", no_args_is_help=True, help="Evaluations on the server: `optserve evaluate` launches them."
)


@app.command("list")
def list_(url: Url = None, api_key: ApiKey = None, json: AsJson = False) -> None:
    """List every evaluation of the server, the newest first."""
    with connect(url, api_key) as client:
        found = [evaluation.info for evaluation in client.evaluations.list()]
    if json:
        print_json(found)
        return
    columns = ("id", "optimizers", "status", "done", "created")
    rows = (
        (one.id, ", ".join(one.optimizers), one.status, f"{one.done}/{one.cells}", minute(one.created_at))
        for one in found
    )
    print_table(columns, rows, unbroken={*columns} - {"optimizers"})


@app.command()
def show(
    evaluation_id: Annotated[str, typer.Argument(help="The evaluation's id.", metavar="ID")],
    url: Url = None,
    api_key: ApiKey = None,
    json: AsJson = False,
) -> None:
    """Show one evaluation and its ranking; with --json its curves too."""
    with connect(url, api_key) as client:
        evaluation = client.evaluations.get(evaluation_id)
        if json:
            print_json(evaluation.result())
            return
    info = evaluation.info
    typer.echo(f"{info.id}: {info.status}, {info.done} of {info.cells} curves")
    facts = {
        "error": info.error,
        "optimizers": ", ".join(info.optimizers),
        "baselines": ", ".join(info.baselines),
        "untuned": ", ".join(info.untuned),
        "tasks": ", ".join(task.label for task in info.tasks),
        "inner loops": f"{info.steps} steps, {info.seeds} seeds from {info.seed}",
        "created": f"{info.created_at} by {info.owner}",
        "finished": info.finished_at,
    }
    for name, value in facts.items():
        if value:
            typer.echo(f"  {name}: {value}")
    if info.ranking:
        typer.echo()
        rows = ((line.optimizer, short(line.score), line.wins, f"{line.divergence:.0%}") for line in info.ranking)
        print_table(("optimizer", "score", "tasks won", "diverged"), rows)
