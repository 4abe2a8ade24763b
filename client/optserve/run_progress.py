"""A meta-training run on a terminal: a live bar, its losses, and a line for every version."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from optserve.wire.meta_training import RunInfo

Show = Callable[[RunInfo], object]


@contextmanager
def watching(info: RunInfo, *, shown: bool) -> Iterator[Show]:
    """Gives what to call with every new description of the run; the bar stands on stderr as long as the block lasts."""
    if not shown:
        yield lambda info: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[state]}"),
    )
    with Progress(*columns, console=Console(stderr=True, highlight=False)) as bar:
        task = bar.add_task(info.name, total=info.outer_steps, state="")
        told = set(info.versions)

        def show(info: RunInfo) -> None:
            for version in info.versions:
                if version not in told:
                    told.add(version)
                    bar.console.print(f"{info.name}@{version}: {_losses(info)}")
            bar.update(task, completed=info.outer_step, total=info.outer_steps, state=_state(info))

        show(info)
        yield show


def _state(info: RunInfo) -> str:
    left = "" if info.eta_seconds is None else f"{_duration(info.eta_seconds)} left  "
    return f"{left}{info.status}  {_losses(info)}".rstrip()


def _losses(info: RunInfo) -> str:
    losses = {"meta-loss": info.meta_loss, "held-out loss": info.meta_loss_held_out}
    return "  ".join(f"{name} {loss:.4g}" for name, loss in losses.items() if loss is not None)


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}"
