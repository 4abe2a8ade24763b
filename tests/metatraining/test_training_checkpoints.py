"""A run that is interrupted goes on bit for bit."""

from itertools import islice
from typing import Any

import pytest
import torch

from optserve_server.metatraining import recipes, training_checkpoints
from optserve_server.metatraining.outer_loop import OuterLoop
from optserve_server.optimizers import weights

RECIPE: dict[str, Any] = {
    "name": "tiny",
    "architecture": {"kind": "rnnprop", "hidden_size": 4, "layers": 1},
    "tasks": [
        {"family": "quadratic", "parameters": {"dimension": 2}},
        {"family": "digits-mlp", "parameters": {"hidden_sizes": [2], "batch_size": 2}},
    ],
    "unroll": {"steps": {"low": 3, "high": 7}, "truncation": 2},
    "augmentation": {"coordinate_scaling": 1.0},
    "meta_optimizer": {"kind": "adam", "schedule": "cosine", "averaging": 0.9, "outer_steps": 9},
    "checkpoints": {"every": 4},
}


def parse(*changes: dict[str, Any], **meta_optimizer: Any) -> recipes.Recipe:
    content = {**RECIPE, "meta_optimizer": {**RECIPE["meta_optimizer"], **meta_optimizer}}
    for change in changes:
        content |= change
    return recipes.parse(content)


VARIANTS: list[dict[str, Any]] = [
    {"gradient": {"second_order": False}},
    {"gradient": {"estimator": "es", "pairs": 2}},
    {"gradient": {"estimator": "pes"}},
    {"gradient": {"estimator": "nres"}},
    {"architecture": {"kind": "hierarchical"}, "gradient": {"estimator": "nres"}},
    {"unroll": {"steps": 4, "truncation": 2, "trajectories": 3}, "gradient": {"estimator": "pes"}},
    {"meta_loss": {"kind": "log", "relative": True, "weights": {"first": 0, "last": 1}}},
    {"imitation": {"outer_steps": 6}},
    {"imitation": {"outer_steps": 6}, "gradient": {"estimator": "es"}},
    {"curriculum": {"steps": [3, 5], "patience": 1}, "checkpoints": {"every": 1}},
    {
        "tasks": [{"family": "clusters-mlp", "choices": {"hidden_sizes": [[2], [3, 2]], "batch_size": [2, 3, 4]}}],
        "unroll": {"steps": 4, "truncation": 2, "trajectories": 3, "advance": 2},
        "architecture": {"kind": "hierarchical"},
        "gradient": {"estimator": "nres", "sigma": 0.1, "final_sigma": 0.01},
        "augmentation": {
            **{"coordinate_scaling": 1.0, "task_scaling": 2.0},
            **{"hidden_loss": 0.5, "hidden_horizon": 0.5, "loss_offset": 0.5, "gradient_scaling": 0.5, "pauses": 0.5},
        },
        "validation": {"tasks": [{"family": "quadratic"}], "horizons": [3], "patience": 20},
        "checkpoints": {"every": 1},
    },
    {"augmentation": {"loss_offset": 1.0, "gradient_scaling": 1.0, "pauses": 1.0, "task_scaling": 1.0}},
]


@pytest.mark.parametrize("changes", VARIANTS, ids=str)
@pytest.mark.parametrize("interrupted_at", [1, 4])
def test_a_resumed_run_is_the_uninterrupted_one(changes: dict[str, Any], interrupted_at: int) -> None:
    check(parse(changes), interrupted_at)


@pytest.mark.parametrize("interrupted_at", range(9))
def test_with_gradient_descent_and_at_any_outer_step(interrupted_at: int) -> None:
    check(parse(kind="gradient-descent", decay=0.5), interrupted_at)


def check(recipe: recipes.Recipe, interrupted_at: int) -> None:
    whole = OuterLoop(recipe)
    expected = list(whole)
    first = OuterLoop(recipe)
    progress = list(islice(first, interrupted_at))
    resumed = OuterLoop.resume(recipe, first.checkpoint())
    assert resumed.outer_step == interrupted_at
    progress += list(resumed)
    assert progress == expected
    assert weights.encode(resumed.optimizer, resumed.phi) == weights.encode(whole.optimizer, whole.phi)
    assert resumed.checkpoint() == whole.checkpoint()


def test_a_finished_run_goes_on_with_more_outer_steps() -> None:
    finished = OuterLoop(parse(outer_steps=3, schedule="constant"))
    list(finished)
    longer = parse(outer_steps=6, schedule="constant")
    whole = OuterLoop(longer)
    list(whole)
    resumed = OuterLoop.resume(longer, finished.checkpoint())
    assert [progress.outer_step for progress in resumed] == [4, 5, 6]
    assert weights.encode(resumed.optimizer, resumed.phi) == weights.encode(whole.optimizer, whole.phi)


def test_a_run_does_not_go_on_by_another_recipe() -> None:
    data = OuterLoop(parse()).checkpoint()
    with pytest.raises(ValueError, match=r"meta_optimizer\.averaging is 0\.9 there and 0\.5 here; only"):
        OuterLoop.resume(parse(averaging=0.5), data)


def test_a_key_that_came_later_has_its_default_in_an_old_checkpoint() -> None:
    written = parse().model_dump(mode="json")
    del written["meta_loss"]["ceiling"]
    recipes.require_same(parse(), written)
    with pytest.raises(ValueError, match=r"meta_loss\.ceiling is 1e\+?10 there|10000000000\.0 there"):
        recipes.require_same(parse({"meta_loss": {"ceiling": 5.0}}), written)


def test_data_that_tasks_share_is_kept_once() -> None:
    images = torch.rand(1000, 64).expand(50, -1, -1)
    data = training_checkpoints.encode({"images": images, "none": None, "list": [1, 2.5, {"a": torch.arange(3)}]})
    assert len(data) < 2 * 1000 * 64 * 4
    state = training_checkpoints.decode(data, torch.device("cpu"))
    assert torch.equal(state["images"], images)
    assert state["images"].stride(0) == 0
    assert (state["none"], state["list"][:2], state["list"][2]["a"].tolist()) == (None, [1, 2.5], [0, 1, 2])


def test_other_files_are_refused() -> None:
    optimizer = parse().optimizer()
    data = weights.encode(optimizer, optimizer.initial_phi(torch.Generator()))
    with pytest.raises(ValueError, match="not a training checkpoint"):
        training_checkpoints.decode(data, torch.device("cpu"))
    with pytest.raises(ValueError, match="not a safetensors file"):
        training_checkpoints.decode(data[:100], torch.device("cpu"))
    with pytest.raises(ValueError, match="of no run: it has not curriculum, descent"):
        OuterLoop.resume(parse(), training_checkpoints.encode({"recipe": {}}))
