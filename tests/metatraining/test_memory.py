"""The estimate of a recipe's memory is what a run needs."""

import json
import subprocess
import sys
from typing import Any

import pytest
import torch

from optserve_server.metatraining import recipes
from optserve_server.metatraining.memory import PROCESS_BYTES, estimate_bytes
from optserve_server.metatraining.recipes import RecipeError
from optserve_server.metatraining.trajectories import draw_groups
from optserve_server.tasks import datasets
from optserve_server.tasks.classic_2d import Classic2D
from optserve_server.tasks.quadratic import Quadratic

RUN = """
import json, resource, sys, torch
torch.set_num_threads(1)
from optserve_server.metatraining import recipes
from optserve_server.metatraining.outer_loop import OuterLoop
next(iter(OuterLoop(recipes.parse(json.loads(sys.argv[1])), device="cpu")))
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
"""


def content(**changes: Any) -> dict[str, Any]:
    return {
        "name": "tiny",
        "architecture": {"kind": "rnnprop"},
        "tasks": [{"family": "quadratic"}],
        "meta_optimizer": {"outer_steps": 2, "tasks_per_outer_step": 16},
        **changes,
    }


def measured_bytes(recipe: dict[str, Any]) -> int:
    # From a small process: what a fork has of its parent's memory counts as its own until it runs something else.
    script = [sys.executable, "-c", RUN, json.dumps(recipe)]
    launcher = "import subprocess, sys; sys.exit(subprocess.call(sys.argv[1:]))"
    done = subprocess.run([sys.executable, "-c", launcher, *script], capture_output=True, text=True, check=True)
    return int(done.stdout)


@pytest.mark.parametrize(
    "changes",
    [
        {"tasks": [{"family": "digits-mlp"}], "unroll": {"steps": 6}, "gradient": {"second_order": False}},
        {"tasks": [{"family": "quadratic", "parameters": {"dimension": 100}}], "unroll": {"steps": 50}},
        {
            "tasks": [{"family": "digits-mlp"}],
            "unroll": {"steps": 2, "truncation": 1},
            "gradient": {"estimator": "nres", "pairs": 5},
        },
        {
            "architecture": {"kind": "hierarchical"},
            "tasks": [{"family": "digits-mlp", "parameters": {"batch_size": 8}}],
            "unroll": {"steps": 2, "truncation": 1},
            "gradient": {"estimator": "nres", "pairs": 50},
        },
    ],
)
def test_the_estimate_is_near_the_measured_peak(changes: dict[str, Any]) -> None:
    recipe = content(**changes)
    estimate, measured = estimate_bytes(recipes.parse(recipe)), measured_bytes(recipe)
    assert measured > 1.5 * PROCESS_BYTES  # else it would be of the process alone
    assert estimate == pytest.approx(measured, rel=0.5), f"{estimate:,} estimated, {measured:,} measured"


@pytest.mark.parametrize("changes", [{}, {"gradient": {"estimator": "pes", "pairs": 1000}}], ids=["", "pes"])
def test_the_estimate_of_a_giant_allocates_nothing(changes: dict[str, Any]) -> None:
    giant = content(
        tasks=[{"family": "digits-mlp", "parameters": {"hidden_sizes": [1024] * 8}}],
        unroll={"steps": 1000},
        meta_optimizer={"tasks_per_outer_step": 1000},
        **changes,
    )
    assert estimate_bytes(recipes.parse(giant)) > 10**15


def test_truncation_needs_less_memory() -> None:
    whole = content(unroll={"steps": 1000})
    short = content(unroll={"steps": 1000, "truncation": 20})
    assert estimate_bytes(recipes.parse(whole)) > 2 * estimate_bytes(recipes.parse(short))


def test_many_trajectories_need_more_memory() -> None:
    one = content(tasks=[{"family": "digits-mlp"}], unroll={"steps": 40, "truncation": 2})
    many = content(tasks=[{"family": "digits-mlp"}], unroll={"steps": 40, "truncation": 2, "trajectories": 100})
    assert estimate_bytes(recipes.parse(many)) > 2 * estimate_bytes(recipes.parse(one))


