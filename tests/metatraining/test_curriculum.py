"""The curriculum goes on when the next horizon has stopped getting better, from the best φ so far."""

from typing import Any

import pytest
import torch

from optserve_server.metatraining import outer_loop, recipes, validation
from optserve_server.metatraining.outer_loop import OuterLoop

LONGEST = 16


def recipe(**changes: Any) -> recipes.Recipe:
    return recipes.parse(
        {
            "name": "tiny",
            "architecture": {"kind": "lstm", "hidden_size": 4, "layers": 1},
            "tasks": [{"family": "quadratic", "parameters": {"dimension": 2}}],
            "unroll": {"steps": LONGEST, "truncation": 2},
            "curriculum": {"steps": [6, 8], "patience": 2},
            "meta_optimizer": {"kind": "adam", "outer_steps": 9, "tasks_per_outer_step": 2, "averaging": 0.5},
            "checkpoints": {"every": 1},
            **changes,
        }
    )


@pytest.fixture
def scripted(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, float]]:
    """The held-out losses by horizon, in the order in which they are asked for; what was asked for is noted."""
    losses = {8: iter([5.0, 6.0, 3.0, 4.0, 4.0]), LONGEST: iter([9.0, 8.0, 8.5, 7.0, 6.0, 5.0, 5.0, 7.0, 6.0])}
    asked: list[tuple[int, float]] = []

    def held_out(_recipe: Any, _optimizer: Any, _phi: Any, horizon: int) -> float:
        asked.append((horizon, next(losses[horizon])))
        return asked[-1][1]

    for asking in (outer_loop, validation):
        monkeypatch.setattr(asking, "held_out_meta_loss", held_out)
    return asked


def test_it_goes_on_from_the_best_when_the_next_horizon_stops_improving(scripted: list[tuple[int, float]]) -> None:
    loop = OuterLoop(recipe())
    kept, progress = [], []
    for found in loop:
        progress.append(found)
        kept.append({name: weight.clone() for name, weight in loop.averaged_phi.items()})
    # Stage 1 is judged at T = 8 and is at its best after 3 outer steps; stage 2 at T = 16, after 6. The trajectory that
    # is under way when a stage ends, after two windows of three, is given up.
    assert [found.horizon for found in progress] == [6, 6, 6, 6, 6, 8, 8, 8, LONGEST]
    assert [found.meta_loss_held_out for found in progress] == [9.0, 8.0, 8.5, 7.0, 6.0, 5.0, 5.0, 7.0, 6.0]
    assert [horizon for horizon, _ in scripted] == [16, 8] * 5 + [16] * 4
    # What a version of outer step 5 holds is the φ that was validated there; the way back comes after it.
    assert not torch.equal(kept[4]["output.weight"], kept[2]["output.weight"])


def test_the_way_back_is_to_phi_the_moments_and_the_mean(scripted: list[tuple[int, float]]) -> None:
    loop = OuterLoop(recipe())
    states = []
    for progress in loop:
        states.append(loop._descent.to_state())
        if progress.outer_step == 5:
            break
    assert loop._curriculum.over
    best = loop._curriculum.kept
    assert scripted[-1] == (8, 4.0)
    for name, weight in states[2]["phi"].items():
        assert torch.equal(best["phi"][name], weight)
        assert torch.equal(best["averaged_phi"][name], states[2]["averaged_phi"][name])
    assert best["meta_optimizer"][0]["step"].item() == 3
    twin = OuterLoop.resume(loop.recipe, loop.checkpoint())
    next(iter(loop))
    next(iter(twin))
    assert loop._descent.to_state()["meta_optimizer"][0]["step"].item() == 4
    assert twin._curriculum.horizon == loop._curriculum.horizon == 8
    assert all(torch.equal(weight, twin.phi[name]) for name, weight in loop.phi.items())


def test_without_a_curriculum_there_is_one_stage() -> None:
    loop = OuterLoop(recipe(curriculum=None))
    assert {progress.horizon for progress in loop} == {LONGEST}
