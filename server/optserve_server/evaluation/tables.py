"""An evaluation as tables of a terminal: one a task, or one for many of them, how they compare, and the ranking."""

import math
from collections.abc import Iterator, Sequence

from rich import box
from rich.table import Table

from optserve.wire.evaluations import Comparison, Curves, EvaluatedTask, EvaluationResult, Loss
from optserve_server.evaluation import stability
from optserve_server.evaluation.comparisons import LARGEST_LOGARITHM, cells, comparison, geometric_mean
from optserve_server.evaluation.summaries import final_loss, median_held_out

_MANY = 6  # tasks at one T; more than that have a table together


def tables(result: EvaluationResult) -> Iterator[Table]:
    """A table for each task, the lowest loss first, or where there are many, one; then comparisons and the ranking."""
    learned, baselines = names(result), names(result, baseline=True)
    if len(result.tasks) <= _MANY:
        for number, task in enumerate(result.tasks):
            curves = [one for one in result.curves if one.task == number]
            yield _task(task, sorted(curves, key=final_loss), result)
    elif baselines:
        for name in learned:
            yield _by_task(result, name, baselines[0])
    if baselines:
        for name in learned:
            yield _compared(f"{name} beside each baseline", overall(result, name))
        if untuned := names(result, untuned=True):
            found = [one for name in untuned for one in overall(result, name) if one.baseline == baselines[0]]
            yield _compared(f"Untuned optimizers beside {baselines[0]}", found)
    if len(result.tasks) > _MANY and any(map(at_edge, result.curves)):
        yield _edges(result)
    if not baselines or any(task.distortion for task in result.tasks):
        yield _stability(result)
    if len(result.ranking) > 1:
        yield _ranking(result)


def names(result: EvaluationResult, *, baseline: bool = False, untuned: bool = False) -> list[str]:
    """The baselines, the untuned optimizers or else the learned ones of an evaluation, in the order of its plan."""
    found = (one.optimizer for one in result.curves if (one.baseline, one.untuned) == (baseline, untuned))
    return list(dict.fromkeys(found))


def horizons(tasks: Sequence[EvaluatedTask]) -> list[int]:
    """All T, in their order."""
    return list(dict.fromkeys(task.steps for task in tasks))


def overall(result: EvaluationResult, optimizer: str) -> list[Comparison]:
    """The comparisons of an optimizer over all cells of each T, and over all cells."""
    found = [one for one in result.comparisons if one.optimizer == optimizer and one.family is None]
    several = len(horizons(result.tasks)) > 1
    return [one for one in found if several or one.steps is None]


def at_edge(curves: Curves) -> bool:
    """Whether the best learning rate is the lowest or highest that was tried, so that a better one may be beyond."""
    tried = [one.learning_rate for one in curves.learning_rates]
    return bool(tried) and curves.learning_rate in (tried[0], tried[-1])


def number(loss: Loss) -> str:
    """A loss with four digits."""
    return "not finite" if loss is None else f"{loss:.4g}"


def _task(task: EvaluatedTask, curves: list[Curves], result: EvaluationResult) -> Table:
    table = Table(title=f"{task.label}: loss after {task.steps} steps, {result.seeds} seeds", title_justify="left")
    held_out = any(one.held_out for one in curves)
    columns = [
        "optimizer",
        "median",
        "quartiles",
        "diverged",
        "learning rate",
        *(["held out"] if held_out else []),
    ]
    for column in columns:
        table.add_column(column, justify="left" if column == "optimizer" else "right")
    for one in curves:
        rate = "" if one.learning_rate is None else f"{one.learning_rate:.3g}"
        if one.learning_rates:
            rate += f" of {len(one.learning_rates)}"
        table.add_row(
            one.optimizer,
            number(one.median[-1]),
            f"{number(one.lower_quartile[-1])} … {number(one.upper_quartile[-1])}",
            f"{one.divergence:.0%}",
            f"{rate}, the edge" if at_edge(one) else rate,
            *([number(median_held_out(one))] if held_out else []),
            style=None if one.baseline or one.untuned else "bold",
        )
    return table


