"""`optserve metatrain`: learn an optimizer from a recipe."""

import time
from contextlib import closing
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

_SAVE_SECONDS = 30.0


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
            min=1,
            help="With --local: CPU cores. Where a recipe has several trajectories under way φ is the same with any "
            "number; elsewhere another may change its last bits. Default: 1.",
        ),
    ] = None,
    detach: Detach = False,
    url: Url = None,
    api_key: ApiKey = None,
) -> None:
    """Meta-train an optimizer by a recipe: in the background on the server, or with --local here.

    On the server every checkpoint becomes a version. Ctrl-C ends the showing, not the run.

    With --local the optimizer is tried on held-out tasks at every checkpoint, and its weights are written if it is the
    best so far; so the file is there early, and stays if this is stopped (Ctrl-C). The same command then goes on where
    it was, from OUTPUT.checkpoint, which is written every half minute and removed at the end.
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
    from optserve_server.metatraining.outer_loop import MetaTrainingError

    try:
        parsed = recipes.load(recipe)
    except recipes.RecipeError as error:
        raise typer.BadParameter(str(error), param_hint=str(recipe)) from error
    phi = None if parsed.start_from is None else _weights(recipe.parent / parsed.start_from, parsed)
    target = output or recipe.with_suffix(".safetensors")
    require_writable(target, "--output")
    torch.set_num_threads(threads)
    saved = target.with_name(target.name + ".checkpoint")
    loop, record = _open(parsed, phi, threads, saved)
    try:
        with closing(loop):
            _run(loop, record, target, saved)
    except (KeyboardInterrupt, MetaTrainingError) as error:
        typer.echo(f"stopped at outer step {loop.outer_step}: {str(error) or 'interrupted'}", err=True)
        if record.best_phi is None:
            typer.echo("nothing written: there was no checkpoint yet", err=True)
            raise typer.Exit(1) from error
        _write(target, record, parsed)
        _tell(target, record)
        raise typer.Exit(1) from error
    _write(target, record, parsed)
    saved.unlink(missing_ok=True)
    _tell(target, record)


def _open(recipe: "Recipe", phi: "dict[str, Tensor] | None", threads: int, saved: Path) -> "tuple[OuterLoop, Record]":
    """The outer loop and its record: from the training checkpoint `saved`, or from the beginning."""
    import torch

    from optserve_server.metatraining import training_checkpoints
    from optserve_server.metatraining.outer_loop import OuterLoop
    from optserve_server.metatraining.weight_files import Record

    if not saved.exists():
        return OuterLoop(recipe, phi, processes=threads), Record()
    try:
        state = training_checkpoints.decode(saved.read_bytes(), torch.device("cpu"))
        loop = OuterLoop.resume(recipe, state["loop"].numpy().tobytes(), processes=threads)
    except ValueError as error:
        raise typer.BadParameter(f"cannot go on from {saved}: {error}; remove it to begin anew") from error
    typer.echo(f"{saved}: going on behind outer step {loop.outer_step}")
    return loop, Record.from_state(state["record"])


def _save(loop: "OuterLoop", record: "Record", saved: Path) -> None:
    import torch

    from optserve_server.metatraining import training_checkpoints

    of_loop = torch.frombuffer(bytearray(loop.checkpoint()), dtype=torch.uint8)
    _replace(saved, training_checkpoints.encode({"loop": of_loop, "record": record.to_state()}))


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


def _run(loop: "OuterLoop", record: "Record", target: Path, saved: Path) -> None:
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
        outer_steps = loop.recipe.meta_optimizer.outer_steps
        task = bar.add_task(loop.recipe.name, total=outer_steps, completed=loop.outer_step, losses="")
        held_out, due = "…", time.monotonic() + _SAVE_SECONDS
        for progress in loop:
            record.add(progress, loop)
            if time.monotonic() >= due:
                _save(loop, record, saved)
                due = time.monotonic() + _SAVE_SECONDS
            if progress.meta_loss_held_out is not None:
                held_out = f"{progress.meta_loss_held_out:.4g} (best {record.best_meta_loss_held_out:.4g})"
                if record.best_outer_step == progress.outer_step:
                    _write(target, record, loop.recipe)
                bar.console.print(f"outer step {progress.outer_step}: held-out loss {held_out}")
            diverged = f"  diverged {progress.non_finite}" if progress.non_finite else ""
            bar.update(task, advance=1, losses=f"loss {progress.loss:.4g}  held-out loss {held_out}{diverged}")


def _write(target: Path, record: "Record", recipe: "Recipe") -> None:
    _replace(target, record.encode(recipe))


def _replace(target: Path, data: bytes) -> None:
    temporary = target.with_name(target.name + ".part")
    temporary.write_bytes(data)
    temporary.replace(target)


def _tell(target: Path, record: "Record") -> None:
    typer.echo(
        f"{target}: {target.stat().st_size:,} bytes, φ of outer step {record.best_outer_step}, "
        f"final loss on held-out tasks {record.best_meta_loss_held_out:.4g}"
    )
