"""Baselines: hand-designed optimizers, each at the best of a grid of learning rates."""

from collections.abc import Generator, Mapping
from dataclasses import dataclass

import torch

from optserve.wire.evaluations import TriedLearningRate
from optserve_server.evaluation import inner_loops
from optserve_server.evaluation.plans import Plan
from optserve_server.evaluation.summaries import Losses, divergence, quantile, to_json
from optserve_server.metatraining.tables import TaskShare
from optserve_server.optimizers import build, hyperparameters

FACTOR = 10 ** (1 / 3)
"""Between neighbouring learning rates."""

_REACH = 3  # to either side of PyTorch's default: seven rates to begin with
_GROWTH = 3  # how many more at the edge where the best one is
_MOST = 25  # with which the grid grows no more


@dataclass(frozen=True, slots=True)
class Tuned:
    """A baseline on one task: its losses at its best learning rate, `[seeds, points]`, and how all of them ended."""

    learning_rate: float
    losses: Losses
    tried: list[TriedLearningRate]


def tune(task: TaskShare, kind: str, plan: Plan, device: torch.device = inner_loops.CPU) -> Generator[int, None, Tuned]:
    """Try a grid round PyTorch's default, which grows as long as it has to; yields steps made.

    It grows while the best rate is at its edge, and upwards while the highest rate still lowers the loss: beyond a
    plateau there may be a better one. The best is that of the lowest median over seeds of the final loss; the lowest
    of equal ones.
    """
    # Updates are proportional to the learning rate, so that all rates are tried at once by multiplying.
    optimizer = build({"kind": kind, "lr": 1.0})
    default = hyperparameters(build({"kind": kind}))["lr"]
    losses: dict[int, Losses] = {}
    exponents = list(range(-_REACH, _REACH + 1))
    while exponents:
        rates = [_rate(default, exponent) for exponent in exponents]
        found = yield from inner_loops.run(task, optimizer, {}, plan, rates, device)
        losses.update(zip(exponents, found, strict=True))
        best = min(sorted(losses), key=lambda exponent: _median(losses[exponent][:, -1]))
        exponents = _beyond(losses, best)
    tried = [_tried(_rate(default, exponent), losses[exponent]) for exponent in sorted(losses)]
    return Tuned(_rate(default, best), losses[best], tried)


def _rate(default: float, exponent: int) -> float:
    return float(f"{default * FACTOR**exponent:.3g}")


def _beyond(losses: Mapping[int, Losses], best: int) -> list[int]:
    """What the grid grows by; nothing where it is wide enough."""
    lowest, highest = min(losses), max(losses)
    if len(losses) >= _MOST:
        return []
    below = range(lowest - _GROWTH, lowest) if best == lowest else ()
    still_falls = _median(losses[highest][:, -1]) < _median(losses[highest][:, 0])
    above = range(highest + 1, highest + 1 + _GROWTH) if best == highest or still_falls else ()
    return [*below, *above]


def _median(losses: Losses) -> float:
    """Over seeds, of losses `[seeds]`."""
    return float(quantile(losses, 0.5))


def _tried(rate: float, losses: Losses) -> TriedLearningRate:
    (median,) = to_json(quantile(losses[:, -1:], 0.5))
    return TriedLearningRate(rate, median, divergence(losses[:, 0], losses[:, -1]))
