"""The definition of ∇_φL in float64 against central differences: every family, every architecture, every meta-loss.

`pytest tests/metatraining/test_gradient_check.py -s` prints the errors.
"""

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor

from optserve_server.metatraining import estimators, recipes
from optserve_server.metatraining.distribution import Generators, draw_trajectory
from optserve_server.metatraining.estimators import MetaGradient, Window
from optserve_server.metatraining.trajectories import Group
from optserve_server.optimizers import LEARNED, HiddenState
from optserve_server.tasks import families
from optserve_server.tasks.base import TaskData

STEPS, TASKS = 4, 2
H = 1e-7  # as small as rounding lets it be: ReLUs have kinks, and rnnprop's directions amplify them
LARGEST_ERROR = 1e-6


def double(tensors: Mapping[str, Tensor]) -> TaskData:
    return {name: tensor.double() if tensor.is_floating_point() else tensor for name, tensor in tensors.items()}


def in_float64(group: Group) -> Group:
    group.theta = group.theta.double()
    group.state = HiddenState(group.state.coordinates.double(), double(group.state.arrays))
    group.task_data = double(group.task_data)
    group.scales = None if group.scales is None else group.scales.double()
    return group


def estimate(recipe: recipes.Recipe, phi: Mapping[str, Tensor]) -> MetaGradient:
    """Of the first window of the first trajectory: the same one for any φ."""
    optimizer, generators = recipe.optimizer(), Generators.seeded(5, torch.device("cpu"))
    trajectory = draw_trajectory(recipe, optimizer, generators)
    (group,) = trajectory.groups
    window = Window(0, recipe.unroll.window, trajectory.horizon)
    return estimators.build(recipe).estimate(optimizer, phi, in_float64(group), window, generators.device)


def relative_error(recipe: recipes.Recipe) -> float:
    """Of the derivative of L along a random direction, against the central difference."""
    generator = torch.Generator().manual_seed(0)
    phi = double(recipe.optimizer().initial_phi(generator))
    direction = {
        name: torch.randn(weight.shape, generator=generator, dtype=torch.double) for name, weight in phi.items()
    }
    gradients = estimate(recipe, phi).gradients
    slope = sum((gradients[name] * direction[name]).sum().item() for name in phi)
    ahead = estimate(recipe, {name: weight + H * direction[name] for name, weight in phi.items()})
    behind = estimate(recipe, {name: weight - H * direction[name] for name, weight in phi.items()})
    difference = (ahead.meta_loss - behind.meta_loss).item() / (2 * H)
    assert difference != 0
    return abs(slope / difference - 1)


def check(name: str, **changes: Any) -> None:
    content = {
        "name": "tiny",
        "architecture": {"kind": "lstm", "hidden_size": 4, "layers": 1},
        "tasks": [{"family": "quadratic"}],
        "unroll": {"steps": STEPS},
        "meta_optimizer": {"tasks_per_outer_step": TASKS},
        **changes,
    }
    error = relative_error(recipes.parse(content))
    print(f"\n{name:40} {error:.1e}", end="")
    assert error <= LARGEST_ERROR


@pytest.mark.parametrize("family", families().usable)
@pytest.mark.parametrize("architecture", LEARNED)
def test_every_family_and_architecture(family: str, architecture: str) -> None:
    check(f"{family}, {architecture}", tasks=[{"family": family}], architecture={"kind": architecture})


@pytest.mark.parametrize("kind", ["final", "sum", "log"])
@pytest.mark.parametrize("family", ["quadratic", "digits-mlp"])
def test_every_meta_loss_with_scaled_coordinates(kind: str, family: str) -> None:
    check(
        f"{family}, {kind}, scaled",
        tasks=[{"family": family}],
        meta_loss={"kind": kind},
        augmentation={"coordinate_scaling": 1.0, "probability": 0.7},
    )
