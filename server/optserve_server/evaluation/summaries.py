"""What the curves of several seeds amount to. A loss that is not finite counts as infinite throughout."""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from optserve.wire.evaluations import Curves, EvaluatedTask, Loss, Rank

Losses = NDArray[np.float64]

DIVERGED = 0.05
"""By what share of the initial loss the final one may be above it: on noise alone it may be, a little."""
LARGEST_RATIO = 100.0
SOLVED = 1e-6
"""In a ratio, losses below this share of θ_0's count as that much: both optimizers have solved the task."""
_SMALLEST_LOSS = 1e-12  # that a loss counts as, where θ_0's is not above 0


def quantile(losses: Losses, share: float) -> Losses:
    """A quantile over the first axis, the seeds, linear between neighbours."""
    ordered = np.sort(np.where(np.isfinite(losses), losses, np.inf), axis=0)
    position = share * (len(ordered) - 1)
    low, high, rest = ordered[math.floor(position)], ordered[math.ceil(position)], position % 1
    with np.errstate(invalid="ignore"):  # ∞ − ∞, which is not taken
        between = low + rest * (high - low)
    found: Losses = np.where(low == high, low, between)
    return found


def divergence(initial: Losses, final: Losses) -> float:
    """The share of seeds whose final loss is not finite, or above the initial one by more than a twentieth of it."""
    return float(np.mean(~np.isfinite(final) | (final > initial + DIVERGED * np.abs(initial))))


def to_json(losses: Losses) -> list[Loss]:
    """Numbers with seven digits, and None for those that are not finite."""
    return [float(f"{loss:.7g}") if math.isfinite(loss) else None for loss in losses.tolist()]


def final_loss(curves: Curves) -> float:
    """The median over seeds at the end."""
    last = curves.median[-1]
    return math.inf if last is None else last


def median_held_out(curves: Curves) -> Loss:
    """The median over seeds of the held-out loss; None where it is not finite, or there is none."""
    if not curves.held_out:
        return None
    losses = np.array([math.inf if loss is None else loss for loss in curves.held_out])
    (median,) = to_json(quantile(losses[:, np.newaxis], 0.5))
    return median


def rank(tasks: Sequence[EvaluatedTask], curves: Sequence[Curves]) -> list[Rank]:
    """The ranking over all tasks, the best first; without baselines, against the best optimizer of each task."""
    names = dict.fromkeys(one.optimizer for one in curves)
    by_name = {name: [one for one in curves if one.optimizer == name] for name in names}
    ranking = [_rank(name, by_name[name], tasks, curves) for name in names]
    return sorted(ranking, key=lambda line: (line.score, line.divergence))


def smallest_loss(initial: Loss) -> float:
    """What a loss counts as at least, in a ratio: the task is solved there."""
    return max(SOLVED * (initial or 0.0), _SMALLEST_LOSS)


def _rank(name: str, own: Sequence[Curves], tasks: Sequence[EvaluatedTask], curves: Sequence[Curves]) -> Rank:
    logarithms, weights, wins = 0.0, 0.0, 0
    for one in own:
        rivals = [other for other in curves if other.task == one.task]
        references = [other for other in rivals if other.baseline] or rivals
        loss = final_loss(one)
        ratio = _ratio(loss, min(map(final_loss, references)), one.median[0])
        weight = tasks[one.task].weight
        logarithms, weights = logarithms + weight * math.log(ratio), weights + weight
        wins += math.isfinite(loss) and loss <= min(map(final_loss, rivals))
    return Rank(
        optimizer=name,
        baseline=own[0].baseline,
        score=float(f"{math.exp(logarithms / weights):.6g}"),
        wins=wins,
        divergence=sum(one.divergence for one in own) / len(own),
    )


def _ratio(loss: float, best: float, initial: Loss) -> float:
    if math.isinf(loss):
        return LARGEST_RATIO
    smallest = smallest_loss(initial)
    ratio = max(loss, smallest) / max(best, smallest)
    return min(max(ratio, 1 / LARGEST_RATIO), LARGEST_RATIO)
