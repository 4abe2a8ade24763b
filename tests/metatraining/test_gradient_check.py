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
# Of small_fc the steps are so small that the losses hardly differ.
ARCHITECTURES = [{"kind": kind} | ({"step_multiplier": 0.1} if kind == "small_fc" else {}) for kind in LEARNED]
STEPS_OF_DIFFERENCES = (1e-7, 1e-6, 1e-8)  # at the larger ones there are kinks of ReLUs, at the smaller ones rounding
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
    """Of the derivative of L along a random direction, against the central difference.

    Near φ_0 and not there: biases that are 0 put a ReLU whose inputs are all 0 on its kink.
    """
    generator = torch.Generator().manual_seed(0)
    initial = double(recipe.optimizer().initial_phi(generator))
    phi = {name: weight + 0.03 * torch.randn(weight.shape, generator=generator) for name, weight in initial.items()}
    direction = {
        name: torch.randn(weight.shape, generator=generator, dtype=torch.double) for name, weight in phi.items()
    }
    gradients = estimate(recipe, phi).gradients
    slope = sum((gradients[name] * direction[name]).sum().item() for name in phi)

    def meta_loss(h: float) -> float:
        return estimate(recipe, {name: weight + h * direction[name] for name, weight in phi.items()}).meta_loss.item()

    errors = []
    for h in STEPS_OF_DIFFERENCES:
        errors.append(abs(slope * 2 * h / (meta_loss(h) - meta_loss(-h)) - 1))
        if errors[-1] <= LARGEST_ERROR:
            break
    return min(errors)


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
@pytest.mark.parametrize("architecture", ARCHITECTURES, ids=lambda architecture: architecture["kind"])
def test_every_family_and_architecture(family: str, architecture: dict[str, Any]) -> None:
    check(f"{family}, {architecture['kind']}", tasks=[{"family": family}], architecture=architecture)


@pytest.mark.parametrize("family", ["quadratic", "digits-mlp"])
@pytest.mark.parametrize(
    "meta_loss",
    [
        {"kind": "final"},
        {"kind": "sum"},
        {"kind": "sum", "weights": [0.0, 0.5, 0.0, 2.0]},
        {"kind": "log", "relative": True, "weights": {"first": 0.3, "last": 2.0, "power": 2.0}},
    ],
    ids="-".join,
)
def test_every_meta_loss_with_scaled_coordinates(meta_loss: dict[str, Any], family: str) -> None:
    check(
        f"{family}, {', '.join(['scaled', meta_loss['kind'], *list(meta_loss)[1:]])}",
        tasks=[{"family": family}],
        meta_loss=meta_loss,
        augmentation={"coordinate_scaling": 1.0, "probability": 0.7},
    )
