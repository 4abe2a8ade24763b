"""Outer steps of `hierarchical` by noise-reuse evolution strategies on one core: by its kernel, against its module.

The tasks are small: perceptrons on digits and on clusters, and quadratics. All that an outer step does is in the time,
and both draw the same tasks, minibatches and perturbations. Five trajectories of eight tasks each go 20 steps further
with 16 particles a task, so that an outer step is 12,800 inner steps.
"""

import os
from collections.abc import Callable
from typing import Any

import torch

from benchmarks.measuring import Speed, in_turn, write
from optserve_server.metatraining import particles, recipes
from optserve_server.metatraining.outer_loop import OuterLoop

ROUNDS, WARM_UP = 20, 15  # outer steps; in the first ones f and ∇f are traced
INNER_STEPS = 5 * 8 * 16 * 20
AT_LEAST = 3.0

RECIPE: dict[str, Any] = {
    "name": "benchmark",
    "architecture": {"kind": "hierarchical"},
    "tasks": [
        {
            "family": "digits-mlp",
            "weight": 2.0,
            "parameters": {"hidden_sizes": [16], "activation": "relu", "batch_size": 16},
        },
        {"family": "digits-mlp", "parameters": {"hidden_sizes": [12, 12], "activation": "tanh", "batch_size": 32}},
        {"family": "clusters-mlp"},
        {"family": "noisy-quadratic", "parameters": {"dimension": 20, "noise": 0.1}},
        {"family": "quadratic"},
    ],
    "unroll": {
        "steps": {"low": 40, "high": 200, "power": 2.0},
        "truncation": 20,
        "trajectories": 10,
        "advance": 5,
    },
    "meta_loss": {"kind": "log"},
    "gradient": {"estimator": "nres", "sigma": 0.02, "pairs": 8, "unit_norm": True},
    "meta_optimizer": {"kind": "adam", "learning_rate": 0.003, "outer_steps": 10**6, "tasks_per_outer_step": 40},
    "checkpoints": {"every": 10**6},
}


def main() -> None:
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:1])
    torch.set_num_threads(1)
    fits = particles.fits_hierarchy
    by_kernel, by_module = _outer_steps(fits), _outer_steps(lambda *_: False)
    ours, theirs = in_turn(by_kernel, by_module, rounds=ROUNDS, warm_up=WARM_UP)
    name = "nres of hierarchical, 1 core"
    write(
        "evolution",
        [Speed(name, "kernel", "module", "inner steps", INNER_STEPS / ours, INNER_STEPS / theirs, AT_LEAST)],
    )


def _outer_steps(fits: Callable[..., bool]) -> Callable[[], object]:
    outer_steps = iter(OuterLoop(recipes.parse(RECIPE), device="cpu"))

    def outer_step() -> object:
        particles.fits_hierarchy = fits
        return next(outer_steps)

    return outer_step


if __name__ == "__main__":
    main()
