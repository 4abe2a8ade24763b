"""Several trajectories under way at once."""

from typing import Any

import pytest
import torch

from optserve_server.metatraining import recipes
from optserve_server.metatraining.distribution import Generators
from optserve_server.metatraining.outer_loop import OuterLoop
from optserve_server.metatraining.trajectory_pool import TrajectoryPool, combined

TINY_MLP = {"family": "digits-mlp", "parameters": {"hidden_sizes": [2], "batch_size": 2}}


def recipe(**changes: Any) -> recipes.Recipe:
    return recipes.parse(
        {
            "name": "tiny",
            "architecture": {"kind": "lstm", "hidden_size": 4, "layers": 1},
            "tasks": [{"family": "quadratic", "parameters": {"dimension": 2}}, TINY_MLP],
            "unroll": {"steps": 8, "truncation": 2, "trajectories": 4, "advance": 2},
            "gradient": {"estimator": "nres"},
            "meta_optimizer": {"kind": "adam", "outer_steps": 12, "tasks_per_outer_step": 6},
            **changes,
        }
    )


def pool(parsed: recipes.Recipe) -> tuple[TrajectoryPool, dict[str, torch.Tensor]]:
    optimizer, generators = parsed.optimizer(), Generators.seeded(0, torch.device("cpu"))
    return TrajectoryPool(parsed, optimizer, generators), optimizer.initial_phi(torch.Generator().manual_seed(0))


def test_each_outer_step_takes_the_next_ones_one_window_further() -> None:
    """Of four, two at a time; the first of each place are cut, so that they end one after another."""
    found, phi = pool(recipe())
    steps = []
    for outer_step in range(1, 13):
        assert combined(found.windows(outer_step, phi, 8), unit_norm=False).tasks == 6
        steps.append([None if one is None else one.step for one in found._trajectories.values()])
    assert steps[:4] == [[2, 2, None, None], [2, 2, 2, 2], [2, 4, 2, 2], [2, 4, 4, 4]]
    assert sorted(steps[-1]) == [2, 4, 6, 8]  # and so they stay: at different steps


def test_with_unit_norm_every_group_pulls_alike() -> None:
    tasks = [{"family": "quadratic", "parameters": {"dimension": 2}}, {**TINY_MLP, "weight": 2.0}]
    estimates = []
    for unit_norm in (False, True):
        parsed = recipe(
            tasks=tasks,
            unroll={"steps": 8},
            gradient={"unit_norm": unit_norm},
            meta_optimizer={"tasks_per_outer_step": 30},
        )
        found, phi = pool(parsed)
        estimates.append(combined(found.windows(1, phi, 8), unit_norm=unit_norm))
        counts = [group.tasks for group in found._trajectories[0].groups]  # type: ignore[union-attr]
    alone = []
    for number in range(2):
        found, phi = pool(parsed)
        window = found.windows(1, phi, 8)
        alone.append(torch.cat([gradient.flatten() for gradient in window[number].found.gradients.values()]))
    shares = [count / 30 for count in counts]
    plain, unit = (torch.cat([g.flatten() for g in one.estimate.gradients.values()]) for one in estimates)
    torch.testing.assert_close(plain, shares[0] * alone[0] + shares[1] * alone[1])
    torch.testing.assert_close(unit, shares[0] * alone[0] / alone[0].norm() + shares[1] * alone[1] / alone[1].norm())
    assert estimates[0].estimate.meta_loss == estimates[1].estimate.meta_loss


def test_a_gradient_of_zero_stays_zero() -> None:
    parsed = recipe(gradient={"unit_norm": True}, unroll={"steps": 2}, meta_loss={"ceiling": 1e-9})
    found, phi = pool(parsed)
    advance = combined(found.windows(1, phi, 2), unit_norm=True)
    assert all((gradient == 0).all() for gradient in advance.estimate.gradients.values())


@pytest.mark.parametrize("advance", [1, 3])
def test_a_run_goes_through_all_of_them(advance: int) -> None:
    parsed = recipe(unroll={"steps": {"low": 3, "high": 9}, "truncation": 2, "trajectories": 5, "advance": advance})
    progress = list(OuterLoop(parsed))
    assert len(progress) == 12
    assert all(one.step <= one.horizon <= 9 for one in progress)
