"""An evaluation as tables of a terminal: one a task, and the ranking."""

from collections.abc import Iterator

from rich.table import Table

from optserve.wire.evaluations import Curves, EvaluationResult, Loss
from optserve_server.evaluation.summaries import final_loss


def tables(result: EvaluationResult) -> Iterator[Table]:
    """A table for each task, the lowest loss first, and then the ranking."""
    for number, task in enumerate(result.tasks):
        curves = [one for one in result.curves if one.task == number]
        yield _task(task.label, sorted(curves, key=final_loss), result)
    yield _ranking(result)


def number(loss: Loss) -> str:
    """A loss with four digits."""
    return "not finite" if loss is None else f"{loss:.4g}"


def _task(label: str, curves: list[Curves], result: EvaluationResult) -> Table:
    table = Table(title=f"{label}: loss after {result.steps} steps, {result.seeds} seeds", title_justify="left")
    for column in ("optimizer", "median", "quartiles", "diverged", "best learning rate"):
        table.add_column(column, justify="left" if column == "optimizer" else "right")
    for one in curves:
        table.add_row(
            one.optimizer,
            number(one.median[-1]),
            f"{number(one.lower_quartile[-1])} … {number(one.upper_quartile[-1])}",
            f"{one.divergence:.0%}",
            "" if one.learning_rate is None else f"{one.learning_rate:.3g} of {len(one.learning_rates)}",
            style=None if one.baseline else "bold",
        )
    return table


def _ranking(result: EvaluationResult) -> Table:
    table = Table(
        title="Ranking",
        title_justify="left",
        caption="score: geometric mean over tasks of the final loss, as a multiple of the best baseline's",
        caption_justify="left",
    )
    for column in ("", "optimizer", "score", "tasks won", "diverged"):
        table.add_column(column, justify="left" if column == "optimizer" else "right")
    for place, line in enumerate(result.ranking, start=1):
        table.add_row(
            str(place),
            line.optimizer,
            f"{line.score:.3g}",
            f"{line.wins} of {len(result.tasks)}",
            f"{line.divergence:.0%}",
            style=None if line.baseline else "bold",
        )
    return table