def test_tasks_on_which_a_step_fails_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """Here one whose shapes depend on its numbers."""
    tasks = [{"family": "digits-mlp"}, {"family": "quadratic"}]
    monkeypatch.setattr(Quadratic, "loss", lambda _, theta, task, batch: theta[theta > 0].sum())
    with pytest.raises(RecipeError, match=r"(?s)tasks\.1: .*'quadratic' raises \w+: .*; docs") as caught:
        estimate_bytes(recipes.parse(content(tasks=tasks)))
    assert caught.value.path == "tasks.1"


@pytest.mark.parametrize("family", ["digits-mlp", "tabular-mlp"])
def test_an_estimate_leaves_families_that_load_data_their_numbers(family: str) -> None:
    parsed = recipes.parse(content(tasks=[{"family": family}], unroll={"steps": 1}))
    estimate_bytes(parsed)
    (group,) = draw_groups(parsed.tasks, [2], parsed.optimizer(), torch.Generator().manual_seed(0), "train")
    with torch.no_grad():
        assert group.losses(group.theta, group.draw_batch(torch.Generator().manual_seed(0))).isfinite().all()


VARIED = {
    "hidden_sizes": [[4], [64, 64], [8]],
    "batch_size": [2, 200, 3],
    "data": ["clusters", "autoencoder"],
}


def test_of_choices_it_is_those_that_need_most() -> None:
    varied = content(tasks=[{"family": "synthetic-mlp", "choices": VARIED}], unroll={"steps": 6})
    estimates = [
        estimate_bytes(recipes.parse({**varied, "tasks": [{"family": "synthetic-mlp", "parameters": parameters}]}))
        for parameters in (
            {"hidden_sizes": [64, 64], "batch_size": 200, "data": "autoencoder"},
            {"hidden_sizes": [4], "batch_size": 2, "data": "clusters"},
        )
    ]
    assert estimate_bytes(recipes.parse(varied)) == estimates[0] > estimates[1]


def test_every_choice_of_data_is_loaded_before_tensors_lose_their_numbers() -> None:
    tasks = [{"family": "tabular-mlp", "choices": {"data": ["iris", "wine"]}}]
    datasets.table.cache_clear()
    parsed = recipes.parse(content(tasks=tasks, unroll={"steps": 1}))
    estimate_bytes(parsed)
    features, _ = datasets.table("wine", "train")
    assert type(features) is torch.Tensor


def test_tasks_of_the_validation_count_too_and_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    large = {"family": "quadratic", "parameters": {"dimension": 1000}}
    validation = {"tasks": [{"family": "classic-2d"}, large], "horizons": [10**6], "instances": 100}
    plain = content(unroll={"steps": 2})
    more = estimate_bytes(recipes.parse({**plain, "validation": validation}))
    assert more - estimate_bytes(recipes.parse(plain)) > 100 * 1000**2 * 4  # of the matrices alone
    monkeypatch.setattr(Classic2D, "loss", lambda _, theta, task, batch: theta[theta > 0].sum())
    with pytest.raises(RecipeError, match=r"(?s)validation\.tasks\.0: .*'classic-2d' raises"):
        estimate_bytes(recipes.parse({**plain, "validation": validation}))


def test_each_process_of_a_crew_has_a_window_at_a_time() -> None:
    unroll = {"steps": 40, "truncation": 2, "trajectories": 8, "advance": 4}
    parsed = recipes.parse(content(tasks=[{"family": "digits-mlp"}], unroll=unroll))
    one, three, many = (estimate_bytes(parsed, processes) for processes in (1, 3, 100))
    assert three >= one + 3 * PROCESS_BYTES
    assert many - three == pytest.approx(PROCESS_BYTES, rel=0.5)  # of four: no more find work
