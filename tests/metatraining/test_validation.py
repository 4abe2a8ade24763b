"""Validation on other tasks than a recipe's own, and what its patience comes to."""

import math
from itertools import islice
from typing import Any

import pytest
import torch

from optserve_server import tasks
from optserve_server.metatraining import outer_loop, recipes, validation
from optserve_server.metatraining.outer_loop import OuterLoop
from optserve_server.metatraining.validation import held_out_loss
from optserve_server.optimizers import Observations, Phi, initial_state
from optserve_server.tasks.base import vectorized

OWN = {"family": "quadratic", "parameters": {"dimension": 2}}
OTHER = {"family": "teacher-mlp", "parameters": {"features": 2, "hidden_sizes": [3], "batch_size": 4}}


def recipe(outer_steps: int = 9, **changes: Any) -> recipes.Recipe:
    return recipes.parse(
        {
            "name": "tiny",
            "architecture": {"kind": "lstm", "hidden_size": 4, "layers": 1},
            "tasks": [OWN],
            "unroll": {"steps": 4},
            "meta_loss": {"kind": "log"},
            "meta_optimizer": {"kind": "adam", "outer_steps": outer_steps, "tasks_per_outer_step": 2},
            "validation": {"tasks": [OWN, {**OTHER, "weight": 2.0}], "horizons": [3, 60], "instances": 5},
            "checkpoints": {"every": 2},
            **changes,
        }
    )


def quotients(parsed: recipes.Recipe, phi: Phi, described: dict[str, Any], half: Any, horizon: int) -> list[float]:
    """f(θ_T)/f(θ_0) of each task, step by step; f(θ_T) is a mean over the last fiftieth of the steps."""
    family, optimizer = tasks.build(described["family"], described["parameters"]), parsed.optimizer()
    generator = torch.Generator().manual_seed(1_000_003)
    theta = family.initial(generator, 5)
    data = family.sample(generator, 5, half)
    state = initial_state(optimizer, ((theta.numel(),),), like=theta)
    losses = []
    for step in range(horizon):
        batch = family.batch(generator, data, 5)
        leaf = theta.clone().requires_grad_()
        loss = vectorized(family)(leaf, data, batch)
        (gradients,) = torch.autograd.grad(loss.sum(), leaf)
        losses.append(loss.detach())
        clock = torch.tensor([float(step)], dtype=torch.float64)
        updates, state = optimizer.step(phi, Observations(gradients.flatten(), clock), state)
        theta = theta + updates.view_as(theta)
    losses.append(vectorized(family)(theta, data, family.batch(generator, data, 5)))
    last = math.ceil(horizon / 50)
    return (torch.stack(losses[-last:]).mean(dim=0) / losses[0]).tolist()


def test_it_is_the_geometric_mean_of_what_is_left_of_the_losses() -> None:
    """Of the family that is trained on held-out tasks, of the other those of the training half; by their weights."""
    parsed = recipe()
    phi = parsed.optimizer().initial_phi(torch.Generator().manual_seed(0))
    total = 0.0
    for weight, described, half in ((1.0, OWN, "held-out"), (2.0, OTHER, "train")):
        for horizon in (3, 60):
            left = quotients(parsed, phi, described, half, horizon)
            total += weight * sum(math.log((one + 1e-3) / (1 + 1e-3)) for one in left) / 5
    assert held_out_loss(parsed, parsed.optimizer(), phi) == pytest.approx(math.exp(total / (2 * 3)), rel=1e-3)


def test_a_quotient_is_at_most_the_ceiling_also_where_it_is_not_finite(monkeypatch: pytest.MonkeyPatch) -> None:
    parsed = recipe(meta_loss={"ceiling": 7.0}, validation={"tasks": [OWN], "horizons": [3], "floor": 0.5})
    phi = parsed.optimizer().initial_phi(torch.Generator().manual_seed(0))
    monkeypatch.setattr(validation, "_unrolled", unrolled_to([math.nan, math.inf, 1e9, 14.0]))
    assert held_out_loss(parsed, parsed.optimizer(), phi) == pytest.approx(7.5 / 1.5)
    monkeypatch.setattr(validation, "_unrolled", unrolled_to([0.0, 0.0, 0.0, 0.0]))
    assert held_out_loss(parsed, parsed.optimizer(), phi) == pytest.approx(0.5 / 1.5)


def unrolled_to(final: list[float]) -> Any:
    """An unroll of tasks whose f(θ_0) is 2 to these f(θ_T)."""

    def unrolled(group: Any, *_: Any) -> torch.Tensor:
        group.initial_loss = torch.full((4,), 2.0)
        return torch.tensor([[5.0] * 4, final])

    return unrolled


def test_without_the_table_it_is_of_held_out_tasks_of_the_recipes_own() -> None:
    parsed = recipe(validation=None)
    phi = parsed.optimizer().initial_phi(torch.Generator().manual_seed(0))
    expected = validation.held_out_meta_loss(parsed, parsed.optimizer(), phi, 4)
    assert held_out_loss(parsed, parsed.optimizer(), phi) == expected


# --- patience ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def scripted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Held-out losses by outer step: the best is that of the fourth."""
    losses = {2: 3.0, 4: 1.0, 6: 2.0, 8: 1.0, 9: 1.5, 10: 0.5, 12: 0.6, 14: 0.5, 16: 0.4}
    validate = OuterLoop._validate

    def validated(self: OuterLoop, outer_step: int) -> float | None:
        monkeypatch.setattr(outer_loop, "held_out_loss", lambda *_: losses[outer_step])
        return validate(self, outer_step)

    monkeypatch.setattr(OuterLoop, "_validate", validated)


def patient(outer_steps: int, patience: int | None) -> recipes.Recipe:
    table = {"tasks": [OWN], "horizons": [3], "patience": patience}
    return recipe(outer_steps, validation=table)


@pytest.mark.parametrize(("patience", "made"), [(None, 9), (3, 9), (2, 8), (1, 6)])
def test_a_run_ends_when_nothing_better_has_come(scripted: None, patience: int | None, made: int) -> None:
    loop = OuterLoop(patient(9, patience))
    assert [progress.outer_step for progress in loop] == list(range(1, made + 1))
    assert list(loop) == []


def test_patience_goes_on_where_it_was(scripted: None) -> None:
    loop = OuterLoop(patient(9, 2))
    list(islice(loop, 7))
    resumed = OuterLoop.resume(loop.recipe, loop.checkpoint())
    assert [progress.outer_step for progress in resumed] == [8]
    assert list(OuterLoop.resume(loop.recipe, resumed.checkpoint())) == []


def test_with_more_outer_steps_what_patience_has_ended_goes_on_and_is_patient_again(scripted: None) -> None:
    ended = OuterLoop(patient(9, 2))
    list(ended)
    longer = OuterLoop.resume(patient(30, 2), ended.checkpoint())
    # After 10 there is a new best; at 12 and at 14 there is none.
    assert [progress.outer_step for progress in longer] == [9, 10, 11, 12, 13, 14]


def test_with_more_outer_steps_what_was_interrupted_is_the_longer_run(scripted: None) -> None:
    interrupted = OuterLoop(patient(9, 2))
    list(islice(interrupted, 7))
    resumed = OuterLoop.resume(patient(30, 2), interrupted.checkpoint())
    assert [progress.outer_step for progress in resumed] == [8]
