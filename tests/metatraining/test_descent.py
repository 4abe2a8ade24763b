"""How φ moves: schedules of β, clipping, Adam, averaging; each against its own formula."""

from typing import Any

import numpy as np
import pytest
import torch

from optserve_server.metatraining.descent import Descent
from optserve_server.metatraining.schedules import learning_rate
from optserve_server.metatraining.tables import MetaOptimizer

CPU = torch.device("cpu")
N = 10


def rates(**settings: Any) -> list[float]:
    table = MetaOptimizer(learning_rate=2.0, outer_steps=N, **settings)
    return [learning_rate(table, step) for step in range(1, N + 1)]


def test_schedules_are_their_formulas() -> None:
    share = np.arange(N) / N
    assert rates() == [2.0] * N
    np.testing.assert_allclose(rates(schedule="cosine"), 1 + np.cos(np.pi * share))
    np.testing.assert_allclose(
        rates(schedule="cosine", final_learning_rate=0.5), 0.5 + 0.75 * (1 + np.cos(np.pi * share))
    )
    np.testing.assert_allclose(rates(schedule="linear"), 2 * (1 - share))
    np.testing.assert_allclose(rates(schedule="linear", final_learning_rate=1.0), 2 - share)
    np.testing.assert_allclose(rates(schedule="exponential", final_learning_rate=0.02), 2 * 0.01**share)


@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine"])
def test_a_warm_up_rises_to_the_full_rate_and_the_schedule_has_the_rest(schedule: Any) -> None:
    found = rates(schedule=schedule, warm_up=4)
    assert found[:4] == [0.5, 1.0, 1.5, 2.0]
    rest = MetaOptimizer(learning_rate=2.0, outer_steps=N - 4, schedule=schedule)
    assert found[4:] == [learning_rate(rest, step) for step in range(1, N - 3)]


def test_beyond_its_end_a_schedule_stays_where_it_is() -> None:
    settings = MetaOptimizer(learning_rate=2.0, outer_steps=N, schedule="linear", final_learning_rate=0.5)
    assert learning_rate(settings, N + 1) == learning_rate(settings, 10 * N) == 0.5


def gradients(steps: int) -> list[np.ndarray]:
    return list(np.random.default_rng(0).normal(size=(steps, 5)).astype(np.float32))


def moved(settings: MetaOptimizer, steps: int) -> Descent:
    descent = Descent(settings, {"a": torch.zeros(2), "b": torch.zeros(3)}, CPU)
    for step, gradient in enumerate(gradients(steps), start=1):
        descent.clip({"a": torch.tensor(gradient[:2]), "b": torch.tensor(gradient[2:])})
        descent.move(step)
    return descent


def flat(phi: dict[str, torch.Tensor]) -> np.ndarray:
    return torch.cat(list(phi.values())).numpy()


@pytest.mark.parametrize("schedule", ["constant", "cosine"])
def test_gradient_descent_with_clipping(schedule: Any) -> None:
    settings = MetaOptimizer(learning_rate=0.1, clip_norm=1.5, schedule=schedule, outer_steps=N)
    phi = np.zeros(5)
    norms = [float(np.linalg.norm(gradient)) for gradient in gradients(N)]
    assert min(norms) < 1.5 < max(norms)
    for step, (gradient, norm) in enumerate(zip(gradients(N), norms, strict=True), start=1):
        phi -= learning_rate(settings, step) * gradient * min(1, 1.5 / norm)
    np.testing.assert_allclose(flat(moved(settings, N).phi), phi, rtol=1e-5)


def test_adam_with_clipping_is_kingma_and_bas() -> None:
    settings = MetaOptimizer(kind="adam", learning_rate=0.1, clip_norm=0.5, schedule="cosine", outer_steps=N)
    phi, m, v = np.zeros(5), np.zeros(5), np.zeros(5)
    for step, gradient in enumerate(gradients(N), start=1):
        clipped = gradient * min(1, 0.5 / np.linalg.norm(gradient))
        m, v = 0.9 * m + 0.1 * clipped, 0.999 * v + 0.001 * clipped**2
        direction = m / (1 - 0.9**step) / (np.sqrt(v / (1 - 0.999**step)) + 1e-8)
        phi -= learning_rate(settings, step) * direction
    np.testing.assert_allclose(flat(moved(settings, N).phi), phi, rtol=1e-4)


def test_decay_draws_phi_back_to_where_it_began() -> None:
    """φ ← φ − β_t · decay · (φ − φ_0) − β_t ∇, from a φ_0 that is not 0."""
    settings = MetaOptimizer(learning_rate=0.1, schedule="cosine", decay=2.0, outer_steps=N)
    first = np.array([1.0, -2.0, 3.0, 0.5, 0.0])
    given = torch.tensor(first, dtype=torch.float32)
    descent, phi = Descent(settings, {"a": given[:2], "b": given[2:]}, CPU), first.copy()
    for step, gradient in enumerate(gradients(N), start=1):
        descent.clip({"a": torch.tensor(gradient[:2]), "b": torch.tensor(gradient[2:])})
        descent.move(step)
        rate = learning_rate(settings, step)
        phi -= rate * 2.0 * (phi - first) + rate * gradient
        if step == N // 2:  # where it began is part of what is restored
            state, descent = descent.to_state(), Descent(settings, {"a": torch.zeros(2), "b": torch.zeros(3)}, CPU)
            descent.restore(state)
    np.testing.assert_allclose(flat(descent.phi), phi, rtol=1e-5)


def test_the_norm_is_that_before_clipping() -> None:
    descent = Descent(MetaOptimizer(clip_norm=0.1), {"a": torch.zeros(2), "b": torch.zeros(1)}, CPU)
    assert descent.clip({"a": torch.tensor([2.0, 3.0]), "b": torch.tensor([6.0])}).item() == pytest.approx(7)


@pytest.mark.parametrize("kind", ["adam", "gradient-descent"])
def test_what_is_restored_goes_on_as_before(kind: Any) -> None:
    settings = MetaOptimizer(kind=kind, averaging=0.5)
    whole, half = moved(settings, 6), moved(settings, 3)
    state = half.to_state()
    for _ in range(2):  # what goes on after a restoration does not change what was restored
        half.restore(state)
        for step, gradient in enumerate(gradients(6)[3:], start=4):
            half.clip({"a": torch.tensor(gradient[:2]), "b": torch.tensor(gradient[2:])})
            half.move(step)
        assert (flat(half.phi) == flat(whole.phi)).all()
        assert (flat(half.averaged_phi) == flat(whole.averaged_phi)).all()
