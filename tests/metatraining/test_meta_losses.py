"""Every meta-loss against NumPy, whole and window by window."""

import math
from typing import Any

import numpy as np
import pytest
import torch

from optserve_server.metatraining.meta_losses import bounded, meta_loss
from optserve_server.metatraining.tables import MetaLoss

T = 6
LOSSES = np.random.default_rng(0).uniform(0.5, 4, (T, 3))
INITIAL = np.array([2.0, 0.5, 8.0])

WEIGHTS: list[tuple[Any, Any]] = [
    (None, np.ones(T)),
    ([1.0, 0.0, 2.0, 0.5, 0.0, 3.0], np.array([1.0, 0.0, 2.0, 0.5, 0.0, 3.0])),
    ({"first": 0.0, "last": 1.0}, np.arange(1, T + 1) / T),
    ({"first": 0.3, "last": 2.0, "power": 2.0}, 0.3 + 1.7 * (np.arange(1, T + 1) / T) ** 2),
]


def found(settings: MetaLoss, first: int = 0, last: int = T) -> np.ndarray:
    losses, initial = torch.tensor(LOSSES[first:last]), torch.tensor(INITIAL)
    return meta_loss(settings, losses, initial, first_step=first, horizon=T).numpy()


def test_the_final_loss() -> None:
    np.testing.assert_array_equal(found(MetaLoss()), LOSSES[-1])
    np.testing.assert_allclose(found(MetaLoss(relative=True)), LOSSES[-1] / INITIAL)


@pytest.mark.parametrize(("weights", "w"), WEIGHTS)
def test_sums(weights: Any, w: np.ndarray) -> None:
    np.testing.assert_allclose(found(MetaLoss(kind="sum", weights=weights)), w @ LOSSES)
    np.testing.assert_allclose(found(MetaLoss(kind="sum", weights=weights, relative=True)), w @ (LOSSES / INITIAL))


@pytest.mark.parametrize(("weights", "w"), WEIGHTS)
def test_sums_of_logarithms(weights: Any, w: np.ndarray) -> None:
    plain = MetaLoss(kind="log", weights=weights, floor=0.1)
    np.testing.assert_allclose(found(plain), w @ np.log(LOSSES + 0.1))
    relative = MetaLoss(kind="log", weights=weights, floor=0.1, relative=True)
    np.testing.assert_allclose(found(relative), w @ np.log(LOSSES / INITIAL + 0.1))


@pytest.mark.parametrize("kind", ["sum", "log"])
@pytest.mark.parametrize("weights", [weights for weights, _ in WEIGHTS])
def test_windows_add_up_to_the_trajectory(kind: Any, weights: Any) -> None:
    settings = MetaLoss(kind=kind, weights=weights)
    np.testing.assert_allclose(found(settings, 0, 4) + found(settings, 4, T), found(settings))


def test_what_is_too_large_or_not_finite_counts_the_ceiling() -> None:
    losses, initial = torch.tensor([[math.nan, math.inf, 1e6, 5.0]]), torch.tensor([2.0, 2.0, 2.0, 2.0])
    assert bounded(MetaLoss(ceiling=10), losses, initial).tolist() == [[10, 10, 10, 5]]
    relative = MetaLoss(ceiling=10, relative=True)
    assert bounded(relative, losses, initial).tolist() == [[20, 20, 20, 5]]
    assert meta_loss(relative, losses, initial, first_step=0, horizon=1).tolist() == [10, 10, 10, 2.5]


def test_a_start_at_zero_or_nowhere_has_no_scale() -> None:
    losses, initial = torch.tensor([[3.0, 3.0, 3.0]]), torch.tensor([0.0, math.nan, math.inf])
    assert meta_loss(MetaLoss(relative=True), losses, initial, first_step=0, horizon=1).tolist() == [3, 3, 3]
