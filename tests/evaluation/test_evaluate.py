"""Evaluations: tuned baselines, divergence, and the same result whenever it is computed."""

import dataclasses
import json
import math
from collections.abc import Generator, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from tests.evaluation.conftest import carried_out, entrant, plan

from optserve_server.evaluation import baselines
from optserve_server.evaluation.competitors import Entrant
from optserve_server.evaluation.evaluate import Progress, to_end
from optserve_server.evaluation.inner_loops import Measured
from optserve_server.evaluation.plans import Plan, PlanError, PlannedTask
from optserve_server.evaluation.rules import Rule
from optserve_server.optimizers import build, weights


def bowl(**parameters: float) -> dict[str, Any]:
    return {"family": "bowl", "parameters": parameters}


@pytest.mark.parametrize(("curvature", "best"), [(1000.0, 0.001), (2.0, 0.464), (20_000.0, 4.64e-5)])
def test_the_grid_of_a_baseline_grows_until_its_best_is_inside(curvature: float, best: float) -> None:
    """Gradient descent of rate 1/curvature is there in one step; PyTorch's default is 0.001."""
    curves = carried_out(plan(bowl(curvature=curvature), baselines=["sgd"], steps=2)).curves[1]
    rates = [tried.learning_rate for tried in curves.learning_rates]
    assert curves.learning_rate == best
    assert rates == sorted(rates)
    assert len(rates) >= 9
    assert 0 < rates.index(best) < len(rates) - 1
    medians = [tried.median for tried in curves.learning_rates if tried.median is not None]
    assert curves.median[-1] == min(medians)
    ratios = [high / low for low, high in pairwise(rates)]
    assert all(2 < ratio < 3 for ratio in ratios)


def test_a_grid_without_a_best_inside_stops_growing() -> None:
    curves = carried_out(plan(bowl(curvature=0.0, slope=1.0), baselines=["sgd"])).curves[1]
    assert len(curves.learning_rates) == 27
    assert curves.learning_rate == curves.learning_rates[-1].learning_rate > 1000


def test_a_baseline_that_always_diverges_is_tried_at_lower_rates() -> None:
    curves = carried_out(plan(bowl(curvature=1e12), baselines=["sgd"], steps=30)).curves[1]
    assert len(curves.learning_rates) == 27
    assert curves.learning_rates[0].learning_rate < 1e-9
    assert [tried.median for tried in curves.learning_rates[-7:]] == [None] * 7


def test_divergence_counts_losses_that_grew_or_are_not_finite_and_json_has_null_for_them() -> None:
    growing, exploding, falling = bowl(curvature=-0.001), bowl(curvature=1e30), bowl()
    result = carried_out(plan(growing, exploding, falling, baselines=["sgd"], steps=30))
    by_cell = {(curves.task, curves.optimizer): curves for curves in result.curves}
    assert by_cell[1, "sgd"].learning_rates[-1].divergence == 1.0
    assert by_cell[2, "sgd"].divergence == 0.0
    json.dumps(dataclasses.asdict(result), allow_nan=False)

    climbing = carried_out(plan(bowl(slope=-1.0), steps=30), entrant(output_scale=1e3)).curves[0]
    assert climbing.divergence == 1.0
    assert climbing.median[-1] is not None


def test_median_and_quartiles_are_over_seeds() -> None:
    curves = carried_out(plan("bowl", seeds=5)).curves[0]
    for point in range(6):
        low, middle, high = sorted(seed[point] for seed in curves.losses)[1:4]  # type: ignore[type-var]
        assert (curves.lower_quartile[point], curves.median[point], curves.upper_quartile[point]) == (low, middle, high)


def test_the_same_plan_gives_the_same_result_interrupted_or_not() -> None:
    chosen = plan("bowl", "quadratic", baselines=["sgd", "adam"])
    whole = carried_out(chosen)
    assert carried_out(chosen) == whole
    told: list[Progress] = []
    assert carried_out(chosen, finished=tuple(whole.curves[:3]), tell=told.append) == whole
    assert {(progress.task, progress.optimizer) for progress in told} == {
        ("quadratic", "learned"),
        ("quadratic", "sgd"),
        ("quadratic", "adam"),
    }
    alone = carried_out(plan("quadratic"))
    assert alone.curves[0].losses == whole.curves[3].losses  # a task does not depend on those beside it


def test_progress_tells_of_every_cell_and_its_curves_once() -> None:
    told: list[Progress] = []
    result = carried_out(plan("bowl", "quadratic", baselines=["sgd"], steps=60), tell=told.append)
    assert [progress.curves for progress in told if progress.curves] == result.curves
    assert [progress.done for progress in told if progress.curves] == [1, 2, 3, 4]
    assert {progress.cells for progress in told} == {4}
    assert [progress.step for progress in told if progress.optimizer == "learned"] == [0, 50, 60, 60] * 2
    assert all(told[i].done <= told[i + 1].done for i in range(len(told) - 1))


def test_what_is_no_learned_optimizer_is_named() -> None:
    with pytest.raises(PlanError, match=r"optimizers: notes\.txt is no weights file: "):
        Entrant.read("notes.txt", b"not safetensors")
    with pytest.raises(PlanError, match="x is designed by hand; name it in `baselines`"):
        Entrant.read("x", weights.encode(build({"kind": "adam"}), {}))
    assert torch.equal(entrant().phi["output.bias"], torch.zeros(1))


def test_a_best_rate_beyond_a_plateau_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """As gradient descent on a deep sigmoid perceptron: a shallow best at 0.0464, a deep one at 4.64."""

    def final(rate: float) -> float:
        return 1.5 if 2 < rate < 9 else 2.9 if rate > 9 else 2.3 + abs(math.log10(rate / 0.0464)) / 100

    def run(
        task: PlannedTask, rule: Rule, plan: Plan, horizons: Sequence[int], rates: Sequence[float], device: torch.device
    ) -> Generator[int, None, list[Measured]]:
        yield plan.steps
        return [Measured(np.array([[[2.5, final(rate)]] for rate in rates]), None)]

    monkeypatch.setattr(baselines.inner_loops, "run", run)
    (tuned,) = to_end(baselines.tune(plan("bowl").tasks[0], "sgd", plan("bowl")))  # type: ignore[arg-type, type-var]
    assert tuned.learning_rate in (2.15, 4.64)
    assert [tried.learning_rate for tried in tuned.tried][-1] > 9
