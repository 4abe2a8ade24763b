"""Optimizers beside baselines at their best learning rates, over many tasks and several T."""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from optserve.wire.evaluations import Comparison, Curves, EvaluatedTask, Loss
from optserve_server.evaluation.summaries import Losses, quantile, smallest_loss

LARGEST_LOGARITHM = 1.5
"""Of a ratio: one task on which all goes well, or wrong, must not decide."""
FLOOR = 1e-3
"""What is added to both losses of a floored ratio, as a share of the initial loss."""
_SMOOTHED = 20  # a point of a curve becomes the mean of so many-th of all points, up to itself


@dataclass(frozen=True)
class Cell:
    """An optimizer and a baseline on one task at one T."""

    task: EvaluatedTask
    own: Curves
    baseline: Curves

    @property
    def logarithm(self) -> float:
        """Of the ratio of the final losses."""
        return _logarithm(self._final(self.own), self._final(self.baseline), self._smallest)

    @property
    def floored(self) -> float:
        """Of the ratio with the floor added to both."""
        floor = FLOOR * abs(self.own.median[0] or 0.0)
        return _logarithm(self._final(self.own) + floor, self._final(self.baseline) + floor, self._smallest)

    @property
    def held_out(self) -> float | None:
        """Of the ratio of the held-out losses, where the task has them."""
        if not self.own.held_out or not self.baseline.best_held_out:
            return None
        own, baseline = (_median(losses) for losses in (self.own.held_out, self.baseline.best_held_out))
        return _logarithm(own, baseline, self._smallest)

    @property
    def runs(self) -> Iterator[float]:
        """For each seed 1 where the optimizer ends lower, ½ for a tie, and 0."""
        for own, baseline in zip(self.own.losses, self.baseline.losses, strict=True):
            logarithm = _logarithm(_number(own[-1]), _number(baseline[-1]), self._smallest)
            yield 0.5 if logarithm == 0 else float(logarithm < 0)

    @property
    def speed_up(self) -> float:
        """Steps that the baseline needs to where the worse of the two ends, divided by those of the optimizer."""
        own, baseline = (_levels(curves, self._smallest) for curves in (self.own, self.baseline))
        target = max(own[-1], baseline[-1])
        return _reached(baseline, self.baseline.steps, target) / _reached(own, self.own.steps, target)

    @cached_property
    def _smallest(self) -> float:
        return smallest_loss(self.own.median[0])

    @staticmethod
    def _final(curves: Curves) -> float:
        return _number(curves.median[-1])


def cells(
    tasks: Sequence[EvaluatedTask],
    curves: Iterable[Curves],
    optimizer: str,
    baseline: str,
    family: str | None = None,
    steps: int | None = None,
) -> list[Cell]:
    """The cells of two optimizers, of one family and T where they are given."""
    chosen = {
        number: task
        for number, task in enumerate(tasks)
        if family in (None, task.family) and steps in (None, task.steps)
    }
    by_name: dict[str, dict[int, Curves]] = {optimizer: {}, baseline: {}}
    for one in curves:
        if one.optimizer in by_name:
            by_name[one.optimizer][one.task] = one
    return [Cell(task, by_name[optimizer][number], by_name[baseline][number]) for number, task in chosen.items()]


def compare(tasks: Sequence[EvaluatedTask], curves: Sequence[Curves]) -> list[Comparison]:
    """Of every optimizer and baseline with every other baseline: over all cells, of each T, and of each family."""
    kinds = {one.optimizer: one.baseline for one in curves}
    horizons = list(dict.fromkeys(task.steps for task in tasks))
    families = list(dict.fromkeys(task.family for task in tasks))
    parts: list[tuple[str | None, int | None]] = [(None, None)]
    parts += [(None, steps) for steps in horizons] + [(family, None) for family in families]
    return [
        comparison(cells(tasks, curves, name, baseline, *part), *part)
        for name in kinds
        for baseline in kinds
        if kinds[baseline] and name != baseline
        for part in parts
    ]


def comparison(found: Sequence[Cell], family: str | None = None, steps: int | None = None) -> Comparison:
    """What some cells amount to, of which there is at least one."""
    logarithms = [cell.logarithm for cell in found]
    held_out = [logarithm for cell in found if (logarithm := cell.held_out) is not None]
    return Comparison(
        optimizer=found[0].own.optimizer,
        baseline=found[0].baseline.optimizer,
        family=family,
        steps=steps,
        cells=len(found),
        ratio=geometric_mean(logarithms),
        floored_ratio=geometric_mean([cell.floored for cell in found]),
        wins=sum(logarithm < 0 for logarithm in logarithms),
        ties=sum(logarithm == 0 for logarithm in logarithms),
        runs_won=_mean([run for cell in found for run in cell.runs]),
        speed_up=_digits(interquartile_mean([cell.speed_up for cell in found])),
        held_out_ratio=geometric_mean(held_out) if held_out else None,
        held_out_cells=len(held_out),
        divergence=_mean([cell.own.divergence for cell in found]),
    )


def geometric_mean(logarithms: Sequence[float]) -> float:
    """From the logarithms."""
    return _digits(math.exp(sum(logarithms) / len(logarithms)))


def interquartile_mean(values: Sequence[float]) -> float:
    """The mean without the lowest and the highest quarter, rounded down (Agarwal et al. 2021, arXiv 2108.13264)."""
    ordered = sorted(values)
    cut = len(ordered) // 4
    return float(np.mean(ordered[cut : len(ordered) - cut]))


def _logarithm(loss: float, other: float, smallest: float) -> float:
    """ln(loss/other) within its limits; an infinite loss is at the limit, and two are level."""
    if loss == other:
        return 0.0
    if math.isinf(loss) or math.isinf(other):
        return math.copysign(LARGEST_LOGARITHM, loss - other)
    logarithm = math.log(max(loss, smallest) / max(other, smallest))
    return min(max(logarithm, -LARGEST_LOGARITHM), LARGEST_LOGARITHM)


def _levels(curves: Curves, smallest: float) -> Losses:
    """The logarithms of the median curve, each the mean over the points shortly before it."""
    losses = np.array([_number(loss) for loss in curves.median])
    logarithms = np.log(np.clip(losses, smallest, 1e300))
    width = max(1, len(losses) // _SMOOTHED)
    sums = np.cumsum(np.concatenate([[0.0], logarithms]))
    last = np.arange(1, len(losses) + 1)
    first = np.maximum(last - width, 0)
    means: Losses = (sums[last] - sums[first]) / (last - first)
    return means


def _reached(levels: Losses, steps: Sequence[int], target: float) -> int:
    """The first step at which a curve is as low as `target`, at least 1; T, if it began there and has not got lower."""
    if levels[0] <= target:
        return 1 if levels[-1] < target else steps[-1]
    return steps[int(np.argmax(levels <= target))]


def _median(losses: Sequence[Loss]) -> float:
    return float(quantile(np.array([_number(loss) for loss in losses]), 0.5))


def _number(loss: Loss) -> float:
    return math.inf if loss is None else loss


def _mean(values: Sequence[float]) -> float:
    return _digits(sum(values) / len(values))


def _digits(value: float) -> float:
    return float(f"{value:.5g}")
