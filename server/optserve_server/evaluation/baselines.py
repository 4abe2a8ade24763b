"""Baselines: hand-designed optimizers, each at the best of a grid of learning rates, for every T anew."""

from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass

import torch

from optserve.wire.evaluations import Loss, TriedLearningRate
from optserve_server.evaluation import inner_loops
from optserve_server.evaluation.inner_loops import Measured
from optserve_server.evaluation.plans import Plan, PlannedTask
from optserve_server.evaluation.rules import BASELINES, Rule
from optserve_server.evaluation.summaries import SOLVED, Losses, divergence, quantile, to_json

FACTOR = 10 ** (1 / 3)
"""Between neighbouring learning rates."""

_REACH = 4  # to either side of the middle
_GROWTH = 3  # how many more at the edge where the best one is
_MOST = 25  # with which the grid grows no more

FIRST_RATES = 2 * _REACH + 1
"""How many are tried at once, to begin with."""

Found = dict[int, Measured]
"""What came of each rate of the grid, by its exponent."""


@dataclass(frozen=True, slots=True)
class Tuned:
    """A baseline on one task for one T: what came of its best learning rate, and how all of them ended.

    The best rate is that of the lowest median over seeds of the final loss. `held_out_rate` is that of the lowest
    median of the held-out loss, which is `best_held_out`, `[seeds]`; None where the task has no other rows.
    """

    learning_rate: float
    losses: Losses  # [seeds, points]
    tried: list[TriedLearningRate]
    held_out: Losses | None = None  # [seeds], at the learning rate
    held_out_rate: float | None = None
    best_held_out: Losses | None = None


def tune(
    task: PlannedTask, name: str, plan: Plan, device: torch.device = inner_loops.CPU
) -> Generator[int, None, list[Tuned]]:
    """Tune a baseline for each horizon of the plan; yields steps made.

    All horizons are points of the same inner loops, unless the baseline knows T.
    """
    rule = BASELINES[name]
    if not rule.knows_horizon:
        return (yield from _tune(task, rule, plan, plan.horizons, device))
    tuned: list[Tuned] = []
    for horizon in plan.horizons:
        tuned += yield from _tune(task, rule, plan, (horizon,), device)
    return tuned


def _tune(
    task: PlannedTask, rule: Rule, plan: Plan, horizons: Sequence[int], device: torch.device
) -> Generator[int, None, list[Tuned]]:
    """Try a grid round the rule's middle, which grows as long as it has to for any of the horizons.

    It grows while a best rate is at its edge, and upwards while no rate solves the task and the highest one still
    lowers the loss: beyond a plateau there may be a better one. Of equally good rates the lowest is the best.
    """
    found: list[Found] = [{} for _ in horizons]
    exponents = list(range(-_REACH, _REACH + 1))
    while exponents:
        rates = [_rate(rule, exponent) for exponent in exponents]
        measured = yield from inner_loops.run(task, rule, plan, horizons, rates, device)
        for at_horizon, of_rates in zip(found, measured, strict=True):
            at_horizon.update(zip(exponents, _split(of_rates), strict=True))
        exponents = sorted(set().union(*map(_beyond, found)))
    return [_tuned(rule, at_horizon) for at_horizon in found]


def _split(measured: Measured) -> list[Measured]:
    """What came of each rate: losses `[seeds, points]` and held-out losses `[seeds]`."""
    held_out = [None] * len(measured.losses) if measured.held_out is None else measured.held_out
    return [Measured(*each) for each in zip(measured.losses, held_out, strict=True)]


def _rate(rule: Rule, exponent: int) -> float:
    return float(f"{rule.middle * FACTOR**exponent:.3g}")


def _tuned(rule: Rule, found: Found) -> Tuned:
    tried = [_tried(_rate(rule, exponent), found[exponent]) for exponent in sorted(found)]
    best, best_held_out = _best(found), _best_held_out(found)
    at_best = found[best]
    if best_held_out is None:
        return Tuned(_rate(rule, best), at_best.losses, tried)
    held_out_rate = _rate(rule, best_held_out)
    return Tuned(
        *(_rate(rule, best), at_best.losses, tried, at_best.held_out),
        held_out_rate,
        found[best_held_out].held_out,
    )


def _best(found: Mapping[int, Measured]) -> int:
    return min(sorted(found), key=lambda exponent: _final(found[exponent]))


def _final(measured: Measured) -> float:
    """The median final loss, or 0 where the task is solved, for then a higher rate is no better."""
    first, last = _median(measured.losses[:, 0]), _median(measured.losses[:, -1])
    return 0.0 if 0 <= last <= SOLVED * first else last


def _best_held_out(found: Mapping[int, Measured]) -> int | None:
    medians = {exponent: _median(one.held_out) for exponent, one in found.items() if one.held_out is not None}
    return min(sorted(medians), key=medians.__getitem__, default=None)


def _beyond(found: Mapping[int, Measured]) -> set[int]:
    """What the grid grows by; nothing where it is wide enough."""
    if len(found) >= _MOST:
        return set()
    lowest, highest = min(found), max(found)
    best = {_best(found), _best_held_out(found)}
    solved = _final(found[_best(found)]) == 0
    still_falls = not solved and _final(found[highest]) < _median(found[highest].losses[:, 0])
    below = range(lowest - _GROWTH, lowest) if lowest in best else ()
    above = range(highest + 1, highest + 1 + _GROWTH) if highest in best or still_falls else ()
    return {*below, *above}


def _median(losses: Losses) -> float:
    """Over seeds, of losses `[seeds]`."""
    return float(quantile(losses, 0.5))


def _tried(rate: float, measured: Measured) -> TriedLearningRate:
    losses, held_out = measured.losses, measured.held_out
    median = _json_median(losses[:, -1])
    return TriedLearningRate(
        rate, median, divergence(losses[:, 0], losses[:, -1]), None if held_out is None else _json_median(held_out)
    )


def _json_median(losses: Losses) -> Loss:
    (median,) = to_json(quantile(losses[:, None], 0.5))
    return median
