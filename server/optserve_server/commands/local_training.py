"""Meta-training without a server, for `optserve metatrain --local`: it can be interrupted, and goes on where it was."""

import signal
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import torch
import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch import Tensor

from optserve_server.commands.common import require_writable
from optserve_server.metatraining import recipes, training_checkpoints
from optserve_server.metatraining.crew import CrewError
from optserve_server.metatraining.outer_loop import MetaTrainingError, OuterLoop
from optserve_server.metatraining.recipes import Recipe
from optserve_server.metatraining.weight_files import Record
from optserve_server.optimizers import weights

_SAVE_SECONDS = 30.0


def run(file: Path, target: Path, threads: int) -> None:
    """Carry out the recipe in `file` on so many cores, and leave the best weights in `target`.

    Raises:
        typer.BadParameter: something given cannot be used.
        typer.Exit: it was interrupted, or cannot go on.
    """
    try:
        recipe = recipes.load(file)
    except recipes.RecipeError as error:
        raise typer.BadParameter(str(error), param_hint=str(file)) from error
    phi = None if recipe.start_from is None else _weights(file.parent / recipe.start_from, recipe)
    require_writable(target, "--output")
    torch.set_num_threads(threads)
    interruption = Interruption()
    saved = target.with_name(target.name + ".checkpoint")
    loop, record = _open(recipe, phi, threads, saved)
    with closing(loop):
        try:
            _make_outer_steps(loop, record, target, saved, interruption)
        except (MetaTrainingError, CrewError) as error:
            _stop(loop, record, target, saved, str(error))
        if interruption.asked:
            _save(loop, record, saved)
            _stop(loop, record, target, saved, "interrupted")
    _write(target, record, recipe)
    saved.unlink(missing_ok=True)
    _tell(target, record)


class Interruption:
    """Whether somebody has `asked` to stop (Ctrl-C, SIGTERM). Who asks twice does not want to wait."""

    def __init__(self) -> None:
        self.asked = False
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._ask)

    def _ask(self, number: int, _: Any) -> None:
        self.asked = True
        signal.signal(number, signal.SIG_DFL)


def _open(recipe: Recipe, phi: dict[str, Tensor] | None, threads: int, saved: Path) -> tuple[OuterLoop, Record]:
    """The outer loop and its record: from the training checkpoint `saved`, or from the beginning."""
    if not saved.exists():
        return OuterLoop(recipe, phi, processes=threads), Record()
    try:
        state = training_checkpoints.decode(saved.read_bytes(), torch.device("cpu"))
        loop = OuterLoop.resume(recipe, state["loop"].numpy().tobytes(), processes=threads)
    except (ValueError, LookupError) as error:
        raise typer.BadParameter(f"cannot go on from {saved}: {error}; remove it to begin anew") from error
    typer.echo(f"{saved}: going on behind outer step {loop.outer_step}")
    return loop, Record.from_state(state["record"])


def _weights(file: Path, recipe: Recipe) -> dict[str, Tensor]:
    """φ_0 from a weight file; a version has none here, where there is no server."""
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


def _make_outer_steps(loop: OuterLoop, record: Record, target: Path, saved: Path, interruption: Interruption) -> None:
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
        held_out, due = "…", time.monotonic()
        for progress in loop:
            record.add(progress, loop)
            if time.monotonic() >= due:
                _save(loop, record, saved)
                due = time.monotonic() + _SAVE_SECONDS
                if not bar.console.is_terminal:  # a log has no bar
                    bar.console.print(f"outer step {progress.outer_step} of {outer_steps}: loss {progress.loss:.4g}")
            if progress.meta_loss_held_out is not None:
                held_out = f"{progress.meta_loss_held_out:.4g} (best {record.best_meta_loss_held_out:.4g})"
                if record.best_outer_step == progress.outer_step:
                    _write(target, record, loop.recipe)
                bar.console.print(f"outer step {progress.outer_step}: held-out loss {held_out}")
            diverged = f"  diverged {progress.non_finite}" if progress.non_finite else ""
            bar.update(task, advance=1, losses=f"loss {progress.loss:.4g}  held-out loss {held_out}{diverged}")
            if interruption.asked:
                return


def _stop(loop: OuterLoop, record: Record, target: Path, saved: Path, why: str) -> None:
    typer.echo(f"stopped at outer step {loop.outer_step}: {why}", err=True)
    if saved.exists():
        typer.echo(f"the same command goes on from {saved}; remove it to begin anew", err=True)
    if record.best_phi is None:
        typer.echo("no weights written: φ was not validated yet", err=True)
    else:
        _write(target, record, loop.recipe)
        _tell(target, record)
    raise typer.Exit(1)


def _save(loop: OuterLoop, record: Record, saved: Path) -> None:
    of_loop = torch.frombuffer(bytearray(loop.checkpoint()), dtype=torch.uint8)
    _replace(saved, training_checkpoints.encode({"loop": of_loop, "record": record.to_state()}))


def _write(target: Path, record: Record, recipe: Recipe) -> None:
    _replace(target, record.encode(recipe))


def _replace(target: Path, data: bytes) -> None:
    temporary = target.with_name(target.name + ".part")
    temporary.write_bytes(data)
    temporary.replace(target)


def _tell(target: Path, record: Record) -> None:
    typer.echo(
        f"{target}: {target.stat().st_size:,} bytes, φ of outer step {record.best_outer_step}, "
        f"final loss on held-out tasks {record.best_meta_loss_held_out:.4g}"
    )
