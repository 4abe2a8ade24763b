"""`optserve metatrain`: learn an optimizer from a recipe."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from optserve.cli.common import ApiKey, Url
from optserve.cli.runs import Detach, submit
from optserve_server.commands.common import require_writable

if TYPE_CHECKING:
    from torch import Tensor

    from optserve_server.metatraining.outer_loop import OuterLoop
    from optserve_server.metatraining.recipes import Recipe
    from optserve_server.metatraining.weight_files import Record


def metatrain(
    recipe: Annotated[Path, typer.Argument(help="The recipe, a TOML file; recipes/ has examples.", exists=True)],
    local: Annotated[bool, typer.Option("--local", help="Run here, in this process, without a server.")] = False,
    output: Annotated[
        Path | None,
        typer.Option(help="With --local: where the weights go. Default: RECIPE with .safetensors for .toml."),
    ] = None,
    threads: Annotated[
        int | None,
        typer.Option(
            min=1, help="With --local: CPU threads; another number may change the last bits of φ. Default: 1."
        ),
    ] = None,
    detach: Detach = False,
    url: Url = None,
    api_key: ApiKey = None,
) -> None:
    """Meta-train an optimizer by a recipe: in the background on the server, or with --local here.

    On the server every checkpoint becomes a version. Ctrl-C ends the showing, not the run.

    With --local the optimizer is tried on held-out tasks at every checkpoint, and its weights are written if it is the
    best so far; so the file is there early, and stays if this is stopped (Ctrl-C).
    """
    if local:
        _run_here(recipe, output, threads or 1)
        return
    if output is not None or threads is not None:
        raise typer.BadParameter("--output and --threads go with --local; on the server the weights become versions")
    submit(recipe, detach=detach, url=url, api_key=api_key)


def _run_here(recipe: Path, output: Path | None, threads: int) -> None:
    import torch

    from optserve_server.metatraining import recipes
    from optserve_server.metatraining.outer_loop import MetaTrainingError, OuterLoop
    from optserve_server.metatraining.weight_files import Record

    try:
        parsed = recipes.load(recipe)
    except recipes.RecipeError as error:
        raise typer.BadParameter(str(error), param_hint=str(recipe)) from error
    phi = None if parsed.start_from is None else _weights(recipe.parent / parsed.start_from, parsed)
    target = output or recipe.with_suffix(".safetensors")
    require_writable(target, "--output")
    torch.set_num_threads(threads)
    record = Record()
    try:
        _run(OuterLoop(parsed, phi), record, target)
    except (KeyboardInterrupt, MetaTrainingError) as error:
        typer.echo(f"stopped at outer step {len(record.meta_losses)}: {str(error) or 'interrupted'}", err=True)
        if record.best_phi is None:
            typer.echo("nothing written: there was no checkpoint yet", err=True)
            raise typer.Exit(1) from error
        _write(target, record, parsed)
        _tell(target, record)
        raise typer.Exit(1) from error
    _write(target, record, parsed)
    _tell(target, record)


def _weights(file: Path, recipe: "Recipe") -> "dict[str, Tensor]":
    """φ_0 from a weight file; a version has none here, where there is no server."""
    from optserve_server.optimizers import weights

    if not file.is_file():
        message = f"start_from: there is no file {file}; a version, NAME@N, needs a server, so leave --local out"
        raise typer.BadParameter(message)
    try:
        optimizer, phi, _ = weights.decode(file.read_bytes())
    except ValueError as error:
        raise typer.BadParameter(f"start_from: {file}: {error}") from error
    if optimizer != recipe.optimizer():
        raise typer.BadParameter(f"start_from: {file} has the architecture {optimizer}, not {recipe.optimizer()}")
    return phi


def _run(loop: "OuterLoop", record: "Record", target: Path) -> None:
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[losses]}"),
    )
    with Progress(*columns) as bar:
        task = bar.add_task(loop.recipe.name, total=loop.recipe.meta_optimizer.outer_steps, losses="")
        held_out = "…"
        for progress in loop:
            record.add(progress, loop)
            if progress.meta_loss_held_out is not None:
                held_out = f"{progress.meta_loss_held_out:.4g} (best {record.best_meta_loss_held_out:.4g})"
                if record.best_outer_step == progress.outer_step:
                    _write(target, record, loop.recipe)
                bar.console.print(f"outer step {progress.outer_step}: held-out loss {held_out}")
            diverged = f"  diverged {progress.non_finite}" if progress.non_finite else ""
            bar.update(task, advance=1, losses=f"loss {progress.loss:.4g}  held-out loss {held_out}{diverged}")


def _write(target: Path, record: "Record", recipe: "Recipe") -> None:
    temporary = target.with_name(target.name + ".part")
    temporary.write_bytes(record.encode(recipe))
    temporary.replace(target)


def _tell(target: Path, record: "Record") -> None:
    typer.echo(
        f"{target}: {target.stat().st_size:,} bytes, φ of outer step {record.best_outer_step}, "
        f"final loss on held-out tasks {record.best_meta_loss_held_out:.4g}"
    )
