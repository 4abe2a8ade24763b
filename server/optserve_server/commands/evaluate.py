"""`optserve evaluate`: optimizers against baselines at their best learning rates."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from optserve.cli.common import ApiKey, Url
from optserve_server.commands.common import require_writable

if TYPE_CHECKING:
    from optserve.wire.evaluations import EvaluationResult
    from optserve_server.evaluation.competitors import Entrant
    from optserve_server.evaluation.evaluate import Progress as EvaluationProgress
    from optserve_server.evaluation.plans import Plan


def evaluate(
    references: Annotated[
        list[str],
        typer.Argument(help="The optimizers: NAME, NAME@7 or NAME@ALIAS; with --local files.", metavar="REF…"),
    ],
    suite: Annotated[
        str | None,
        typer.Option(
            help="A suite, `standard` or `stress`, or a TOML file: whatever other option is not given is as it says.",
            metavar="NAME|FILE",
        ),
    ] = None,
    tasks: Annotated[
        list[str] | None,
        typer.Option(
            help="FAMILY, or FAMILY:KEY=VALUE,…, or a TOML file with [[tasks]]; may be repeated.  "
            "[default: quadratic and digits-mlp]",
        ),
    ] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="T, the length of the inner loops.  [default: 100]")] = None,
    horizons: Annotated[
        str | None, typer.Option(help="Several T in the place of --steps, the shortest first, as 100,500.")
    ] = None,
    seeds: Annotated[
        int | None, typer.Option(min=1, help="How many tasks of each family, with their own θ_0.  [default: 5]")
    ] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="What everything drawn is drawn from.  [default: 0]")] = None,
    baselines: Annotated[
        str | None,
        typer.Option(help="Hand-designed optimizers, as adam,sgd; '' for none.  [default: sgd,nesterov,rmsprop,adam]"),
    ] = None,
    untuned: Annotated[
        str | None,
        typer.Option(help="Optimizers at their published defaults: baselines, or soap, ademamix, prodigy."),
    ] = None,
    plot: Annotated[Path | None, typer.Option(help="Draw the curves into this file, .svg or .png.")] = None,
    overview: Annotated[
        Path | None, typer.Option(help="Draw how the optimizers do beside the first baseline, on every task.")
    ] = None,
    markdown: Annotated[Path | None, typer.Option(help="Write all tables into this file, as Markdown.")] = None,
    no_cache: Annotated[
        bool, typer.Option("--no-cache", help="Compute anew what an earlier evaluation has computed.")
    ] = False,
    local: Annotated[
        bool, typer.Option("--local", help="Run here, in this process, with .safetensors files; else on the server.")
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print JSON: every curve, the ranking, and all comparisons.")
    ] = False,
    url: Url = None,
    api_key: ApiKey = None,
) -> None:
    """Compare optimizers on held-out tasks with baselines, each at the best of at least nine learning rates."""
    from optserve.cli.common import print_json
    from optserve_server.evaluation import plans, plots

    _check_picture(plot, "--plot")
    _check_picture(overview, "--overview")
    if markdown is not None:
        require_writable(markdown, "--markdown")
    given = {
        "tasks": None if tasks is None else [one for given in tasks for one in _tasks(given)],
        "steps": steps,
        "horizons": None if horizons is None else _numbers(horizons),
        "seeds": seeds,
        "seed": seed,
        "baselines": None if baselines is None else _names(baselines),
        "untuned": None if untuned is None else _names(untuned),
        "cache": False if no_cache else None,
    }
    keys = plans.beside(_suite(suite), {name: value for name, value in given.items() if value is not None})
    if overview is not None:
        _require_baseline(keys)
    if local:
        result = _run_here([Path(reference) for reference in references], keys)
    else:
        result = _run_on_server(references, keys, url, api_key)
    if as_json:
        print_json(result)
    else:
        _print_tables(result)
    for picture, draw in ((plot, plots.plot), (overview, plots.overview)):
        if picture is not None:
            draw(result, picture)
            typer.echo(f"drawn in {picture}", err=True)
    if markdown is not None:
        _write_markdown(result, markdown)


def _print_tables(result: "EvaluationResult") -> None:
    from rich.console import Console

    from optserve_server.evaluation.stability import total
    from optserve_server.evaluation.tables import names, tables

    console = Console(highlight=False)
    for table in tables(result):
        console.print(table, "")
    for name in names(result):
        console.print(f"{name}: {total(result, name)} runs diverged")


def _write_markdown(result: "EvaluationResult", file: Path) -> None:
    from optserve_server.evaluation.documents import document

    file.write_text(document(result), encoding="utf-8")
    typer.echo(f"written to {file}", err=True)


def _check_picture(picture: Path | None, option: str) -> None:
    from optserve_server.evaluation.plots import FORMATS

    if picture is None:
        return
    if picture.suffix.lower() not in FORMATS:
        raise typer.BadParameter(f"{picture} must end in {' or '.join(FORMATS)}", param_hint=option)
    require_writable(picture, option)


def _require_baseline(keys: Mapping[str, Any]) -> None:
    from optserve_server.evaluation import plans

    try:
        baselines = plans.with_suite(keys).get("baselines")
    except plans.PlanError as error:
        raise typer.BadParameter(str(error)) from error
    if baselines == []:
        message = "shows ratios to the first baseline, and there is none; name one, as in --baselines adam"
        raise typer.BadParameter(message, param_hint="--overview")


def _plan(keys: Mapping[str, Any]) -> "Plan":
    from optserve_server.evaluation import plans

    try:
        return plans.parse(keys)
    except plans.PlanError as error:
        raise typer.BadParameter(str(error)) from error


def _suite(given: str | None) -> dict[str, Any]:
    """The keys of a plan that --suite stands for."""
    from optserve_server.evaluation.plans import SUITE_KEYS
    from optserve_server.naming import nearest, shown

    if given is None:
        return {}
    if not given.endswith(".toml"):
        return {"suite": given}
    keys = _read(given, "--suite")
    for key in keys:
        if key not in SUITE_KEYS:
            near, known = nearest(key, SUITE_KEYS), ", ".join(SUITE_KEYS)
            message = f"{given} has an unknown key {shown(key)}{near}; there are {known}"
            raise typer.BadParameter(message, param_hint="--suite")
    return keys


def _names(given: str) -> list[str]:
    return [name for name in given.split(",") if name]


def _numbers(given: str) -> list[int]:
    try:
        return [int(number) for number in given.split(",")]
    except ValueError as error:
        raise typer.BadParameter(f"{given} is no list of numbers; write 100,500", param_hint="--horizons") from error


def _tasks(given: str) -> list[Any]:
    """The tasks that one --tasks stands for."""
    from optserve_server.evaluation.plans import PlanError, parse_task

    if given.endswith(".toml"):
        found = _read(given, "--tasks").get("tasks")
        if not isinstance(found, list):
            raise typer.BadParameter(f"{given} has no [[tasks]]", param_hint="--tasks")
        return found
    try:
        return [parse_task(given)]
    except PlanError as error:
        raise typer.BadParameter(str(error), param_hint="--tasks") from error


def _read(file: str, option: str) -> dict[str, Any]:
    from optserve_server.descriptions import read_toml
    from optserve_server.evaluation.plans import PlanError

    try:
        return read_toml(Path(file), PlanError)
    except (PlanError, OSError) as error:
        raise typer.BadParameter(str(error), param_hint=option) from error


def _entrant(file: Path) -> "Entrant":
    from optserve_server.evaluation.competitors import Entrant
    from optserve_server.evaluation.plans import PlanError

    try:
        return Entrant.read(file.stem, file.read_bytes())
    except PlanError as error:
        raise typer.BadParameter(str(error), param_hint=str(file)) from error


def _run_here(files: list[Path], keys: Mapping[str, Any]) -> "EvaluationResult":
    import torch
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    from optserve_server.evaluation import memory
    from optserve_server.evaluation.cache import Cache
    from optserve_server.evaluation.evaluate import evaluate as carry_out
    from optserve_server.evaluation.evaluate import to_end
    from optserve_server.evaluation.plans import PlanError
    from optserve_server.machine import memory_bytes

    plan = _plan({**keys, "optimizers": [file.stem for file in files]})
    entrants = [_entrant(file) for file in files]
    try:
        memory.require_room(plan, entrants, memory_bytes())
    except PlanError as error:
        raise typer.BadParameter(str(error)) from error
    cache = Cache.of_user()
    torch.set_num_threads(1)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        shown = bar.add_task("evaluating")
        running = carry_out(plan, entrants, recall=cache.recall)

        def tell(progress: "EvaluationProgress") -> None:
            if progress.curves is not None:
                cache.keep(progress.fingerprint, progress.curves)
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
    return EvaluationResult(found.steps, found.seeds, found.tasks, found.curves, found.ranking, found.comparisons)
