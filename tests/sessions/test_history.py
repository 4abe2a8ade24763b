"""A session's history: every step while there are few, evenly thinned when there are many, always with the newest."""

import math

import numpy as np
import pytest

from optserve_server.sessions.history import HISTORY_BYTES, MOST_ITEMS, History, norm


def after(steps: int, first: int = 0) -> History:
    history = History()
    for step in range(first, first + steps):
        history.add(step, step / 4, 2.0 * step, 3.0 * step)
    return history


def steps(history: History) -> list[int]:
    return [item.step for item in history.items()]


def test_few_steps_are_all_there() -> None:
    assert History().items() == []
    history = after(100)
    assert steps(history) == list(range(100))
    item = history.items()[7]
    assert (item.step, item.loss, item.gradient_norm, item.update_norm) == (7, 1.75, 14.0, 21.0)


@pytest.mark.parametrize("first", [0, 12345])
def test_many_steps_are_thinned_evenly(first: int) -> None:
    history = History()
    for step in range(first, first + 5 * MOST_ITEMS + 7):
        history.add(step, None, 1.0, 1.0)
        if step % 37:
            continue
        found = steps(history)
        assert found[-1] == step
        assert len(found) <= MOST_ITEMS <= 2000
        assert len(found) >= min(step - first + 1, MOST_ITEMS // 2)
        if len(found) > 2:
            assert len(set(np.diff(found[:-1]))) == 1
    assert steps(history)[0] - first < 8


def test_it_goes_on_from_its_bytes_as_if_nothing_had_been() -> None:
    for taken in (0, 1, 5, 31, 32, 33, MOST_ITEMS, MOST_ITEMS + 1, 3 * MOST_ITEMS):
        history = after(taken)
        octets = history.to_bytes()
        assert len(octets) <= HISTORY_BYTES + 8
        again = History.from_bytes(octets)
        assert again.items() == history.items()
        for step in range(taken, taken + 70):
            history.add(step, 0.5, 1.0, 1.0)
            again.add(step, 0.5, 1.0, 1.0)
        assert again.items() == history.items()
        assert History.from_bytes(octets).items() == after(taken).items()


def test_what_is_not_finite_or_not_sent_is_none() -> None:
    history = History()
    history.add(0, None, math.inf, math.nan)
    (item,) = history.items()
    assert (item.loss, item.gradient_norm, item.update_norm) == (None, None, None)


@pytest.mark.parametrize("scale", [1e-44, 1e-25, 1e-10, 1.0, 1e10, 3e38])
def test_norms(scale: float) -> None:
    numbers = (np.random.default_rng(0).uniform(-1, 1, size=(10, 256)) * scale).astype(np.float32)
    assert norm(numbers) == pytest.approx(np.linalg.norm(numbers.astype(np.float64).ravel()), rel=1e-6)
    assert norm(np.zeros(5, np.float32)) == 0
    assert math.isnan(norm(np.array([1.0, np.nan], np.float32)))


def test_norms_of_a_million_numbers() -> None:
    numbers = np.random.default_rng(0).normal(size=10**6).astype(np.float32)
    assert norm(numbers) == pytest.approx(np.linalg.norm(numbers.astype(np.float64)), rel=1e-6)
