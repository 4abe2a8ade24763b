"""Quantiles with infinities, and the ranking by hand."""

import math

import numpy as np
import pytest

from optserve.wire.evaluations import Curves, EvaluatedTask, Loss
from optserve_server.evaluation.summaries import divergence, quantile, rank, to_json


def test_quantiles_are_numpys_where_all_is_finite() -> None:
    losses = np.random.default_rng(0).normal(size=(6, 4))
    for share in (0.0, 0.25, 0.5, 0.75, 1.0):
        np.testing.assert_allclose(quantile(losses, share), np.quantile(losses, share, axis=0))


def test_a_loss_that_is_not_finite_counts_as_infinite() -> None:
    losses = np.array([[1.0], [math.nan], [2.0], [math.inf], [-math.inf]])
    assert quantile(losses, 0.25).tolist() == [2.0]
    assert quantile(losses, 0.5).tolist() == [math.inf]
    assert quantile(losses[:4], 0.5).tolist() == [math.inf]  # half-way between 2 and infinity
    assert to_json(np.array([math.nan, math.inf, 0.123456789])) == [None, None, 0.1234568]


def test_divergence_by_hand() -> None:
    initial = np.array([1.0, 1.0, 1.0, 1.0, 1.0, -1.0])
    final = np.array([0.5, 1.04, 1.06, math.nan, math.inf, -0.96])
    assert divergence(initial, final) == pytest.approx(3 / 6)


def curves(task: int, optimizer: str, final: Loss, *, baseline: bool = False, divergence: float = 0.0) -> Curves:
    return Curves(task, optimizer, baseline, None, [], [0, 9], [], [2.0, final], [], [], divergence)


def tasks(*weights: float) -> list[EvaluatedTask]:
    return [EvaluatedTask("", "", {}, weight, 9) for weight in weights]


def test_the_score_is_the_weighted_geometric_mean_of_ratios_to_the_best_baseline() -> None:
    found = rank(
        tasks(1.0, 2.0),
        [
            *(curves(0, "a", 0.5), curves(0, "adam", 1.0, baseline=True), curves(0, "sgd", 4.0, baseline=True)),
            *(curves(1, "a", 3.0, divergence=0.5), curves(1, "adam", 3.0, baseline=True)),
            curves(1, "sgd", 1.0, baseline=True),
        ],
    )
    lines = {line.optimizer: line for line in found}
    assert lines["a"].score == pytest.approx((0.5 * 3**2) ** (1 / 3), rel=1e-5)
    assert lines["adam"].score == pytest.approx((1 * 3**2) ** (1 / 3), rel=1e-5)
    assert lines["sgd"].score == pytest.approx((4 * 1**2) ** (1 / 3), rel=1e-5)
    assert [line.optimizer for line in found] == ["sgd", "a", "adam"]
    assert [line.wins for line in found] == [1, 1, 0]
    assert lines["a"].divergence == 0.25


@pytest.mark.parametrize(
    ("loss", "best", "score"),
    [(None, 1.0, 100), (1e9, 1.0, 100), (1e-9, 1.0, 0.01), (-5.0, -7.0, 1), (0.0, 0.0, 1), (4e-6, 1e-20, 2)],
)
def test_a_ratio_has_limits_and_what_is_solved_is_level(loss: Loss, best: Loss, score: float) -> None:
    found = rank(tasks(1.0), [curves(0, "a", loss), curves(0, "sgd", best, baseline=True)])
    assert {line.optimizer: line.score for line in found} == {"a": pytest.approx(score), "sgd": 1.0}


def test_where_everything_diverged_nobody_won() -> None:
    found = rank(tasks(1.0), [curves(0, "a", None), curves(0, "sgd", None, baseline=True)])
    assert [(line.score, line.wins) for line in found] == [(100.0, 0), (100.0, 0)]


def test_without_baselines_the_best_optimizer_is_the_measure() -> None:
    found = rank(tasks(1.0), [curves(0, "a", 2.0), curves(0, "b", 1.0)])
    assert [(line.optimizer, line.score) for line in found] == [("b", 1.0), ("a", 2.0)]
