"""Comparisons, against the same numbers computed plainly."""

import math
from collections.abc import Sequence

import numpy as np
import pytest

from optserve.wire.evaluations import Curves, EvaluatedTask, Loss
from optserve_server.evaluation.comparisons import cells, compare, comparison, interquartile_mean

LIMIT = math.exp(1.5)


def task(family: str = "bowl", steps: int = 100) -> EvaluatedTask:
    return EvaluatedTask(family, family, {}, 1.0, steps)


def curves(
    number: int, name: str, *losses: Sequence[Loss], held_out: Sequence[float] = (), **changes: object
) -> Curves:
    """Of seeds, the first and the last loss of each; or of all points, if there is one."""
    steps = len(losses[0]) - 1
    median = [_median([seed[point] for seed in losses]) for point in range(steps + 1)]
    is_baseline = name != "mine"
    found = Curves(
        number, name, is_baseline, None, [], list(range(steps + 1)), list(map(list, losses)), median, [], [], 0.0
    )
    found.held_out = list(held_out)
    found.best_held_out = [loss / 2 for loss in held_out] if is_baseline else []
    for field, value in changes.items():
        setattr(found, field, value)
    return found


def _median(losses: Sequence[Loss]) -> Loss:
    median = float(np.median([math.inf if loss is None else loss for loss in losses]))
    return median if math.isfinite(median) else None


def test_ratios_wins_and_divergence_are_numpys() -> None:
    rng = np.random.default_rng(0)
    tasks = [task(family, steps) for family in ("a", "b") for steps in (10, 100)] * 3
    own, theirs = (np.exp(rng.normal(0, 1.5, (12, 5))) for _ in range(2))
    held_out = np.exp(rng.normal(size=(2, 12, 5)))
    found = [
        curves(place, name, *([4.0, loss] for loss in losses[place]), held_out=rows[place], divergence=place % 2 * 0.2)
        for name, losses, rows in (("mine", own, held_out[0]), ("adam", theirs, held_out[1]))
        for place in range(12)
    ]
    mine, adam = np.median(own, axis=1), np.median(theirs, axis=1)
    logarithms = np.clip(np.log(mine / adam), -1.5, 1.5)
    floored = np.clip(np.log((mine + 4e-3) / (adam + 4e-3)), -1.5, 1.5)
    rows = np.clip(np.log(np.median(held_out[0], axis=1) / np.median(held_out[1] / 2, axis=1)), -1.5, 1.5)
    by_part = {(one.family, one.steps): one for one in compare(tasks, found) if one.optimizer == "mine"}
    parts = {
        (None, None): np.arange(12) >= 0,
        (None, 10): np.arange(12) % 2 == 0,
        (None, 100): np.arange(12) % 2 == 1,
        ("a", None): np.arange(12) % 4 < 2,
        ("b", None): np.arange(12) % 4 >= 2,
    }
    assert set(by_part) == set(parts)
    for part, chosen in parts.items():
        one = by_part[part]
        assert one.cells == one.held_out_cells == chosen.sum()
        assert one.ratio == pytest.approx(np.exp(logarithms[chosen].mean()), rel=1e-4)
        assert one.floored_ratio == pytest.approx(np.exp(floored[chosen].mean()), rel=1e-4)
        assert one.held_out_ratio == pytest.approx(np.exp(rows[chosen].mean()), rel=1e-4)
        assert (one.wins, one.ties) == ((mine < adam)[chosen].sum(), 0)
        assert one.runs_won == pytest.approx((own < theirs)[chosen].mean(), rel=1e-4)
        assert one.divergence == pytest.approx(0.2 * (np.arange(12) % 2)[chosen].mean(), rel=1e-4)
    assert 0 < by_part[None, None].wins < 12


@pytest.mark.parametrize(
    ("own", "other", "ratio", "floored"),
    [
        (1e-9, 1e-12, 1.0, 1.0),  # both have solved it
        (1e-9, 1e-4, 1 / LIMIT, 1.0),
        (1e-2, 2e-2, 0.5, 0.52),
        (9.0, 1.0, LIMIT, LIMIT),
        (None, 1.0, LIMIT, LIMIT),
        (1.0, None, 1 / LIMIT, 1 / LIMIT),
        (None, None, 1.0, 1.0),
    ],
)
def test_a_cell_has_limits(own: Loss, other: Loss, ratio: float, floored: float) -> None:
    (one, _) = compare([task()], [curves(0, "mine", [1.0, own]), curves(0, "adam", [1.0, other])])[:2]
    assert one.ratio == pytest.approx(ratio, rel=1e-4)
    assert one.floored_ratio == pytest.approx(floored, rel=0.1)
    assert one.held_out_ratio is None
    assert one.ties == (ratio == 1)
    assert one.runs_won == (0.5 if ratio == 1 else float(ratio < 1))


def falling(speed: float, steps: int = 100, noise: float = 0.0) -> list[float]:
    wave = np.exp(noise * np.sin(np.arange(steps + 1) * 2.5))
    return (np.exp(-speed * np.arange(steps + 1) / 50) * wave).tolist()


@pytest.mark.parametrize("noise", [0.0, 0.02])
@pytest.mark.parametrize("factor", [0.25, 0.5, 1.0, 2.0, 4.0])
def test_the_speed_up_is_how_many_times_fewer_steps_it_takes(factor: float, noise: float) -> None:
    (cell,) = cells(
        [task()], [curves(0, "mine", falling(factor)), curves(0, "adam", falling(1.0, noise=noise))], "mine", "adam"
    )
    assert cell.speed_up == pytest.approx(factor, rel=0.15)


def test_the_speed_up_of_what_diverges_is_the_least_and_of_what_does_not_move_likewise() -> None:
    still, rising, exploding = [1.0] * 101, np.linspace(1, 2, 101).tolist(), [1.0] * 50 + [None] * 51
    for bad in (still, rising, exploding):
        found = [curves(0, "mine", bad), curves(0, "adam", falling(1.0)), curves(0, "sgd", bad)]
        (slow,) = cells([task()], found, "mine", "adam")
        assert slow.speed_up == pytest.approx(0.01)
        (fast,) = cells([task()], found, "adam", "sgd")
        assert fast.speed_up == pytest.approx(100)
        (alike,) = cells([task()], found, "mine", "sgd")
        assert alike.speed_up == 1


@pytest.mark.parametrize("count", [1, 3, 4, 7, 12])
def test_the_interquartile_mean_is_scipys_trimmed_one(count: int) -> None:
    from scipy.stats import trim_mean

    values = np.random.default_rng(count).lognormal(size=count)
    assert interquartile_mean(values.tolist()) == pytest.approx(trim_mean(values, 0.25))


def test_every_optimizer_and_baseline_is_compared_with_every_other_baseline() -> None:
    found = [curves(0, name, [1.0, loss]) for name, loss in (("mine", 0.5), ("adam", 0.25), ("sgd", 1.0))]
    pairs = {(one.optimizer, one.baseline): one.ratio for one in compare([task()], found) if one.steps is None}
    assert pairs.keys() == {("mine", "adam"), ("mine", "sgd"), ("adam", "sgd"), ("sgd", "adam")}
    assert pairs["mine", "adam"] == pytest.approx(2)
    assert comparison(cells([task()], found, "adam", "mine")).ratio == pytest.approx(0.5)
