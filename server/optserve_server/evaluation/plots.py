"""Pictures of an evaluation.

The curves: a panel a task, a line an optimizer, with the quartiles over seeds as a band. The overview: a row a task, a
dot an optimizer.
"""

import itertools
import math
import textwrap
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from optserve.wire.evaluations import Curves, EvaluationResult, Loss
from optserve_server.evaluation.comparisons import LARGEST_LOGARITHM, cells, geometric_mean
from optserve_server.evaluation.summaries import Losses, median_held_out
from optserve_server.evaluation.tables import horizons, names

FORMATS = (".svg", ".png")

_COLUMNS = 3
_PANEL = (5.2, 3.6)  # inches
_TICKS = (0.25, 0.5, 1, 2, 4)  # that the overview's axis names
_LARGEST_RATIO = 1.1 * math.exp(LARGEST_LOGARITHM)
_LOWEST = 1e-12  # of the logarithmic axis: below it a loss is rounding


def plot(result: EvaluationResult, file: Path) -> None:
    """Draw all tasks into an SVG or PNG file; where there are several T, a row a task and a column a T.

    Learned optimizers are drawn solid and bold, baselines dashed, untuned ones dotted; a curve ends where its median
    is no longer finite. A cross at T is the median of the held-out losses.
    """
    every_horizon = horizons(result.tasks)
    columns = 2 if len(result.tasks) == 4 else min(_COLUMNS, len(result.tasks))
    columns = len(every_horizon) if len(every_horizon) > 1 else columns
    rows = math.ceil(len(result.tasks) / columns)
    with _figure(file, rows, columns, (_PANEL[0] * columns, _PANEL[1] * rows)) as panels:
        colours = _colours(result)
        for number, task in enumerate(result.tasks):
            curves = [one for one in result.curves if one.task == number]
            _panel(panels[number], task.label, curves, colours)
        for panel in panels[len(result.tasks) :]:
            panel.set_axis_off()


def overview(result: EvaluationResult, file: Path) -> None:
    """Draw, for each T, the ratio of every optimizer's final loss to that of the first baseline, on every task.

    Below it those of held-out losses, on the tasks that have them. Left of the line an optimizer is better. Learned
    ones are filled, others are not. There has to be a baseline.
    """
    parts = {"final loss": _labels(result), "held-out loss": _labels(result, held_out=True)}
    rows = {what: labels for what, labels in parts.items() if labels}
    every_horizon, beside = horizons(result.tasks), 0.16 * len(_colours(result)) + 0.9  # the legend and the axis
    heights = [0.27 * len(labels) + beside for labels in rows.values()]
    size = (4.6 * len(every_horizon) + 3.4, sum(heights))
    with _figure(file, len(rows), len(every_horizon), size, sharey="row", height_ratios=heights) as panels:
        for row, (what, labels) in enumerate(rows.items()):
            of_row = panels[row * len(every_horizon) : (row + 1) * len(every_horizon)]
            for axes, steps in zip(of_row, every_horizon, strict=True):
                _ratios(axes, result, what, labels, steps)
            of_row[0].set_yticks(range(len(labels)), [textwrap.fill(one, 60) for one in labels], fontsize=6)
            of_row[0].invert_yaxis()


def _labels(result: EvaluationResult, *, held_out: bool = False) -> list[str]:
    """Of all tasks, or of those with held-out losses."""
    having = {one.task for one in result.curves if one.held_out or not held_out}
    return list(dict.fromkeys(task.label for number, task in enumerate(result.tasks) if number in having))


