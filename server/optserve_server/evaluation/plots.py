"""A picture of an evaluation: a panel a task, a line an optimizer, with the quartiles over seeds as a band."""

import math
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from optserve.wire.evaluations import Curves, EvaluationResult, Loss
from optserve_server.evaluation.summaries import Losses

FORMATS = (".svg", ".png")

_COLUMNS = 3
_PANEL = (5.2, 3.6)  # inches
_LOWEST = 1e-12  # of the logarithmic axis: below it a loss is rounding


def plot(result: EvaluationResult, file: Path) -> None:
    """Draw all tasks into an SVG or PNG file.

    Learned optimizers are drawn solid and bold, baselines dashed; a curve ends where its median is no longer finite.
    """
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    mpl.rcParams["svg.hashsalt"] = "optserve"  # equal pictures have equal bytes
    columns = 2 if len(result.tasks) == 4 else min(_COLUMNS, len(result.tasks))
    rows = math.ceil(len(result.tasks) / columns)
    figure, axes = plt.subplots(
        rows, columns, figsize=(_PANEL[0] * columns, _PANEL[1] * rows), layout="constrained", squeeze=False
    )
    colours = {line: f"C{number}" for number, line in enumerate(dict.fromkeys(one.optimizer for one in result.curves))}
    panels = axes.flatten()
    for number, task in enumerate(result.tasks):
        curves = [one for one in result.curves if one.task == number]
        _panel(panels[number], task.label, curves, colours)
    for panel in panels[len(result.tasks) :]:
        panel.set_axis_off()
    metadata = {"Date": None} if file.suffix.lower() == ".svg" else {}
    figure.savefig(file, dpi=100, metadata=metadata)
    plt.close(figure)


def _panel(axes: Any, title: str, curves: Sequence[Curves], colours: dict[str, str]) -> None:
    for one in curves:
        steps, median = np.array(one.steps), _array(one.median)
        style = {"linestyle": "--", "linewidth": 1.3} if one.baseline else {"linewidth": 2.2}
        label = one.optimizer if one.learning_rate is None else f"{one.optimizer}, lr {one.learning_rate:.3g}"
        axes.plot(steps, median, color=colours[one.optimizer], label=label, **style)
        low, high = _array(one.lower_quartile), _array(one.upper_quartile)
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
