"""Several trajectories under way at once."""

from typing import Any

import pytest
import torch

from optserve_server.metatraining import recipes
from optserve_server.metatraining.distribution import Generators
from optserve_server.metatraining.outer_loop import OuterLoop
from optserve_server.metatraining.particles import ParticleGroup
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


def pool(parsed: recipes.Recipe, **share: int) -> tuple[TrajectoryPool, dict[str, torch.Tensor]]:
    optimizer, generators = parsed.optimizer(), Generators.seeded(0, torch.device("cpu"))
    return TrajectoryPool(parsed, optimizer, generators, **share), optimizer.initial_phi(
        torch.Generator().manual_seed(0)
    )


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


def test_with_unit_norm_a_window_still_has_its_weight() -> None:
    """The mean of w_t = 1 + 2 (t/8)² over two steps, for one group that is all of the outer step."""
    parsed = recipe(
        tasks=[TINY_MLP],
        unroll={"steps": 8, "truncation": 2},
        gradient={"unit_norm": True, "estimator": "nres"},
        meta_loss={"kind": "sum", "weights": {"first": 1.0, "last": 3.0, "power": 2.0}},
    )
    found, phi = pool(parsed)
    for outer_step in range(1, 5):
        advance = combined(found.windows(outer_step, phi, 8), unit_norm=True)
        norm = torch.cat([gradient.flatten() for gradient in advance.estimate.gradients.values()]).norm()
        weights = [1 + 2 * (t / 8) ** 2 for t in (2 * outer_step - 1, 2 * outer_step)]
        assert norm.item() == pytest.approx(sum(weights) / 2, rel=1e-5)


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


def test_sigma_goes_to_its_end_and_a_trajectory_keeps_its_own() -> None:
    gradient = {"estimator": "nres", "sigma": 0.5, "final_sigma": 0.1}
    parsed = recipe(gradient=gradient, unroll={"steps": 6, "truncation": 2}, meta_optimizer={"outer_steps": 8})
    found, phi = pool(parsed)
    sigmas = []
    for outer_step in range(1, 9):
        found.windows(outer_step, phi, 6)
        (trajectory,) = found._trajectories.values()
        assert trajectory is not None
        (group, *_) = trajectory.groups
        assert isinstance(group, ParticleGroup)
        sigmas.append(group.sigma)
        if outer_step % 3 == 1:
            deviation = torch.cat([noise.flatten() for noise in group.noise.values()]).std().item()
            assert deviation == pytest.approx(group.sigma, rel=0.15)
    # Trajectories begin in the outer steps 1, 4 and 7.
    assert sigmas == pytest.approx([0.5] * 3 + [0.5 - 0.4 * 3 / 8] * 3 + [0.5 - 0.4 * 6 / 8] * 2)


def test_places_draw_by_themselves() -> None:
    """So that a place comes to the same in whatever company, as processes need it that share them out."""
    alone, _ = pool(recipe(), share=1, shares=4)
    pair, _ = pool(recipe(), share=1, shares=2)
    whole, phi = pool(recipe())
    assert (list(alone._trajectories), list(pair._trajectories)) == ([1], [1, 3])
    for outer_step in range(1, 7):
        found = [one.windows(outer_step, phi, 8) for one in (whole, pair, alone)]
        first, second, third = ({one.place: one.found for one in estimates} for estimates in found)
        assert list(first) == [[0, 1], [2, 3]][(outer_step + 1) % 2]
        for place, estimate in [*second.items(), *third.items()]:
            assert estimate.meta_loss == first[place].meta_loss
            for name, gradient in estimate.gradients.items():
                assert torch.equal(gradient, first[place].gradients[name])
