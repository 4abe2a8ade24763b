"""`optserve evaluate`: optimizers against baselines at their best learning rates."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from optserve.cli.common import ApiKey, Url
from optserve_server.commands.common import require_writable

if TYPE_CHECKING:
    from optserve.wire.evaluations import EvaluationResult
    from optserve_server.evaluation.evaluate import Entrant
    from optserve_server.evaluation.evaluate import Progress as EvaluationProgress
    from optserve_server.evaluation.plans import Plan


def evaluate(
    references: Annotated[
        list[str],
        typer.Argument(help="The optimizers: NAME, NAME@7 or NAME@ALIAS; with --local files.", metavar="REF…"),
    ],
    tasks: Annotated[
        list[str] | None,
        typer.Option(
            help="FAMILY, or FAMILY:KEY=VALUE,…, or a TOML file with [[tasks]]; may be repeated.  "
            "[default: quadratic and digits-mlp]",
        ),
    ] = None,
    steps: Annotated[int, typer.Option(min=1, help="T, the length of the inner loops.")] = 100,
    seeds: Annotated[int, typer.Option(min=1, help="How many tasks of each family, with their own θ_0.")] = 5,
    seed: Annotated[int, typer.Option(min=0, help="What everything drawn is drawn from.")] = 0,
    baselines: Annotated[
        str | None,
        typer.Option(help="Hand-designed optimizers, as adam,sgd; '' for none.  [default: sgd,nesterov,rmsprop,adam]"),
    ] = None,
    plot: Annotated[Path | None, typer.Option(help="Draw the curves into this file, .svg or .png.")] = None,
    local: Annotated[
        bool, typer.Option("--local", help="Run here, in this process, with .safetensors files; else on the server.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON: every curve, and the ranking.")] = False,
    url: Url = None,
    api_key: ApiKey = None,
) -> None:
    """Compare optimizers on held-out tasks with baselines, each at the best of at least seven learning rates."""
    from optserve.cli.common import print_json
    from optserve_server.evaluation.plots import plot as draw

    _check_plot(plot)
    keys = {
        "tasks": None if tasks is None else [one for given in tasks for one in _tasks(given)],
        "steps": steps,
        "seeds": seeds,
        "seed": seed,
        "baselines": None if baselines is None else [name for name in baselines.split(",") if name],
    }
    if local:
        result = _run_here([Path(reference) for reference in references], keys)
    else:
        result = _run_on_server(references, keys, url, api_key)
    if as_json:
        print_json(result)
    else:
        _print_tables(result)
    if plot is not None:
        draw(result, plot)
        typer.echo(f"the curves are drawn in {plot}", err=True)


def _print_tables(result: "EvaluationResult") -> None:
    from rich.console import Console

    from optserve_server.evaluation.tables import tables

    console = Console()
    for table in tables(result):
        console.print(table, "")


def _check_plot(plot: Path | None) -> None:
    from optserve_server.evaluation.plots import FORMATS

    if plot is None:
        return
    if plot.suffix.lower() not in FORMATS:
        raise typer.BadParameter(f"{plot} must end in {' or '.join(FORMATS)}", param_hint="--plot")
    require_writable(plot, "--plot")


def _plan(keys: Mapping[str, Any]) -> "Plan":
    from optserve_server.evaluation import plans

    try:
        return plans.parse({key: value for key, value in keys.items() if value is not None})
    except plans.PlanError as error:
        raise typer.BadParameter(str(error)) from error


def _tasks(given: str) -> list[Any]:
    """The tasks that one --tasks stands for."""
    from optserve_server.descriptions import read_toml
    from optserve_server.evaluation.plans import PlanError, parse_task

    try:
        if not given.endswith(".toml"):
            return [parse_task(given)]
        found = read_toml(Path(given), PlanError).get("tasks")
    except PlanError as error:
        raise typer.BadParameter(str(error), param_hint="--tasks") from error
    if not isinstance(found, list):
        raise typer.BadParameter(f"{given} has no [[tasks]]", param_hint="--tasks")
    return found


def _entrant(file: Path) -> "Entrant":
    from optserve_server.evaluation.evaluate import Entrant
    from optserve_server.evaluation.plans import PlanError

    try:
        return Entrant.read(file.stem, file.read_bytes())
    except PlanError as error:
        raise typer.BadParameter(str(error), param_hint=str(file)) from error


def _run_here(files: list[Path], keys: Mapping[str, Any]) -> "EvaluationResult":
    import torch
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    from optserve_server.evaluation.evaluate import evaluate as carry_out
    from optserve_server.evaluation.evaluate import to_end

    plan = _plan({**keys, "optimizers": [file.stem for file in files]})
    entrants = [_entrant(file) for file in files]
    torch.set_num_threads(1)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        shown = bar.add_task("evaluating")
        running = carry_out(plan, entrants)

        def tell(progress: "EvaluationProgress") -> None:
            description = f"{progress.optimizer} on {progress.task}, step {progress.step} of {plan.steps}"
            bar.update(shown, completed=progress.done, total=progress.cells, description=description)

        return to_end(running, tell)


def _run_on_server(
    references: list[str], keys: Mapping[str, Any], url: str | None, api_key: str | None
) -> "EvaluationResult":
    from optserve.cli.common import connect, fail
    from optserve.wire.evaluations import EvaluationResult

    with connect(url, api_key) as client:
        evaluation = client.evaluations.launch(references, **keys)
        typer.echo(f"evaluation {evaluation.id}: it goes on if this command is stopped", err=True)
        found = evaluation.wait(progress=True)
    if found.status == "cancelled":
        raise fail(f"evaluation {found.id} was cancelled")
    return EvaluationResult(found.steps, found.seeds, found.tasks, found.curves, found.ranking)