def _ratios(axes: Any, result: EvaluationResult, what: str, labels: Sequence[str], steps: int) -> None:
    """One T: a row a task, a dot an optimizer, a dotted line for the mean of each."""
    reference, *others = names(result, baseline=True)
    learned, colours = names(result), _colours(result)
    for name in [*others, *names(result, untuned=True), *learned]:
        found = cells(result.tasks, result.curves, name, reference, steps=steps)
        pairs = [(cell, cell.logarithm if what == "final loss" else cell.held_out) for cell in found]
        shown = [(labels.index(cell.task.label), logarithm) for cell, logarithm in pairs if logarithm is not None]
        mean = geometric_mean([logarithm for _, logarithm in shown])
        axes.scatter(
            [math.exp(logarithm) for _, logarithm in shown],
            [place for place, _ in shown],
            facecolors=colours[name] if name in learned else "none",
            edgecolors=colours[name],
            label=f"{name}, mean {mean:.2f}",
        )
        axes.axvline(mean, color=colours[name], linewidth=0.8, linestyle=":")
    axes.axvline(1.0, color="black", linewidth=0.8)
    axes.set_xscale("log")
    axes.set_xticks(_TICKS, [f"{ratio:g}" for ratio in _TICKS], minor=False)
    axes.set_xticks([], minor=True)
    axes.set_xlim(1 / _LARGEST_RATIO, _LARGEST_RATIO)
    axes.set_xlabel(f"{steps:,} steps: {what} / that of {reference}")
    axes.grid(axis="y", alpha=0.3)
    axes.legend(fontsize=7, loc="lower center", bbox_to_anchor=(0.5, 1.0))


@contextmanager
def _figure(file: Path, rows: int, columns: int, size: tuple[float, float], **options: Any) -> Iterator[Any]:
    """Axes to draw on, `[rows·columns]`, which are then written."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    mpl.rcParams["svg.hashsalt"] = "optserve"  # equal pictures have equal bytes
    figure, axes = plt.subplots(rows, columns, figsize=size, layout="constrained", squeeze=False, **options)
    yield axes.flatten()
    metadata = {"Date": None} if file.suffix.lower() == ".svg" else {}
    figure.savefig(file, dpi=100, metadata=metadata)
    plt.close(figure)


def _colours(result: EvaluationResult) -> dict[str, str]:
    everyone = list(dict.fromkeys(one.optimizer for one in result.curves))
    colours = (f"C{number}" for number in range(10)) if len(everyone) <= 10 else _twenty()
    return dict(zip(everyone, itertools.cycle(colours), strict=False))


def _twenty() -> Iterator[str]:
    from matplotlib import colormaps, colors

    return (colors.to_hex(colour) for colour in colormaps["tab20"].colors)  # type: ignore[attr-defined]


def _panel(axes: Any, title: str, curves: Sequence[Curves], colours: dict[str, str]) -> None:
    for one in curves:
        steps, median = np.array(one.steps), _array(one.median)
        hand_designed = {"linestyle": ":" if one.untuned else "--", "linewidth": 1.3}
        style = hand_designed if one.baseline or one.untuned else {"linewidth": 2.2}
        label = one.optimizer if one.learning_rate is None else f"{one.optimizer}, lr {one.learning_rate:.3g}"
        axes.plot(steps, median, color=colours[one.optimizer], label=label, **style)
        low, high = _array(one.lower_quartile), _array(one.upper_quartile)
        axes.plot(steps[-1], _array([median_held_out(one)]), color=colours[one.optimizer], marker="x", clip_on=False)
        axes.fill_between(steps, low, high, color=colours[one.optimizer], alpha=0.12, linewidth=0)
    axes.set_yscale("log")
    axes.set_ylim(*_limits(curves))
    axes.set_title(textwrap.fill(title, 58), fontsize=10)
    axes.set(xlabel="step", ylabel="loss")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)


def _limits(curves: Sequence[Curves]) -> tuple[float, float]:
    """From the lowest median to somewhat above the highest at θ_0, so that what diverges leaves the picture."""
    medians = np.stack([_array(one.median) for one in curves])
    return float(np.nanmin(medians)) / 1.5, float(np.nanmax(medians[:, 0])) * 3


def _array(losses: Sequence[Loss]) -> Losses:
    return np.array([math.nan if loss is None else max(loss, _LOWEST) for loss in losses])
