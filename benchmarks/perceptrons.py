"""f and ∇f of small perceptrons on one core: by their kernel, against PyTorch's operations, traced.

Eight tasks with 16 particles each, as an evolution strategy has them: 128 inner loops, each with a θ of its own.
"""

import os
from collections.abc import Callable
from typing import Any

import torch

from benchmarks.measuring import Speed, in_turn, write
from optserve_server.metatraining import differentiation, perceptrons, recipes
from optserve_server.metatraining.estimators import build
from optserve_server.metatraining.particles import ParticleGroup
from optserve_server.metatraining.trajectories import draw_groups

ROUNDS, WARM_UP = 300, differentiation.TRACED_AFTER + 10
TASKS, PAIRS = 8, 8
AT_LEAST = 1.5

SIZES: dict[str, dict[str, Any]] = {
    "12-12-4": {},
    "12-12-12-4, batch 32": {"hidden_sizes": [12, 12], "activation": "tanh", "batch_size": 32},
    "64-16-64, gelu": {"data": "autoencoder", "features": 64, "hidden_sizes": [16], "activation": "gelu"},
    "8-8-8-2, normalised": {"features": 8, "hidden_sizes": [8, 8], "outputs": 2, "normalised": True},
}


def main() -> None:
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:1])
    torch.set_num_threads(1)
    perceptron_of = perceptrons.perceptron_of
    write("perceptrons", [_measured(name, parameters, perceptron_of) for name, parameters in SIZES.items()])


def _measured(name: str, parameters: dict[str, Any], perceptron_of: Callable[..., Any]) -> Speed:
    by_kernel = _evaluations(parameters, perceptron_of)
    by_operations = _evaluations(parameters, lambda *_: None)
    ours, theirs = in_turn(by_kernel, by_operations, rounds=ROUNDS, warm_up=WARM_UP)
    loops = TASKS * 2 * PAIRS
    return Speed(f"f and ∇f, {name}", "kernel", "traced", "evaluations", loops / ours, loops / theirs, AT_LEAST)


def _evaluations(parameters: dict[str, Any], perceptron_of: Callable[..., Any]) -> Callable[[], object]:
    """One evaluation of all inner loops, on the same minibatch."""
    recipe = recipes.parse(
        {
            "name": "benchmark",
            "architecture": {"kind": "hierarchical"},
            "tasks": [{"family": "synthetic-mlp", "parameters": parameters}],
            "gradient": {"estimator": "nres", "pairs": PAIRS},
        }
    )
    optimizer, generator = recipe.optimizer(), torch.Generator().manual_seed(0)
    (group,) = draw_groups(recipe.tasks, [TASKS], optimizer, generator, "train")
    begun = build(recipe).begin(group, optimizer, optimizer.initial_phi(generator), generator)
    assert isinstance(begun, ParticleGroup)
    batch = begun.draw_batch(generator)

    def evaluate() -> object:
        perceptrons.perceptron_of = perceptron_of
        return differentiation.losses_and_gradients(begun, batch)

    return evaluate


if __name__ == "__main__":
    main()
