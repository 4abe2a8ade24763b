"""An evaluation as tables in Markdown, for a page of documentation."""

from collections.abc import Iterator, Sequence

from optserve.wire.evaluations import Curves, EvaluationResult
from optserve_server.evaluation import stability
from optserve_server.evaluation.summaries import median_held_out
from optserve_server.evaluation.tables import (
    COMPARED,
    at_edge,
    compared,
    family_ratios,
    horizons,
    names,
    number,
    overall,
)


def document(result: EvaluationResult) -> str:
    """Comparisons with each baseline, by family with the first one, and every cell."""
    every_horizon = [f"{steps:,}" for steps in horizons(result.tasks)]
    count = len(result.tasks) // len(every_horizon)
    parts = [f"{count} tasks, {', '.join(every_horizon)} steps, {result.seeds} seeds.\n"]
    if names(result, baseline=True):
        parts += _comparisons(result)
        parts += _families(result, every_horizon)
    if any(task.distortion for task in result.tasks):
        parts += _stability(result)
    parts += _cells(result)
    return "\n".join(parts)


def _comparisons(result: EvaluationResult) -> Iterator[str]:
    yield "**Beside each baseline, tuned for each task and number of steps**\n"
    columns = ("optimizer", *COMPARED, "runs won", "diverged")
    rows = (
        [name, *compared(one), f"{one.runs_won:.0%}", f"{one.divergence:.1%}"]
        for name in [*names(result), *names(result, untuned=True)]
        for one in overall(result, name)
    )
    yield from _table(columns, rows)


def _families(result: EvaluationResult, every_horizon: Sequence[str]) -> Iterator[str]:
    baseline = names(result, baseline=True)[0]
    yield f"**By family: final loss as a multiple of that of {baseline}**\n"
    rows = (
        [name, family, *family_ratios(result, name, baseline, family)]
        for name in names(result)
        for family in dict.fromkeys(task.family for task in result.tasks)
    )
    yield from _table(("optimizer", "family", *every_horizon), rows)


def _stability(result: EvaluationResult) -> Iterator[str]:
    yield "**Inner loops that diverged**\n"
    everyone = list(dict.fromkeys(one.optimizer for one in result.curves))
    yield from _table(("condition", *everyone), stability.by_condition(result, everyone))


def _cells(result: EvaluationResult) -> Iterator[str]:
    everyone = [*names(result), *names(result, baseline=True), *names(result, untuned=True)]
    by_cell = {(one.task, one.optimizer): one for one in result.curves}
    yield "**Median final losses**, and behind them the held-out ones; with a baseline's best learning rate, and * if"
    yield "that is the lowest or highest that was tried, or the default one of an untuned optimizer\n"
    rows = (
        [f"`{task.label}`", f"{task.steps:,}", *(_cell(by_cell[place, name]) for name in everyone)]
        for place, task in enumerate(result.tasks)
    )
    yield from _table(("task", "steps", *everyone), rows)


def _cell(curves: Curves) -> str:
    held_out = f" / {number(median_held_out(curves))}" if curves.held_out else ""
    rate = "" if curves.learning_rate is None else f" ({curves.learning_rate:.3g}{'*' * at_edge(curves)})"
    return f"{number(curves.median[-1])}{held_out}{rate}"


def _table(columns: Sequence[str], rows: Iterator[list[str]]) -> Iterator[str]:
    yield f"| {' | '.join(columns)} |"
    yield f"|{'---|' * len(columns)}"
    for row in rows:
        yield f"| {' | '.join(row)} |"
    yield ""
