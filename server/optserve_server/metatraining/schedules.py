"""Schedules of β, the outer loop's learning rate."""

import math

from optserve_server.metatraining.tables import MetaOptimizer


def learning_rate(settings: MetaOptimizer, outer_step: int) -> float:
    """β of the `outer_step`-th outer step, counted from 1.

    It rises in a straight line in the first `warm_up` outer steps, which reach `learning_rate`, and then goes towards
    `final_learning_rate`, which the step after the last would have.
    """
    first, final = settings.learning_rate, settings.final_learning_rate
    if outer_step <= settings.warm_up:
        return first * outer_step / settings.warm_up
    share = min(1.0, (outer_step - 1 - settings.warm_up) / (settings.outer_steps - settings.warm_up))
    if settings.schedule == "linear":
        return first + (final - first) * share
    if settings.schedule == "cosine":
        return final + (first - final) * (1 + math.cos(math.pi * share)) / 2
    if settings.schedule == "exponential":
        return float(first * (final / first) ** share)
    return first
