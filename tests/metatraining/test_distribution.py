"""What is drawn for an outer step: tasks by weight, horizons by their density, scaled coordinates."""

from collections import Counter
from itertools import pairwise
from typing import Any

import pytest
import torch

from optserve_server.metatraining import recipes
from optserve_server.metatraining.distribution import Generators, Trajectory, draw_trajectory
from optserve_server.metatraining.trajectories import Group


def recipe(**changes: Any) -> recipes.Recipe:
    return recipes.parse(
        {
            "name": "tiny",
            "architecture": {"kind": "lstm", "hidden_size": 4, "layers": 1},
            "tasks": [{"family": "quadratic", "parameters": {"dimension": 2}}],
            "meta_optimizer": {"tasks_per_outer_step": 1},
            **changes,
        }
    )


def draw(parsed: recipes.Recipe) -> Trajectory:
    return draw_trajectory(parsed, parsed.optimizer(), Generators.seeded(5, torch.device("cpu")))


@pytest.mark.parametrize("power", [0.0, 1.0, 2.0])
def test_horizons_have_their_density(power: float) -> None:
    """Against the distribution summed up: half of the horizons lie below its median."""
    parsed = recipe(unroll={"steps": {"low": 3, "high": 60, "power": power}})
    generators = Generators.seeded(0, torch.device("cpu"))
    horizons = sorted(draw_trajectory(parsed, parsed.optimizer(), generators).horizon for _ in range(400))
    assert horizons[0] == 3
    assert 30 < horizons[-1] <= 60
    density = [t**-power for t in range(3, 61)]
    median = next(t for t in range(3, 61) if sum(density[: t - 2]) >= sum(density) / 2)
    assert horizons[200] == pytest.approx(median, rel=0.25)


def test_horizons_up_to_a_stage_of_the_curriculum() -> None:
    generators = Generators.seeded(0, torch.device("cpu"))
    parsed = recipe(unroll={"steps": {"low": 3, "high": 60}})
    horizons = [draw_trajectory(parsed, parsed.optimizer(), generators, 9).horizon for _ in range(50)]
    assert (min(horizons), max(horizons)) == (3, 9)
    fixed = recipe(unroll={"steps": 60})
    assert draw_trajectory(fixed, fixed.optimizer(), generators, 9).horizon == 9


def test_a_mixture_has_its_weights_and_every_family_trains() -> None:
    parsed = recipe(
        tasks=[
            {"family": "quadratic", "weight": 3.0},
            {"family": "digits-mlp", "weight": 1.0, "parameters": {"hidden_sizes": [2], "batch_size": 2}},
        ],
        meta_optimizer={"tasks_per_outer_step": 400, "outer_steps": 1},
    )
    groups = draw(parsed).groups
    assert [group.family.name for group in groups] == ["quadratic", "digits-mlp"]
    assert groups[0].tasks == pytest.approx(300, abs=30)


def test_coordinate_scaling_reparametrises_and_does_not_change_the_task() -> None:
    plain, scaled = (
        recipe(meta_optimizer={"tasks_per_outer_step": 3}),
        recipe(
            meta_optimizer={"tasks_per_outer_step": 3}, augmentation={"coordinate_scaling": 2.0, "probability": 1.0}
        ),
    )
    one, other = draw(plain).groups[0], draw(scaled).groups[0]
    assert not torch.allclose(one.theta, other.theta)
    torch.testing.assert_close(one.losses(one.theta, {}), other.losses(other.theta, {}))


def test_of_several_trajectories_each_has_one_family() -> None:
    parsed = recipe(
        tasks=[
            {"family": "quadratic", "weight": 3.0},
            {"family": "digits-mlp", "weight": 1.0, "parameters": {"hidden_sizes": [2], "batch_size": 2}},
        ],
        unroll={"trajectories": 2, "advance": 2},
        meta_optimizer={"tasks_per_outer_step": 8},
    )
    generators = Generators.seeded(0, torch.device("cpu"))
    drawn = [draw_trajectory(parsed, parsed.optimizer(), generators).groups for _ in range(200)]
    assert {(len(groups), groups[0].tasks) for groups in drawn} == {(1, 4)}
    quadratics = sum(groups[0].family.name == "quadratic" for groups in drawn)
    assert quadratics == pytest.approx(150, abs=25)


def test_each_trajectory_has_one_of_all_choices() -> None:
    share = {
        "family": "clusters-mlp",
        "parameters": {"features": 3},
        "choices": {"hidden_sizes": [[2], [3, 2], []], "activation": ["relu", "tanh"]},
    }
    parsed = recipe(tasks=[share, {"family": "quadratic"}], unroll={"trajectories": 2})
    generators = [Generators.seeded(0, torch.device("cpu")) for _ in range(2)]
    twins = [[draw_trajectory(parsed, parsed.optimizer(), one).groups[0] for _ in range(300)] for one in generators]
    assert [group.parameters for group in twins[0]] == [group.parameters for group in twins[1]]
    found = Counter(repr(group.family) for group in twins[0] if group.family.name == "clusters-mlp")
    assert len(found) == 6
    assert min(found.values()) > 10  # of 25
    for group in twins[0]:
        assert group.family == parsed.tasks[group.share].with_parameters(group.parameters).build()
        assert group.family.name == "quadratic" or group.parameters["features"] == 3
    assert not any(torch.equal(*(group.theta for group in pair)) for pair in pairwise(twins[0]) if same_size(*pair))


def same_size(one: Group, other: Group) -> bool:
    return one.theta.shape == other.theta.shape


def test_task_scaling_is_one_factor_for_all_coordinates() -> None:
    tasks = [{"family": "quadratic", "parameters": {"dimension": 5}}]
    meta_optimizer = {"tasks_per_outer_step": 400}
    plain = draw(recipe(tasks=tasks, meta_optimizer=meta_optimizer)).groups[0]
    augmentation = {"task_scaling": 2.0, "probability": 0.25}
    scaled = draw(recipe(tasks=tasks, meta_optimizer=meta_optimizer, augmentation=augmentation)).groups[0]
    torch.testing.assert_close(plain.losses(plain.theta, {}), scaled.losses(scaled.theta, {}))
    assert scaled.scales is not None
    assert torch.equal(scaled.scales, scaled.scales[:, :1].expand(-1, 5))
    logs = scaled.scales[:, 0].log()
    assert (logs != 0).float().mean().item() == pytest.approx(0.25, abs=0.07)
    assert -2 <= logs.min() < -1.7 < 1.7 < logs.max() <= 2
    both = {"coordinate_scaling": 0.5, **augmentation, "probability": 1.0}
    product = draw(recipe(tasks=tasks, meta_optimizer=meta_optimizer, augmentation=both)).groups[0].scales
    assert product is not None
    spread = product.log() - product.log().mean(dim=1, keepdim=True)
    assert 0.5 < spread.abs().max() <= 1