def _by_task(result: EvaluationResult, optimizer: str, baseline: str) -> Table:
    """The ratio of one optimizer to one baseline on every task at every T, and over each family."""
    limit = math.exp(LARGEST_LOGARITHM)
    table = Table(
        title=f"{optimizer}: final loss as a multiple of that of {baseline}",
        title_justify="left",
        caption=f"at its best learning rate for each number of steps; held between {1 / limit:.2f} and {limit:.2f}",
        caption_justify="left",
    )
    table.add_column("task")
    every_horizon = horizons(result.tasks)
    for steps in every_horizon:
        table.add_column(f"{steps:,}", justify="right", no_wrap=True)
    rows: dict[str, dict[int, str]] = {}
    for cell in cells(result.tasks, result.curves, optimizer, baseline):
        rows.setdefault(cell.task.label, {})[cell.task.steps] = _ratio(geometric_mean([cell.logarithm]))
    for label, ratios in rows.items():
        table.add_row(label, *(ratios[steps] for steps in every_horizon))
    table.add_section()
    for family in dict.fromkeys(task.family for task in result.tasks):
        table.add_row(f"all of {family}", *family_ratios(result, optimizer, baseline, family))
    return table


def family_ratios(result: EvaluationResult, optimizer: str, baseline: str, family: str) -> Iterator[str]:
    """At each T."""
    for steps in horizons(result.tasks):
        found = cells(result.tasks, result.curves, optimizer, baseline, family, steps)
        yield _ratio(comparison(found).ratio)


def _compared(title: str, found: Sequence[Comparison]) -> Table:
    """With the optimizers where there are several."""
    several = len({one.optimizer for one in found}) > 1
    table = Table(
        title=title,
        title_justify="left",
        caption="ratio: of the final losses, below 1 is better; floored: what lies below a thousandth of the first "
        "loss hardly counts; held out: beside the baseline's best held-out loss",
        caption_justify="left",
        box=box.SIMPLE,
    )
    for column in [*(["optimizer"] if several else []), *COMPARED]:
        table.add_column(column, justify="left" if column in ("optimizer", "baseline") else "right", no_wrap=True)
    for one in found:
        row = [*([one.optimizer] if several else []), *compared(one)]
        table.add_row(*row, style="bold" if one.steps is None else None)
    return table


COMPARED = ("baseline", "steps", "ratio", "floored", "held out", "won", "speed-up")


def compared(one: Comparison) -> list[str]:
    """A comparison as the columns of `COMPARED`."""
    ties = f" +{one.ties}=" if one.ties else ""
    return [
        one.baseline,
        "all" if one.steps is None else f"{one.steps:,}",
        _ratio(one.ratio),
        _ratio(one.floored_ratio),
        "" if one.held_out_ratio is None else _ratio(one.held_out_ratio),
        f"{one.wins}{ties} of {one.cells}",
        f"{one.speed_up:.2f}",
    ]


def _ratio(ratio: float) -> str:
    return f"{ratio:.3f}"


def _edges(result: EvaluationResult) -> Table:
    table = Table(
        title="Best learning rates at the edge of their grid: a better one may lie beyond",
        title_justify="left",
        box=box.SIMPLE,
    )
    for column in ("task", "steps", "baseline", "rate", "tried"):
        table.add_column(column, justify="left" if column in ("task", "baseline") else "right")
    for one in filter(at_edge, result.curves):
        task = result.tasks[one.task]
        rate = f"{one.learning_rate:.3g}"
        table.add_row(task.label, f"{task.steps:,}", one.optimizer, rate, str(len(one.learning_rates)))
    return table


def _stability(result: EvaluationResult) -> Table:
    everyone = list(dict.fromkeys(one.optimizer for one in result.curves))
    table = Table(title="Inner loops that diverged", title_justify="left", box=box.SIMPLE)
    table.add_column("condition")
    for column in ("runs", *everyone):
        table.add_column(column, justify="right")
    found = [stability.tallies(result, name) for name in everyone]
    for condition, first in found[0].items():
        table.add_row(condition, f"{first.runs:,}", *(f"{one[condition].diverged:,}" for one in found))
    totals = [stability.total(result, name) for name in everyone]
    table.add_row("all", f"{totals[0].runs:,}", *(f"{one.diverged:,}" for one in totals), style="bold")
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
    learned = names(result)
    for place, line in enumerate(result.ranking, start=1):
        table.add_row(
            str(place),
            line.optimizer,
            f"{line.score:.3g}",
            f"{line.wins} of {len(result.tasks)}",
            f"{line.divergence:.0%}",
            style="bold" if line.optimizer in learned else None,
        )
    return table
