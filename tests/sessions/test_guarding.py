"""The mathematics of the update guard against an independent recomputation in NumPy."""

from typing import Any

import numpy as np
import pytest
from tests.sessions import recomputed_guard

from optserve_server.optimizers import build
from optserve_server.sessions.guard_options import GuardOptions
from optserve_server.sessions.guarding import GUARD_ARRAYS, Guard
from optserve_server.sessions.layout import Layout, lay_out
from optserve_server.sessions.pages import Arena, StateMemory
from optserve_server.sessions.whole import ArrayLayout

PARAMETERS = [("w", (30, 11)), ("b", (7,)), ("s", ()), ("v", (2, 150))]
LIMIT, PATIENCE = 0.5, 4


class Guarded:
    """A guard with pages and arrays of its own, of an optimizer whose updates are whatever they are said to be."""

    def __init__(self, kind: str = "sgd", limit: float = LIMIT, patience: int = PATIENCE) -> None:
        self.optimizer = build({"kind": kind})
        self.layout: Layout = lay_out(PARAMETERS, 10**6)
        array_layout = ArrayLayout(self.optimizer, self.layout)
        self.guard = Guard(GuardOptions(limit, patience), array_layout)
        self.arena = Arena(len(self.optimizer.features), StateMemory(1 << 24))
        self.arena.allocate(3)  # so that the session's pages are not the arena's first
        self.pages = self.arena.allocate(self.layout.pages).flip(0)
        self.arrays = array_layout.initial()
        self.clocks = np.full(len(PARAMETERS), 9)

    def step(self, wanted: Any, gradients: Any = None, loss: float | None = None, skip: Any = ()) -> Any:
        """The updates that come of those that are wanted, and the notes."""
        gradients = np.zeros_like(wanted) if gradients is None else gradients
        updates, seen = self._paged(wanted), self._paged(gradients)
        state = (self.arena, self.pages, self.arrays, self.clocks)
        notes = self.guard.step(updates, seen, loss, self.layout.select(skip), *state)
        return updates.reshape(-1)[: self.layout.coordinates], notes

    def events(self, notes: Any) -> dict[str, tuple[str, str]]:
        return {name: (note.event, note.reason) for note in notes for name in note.tensors}

    def _paged(self, values: Any) -> np.ndarray:
        padded = np.zeros((self.layout.pages, 256), np.float32)
        padded.reshape(-1)[: self.layout.coordinates] = values
        return padded


def trouble(generator: np.random.Generator, layout: Layout, chance: float) -> np.ndarray:
    """Updates that some tensors want too large, or not finite."""
    wanted = (generator.normal(size=layout.coordinates) * 0.1).astype(np.float32)
    for parameter in layout.parameters:
        place = slice(parameter.offset, parameter.stop)
        dice = generator.uniform()
        if dice < chance:
            wanted[place] *= 1e4
        elif dice < 2 * chance:
            wanted[generator.integers(parameter.offset, parameter.stop)] = generator.choice([np.nan, np.inf, -np.inf])
    return wanted


def losses(generator: np.random.Generator, step: int) -> float | None:
    """Falling and noisy; then it explodes and stays, and at last falls again. Some are not sent."""
    if step % 7 == 3:
        return None
    level = 5 * 0.97**step if step < 60 else 3e3 if step < 130 else 20.0 if step < 170 else 0.5
    return float(level * (1 + 0.02 * generator.normal()))


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("chance", [0.01, 0.2])
def test_every_update_and_every_event_is_the_recomputed_one(seed: int, chance: float) -> None:
    generator = np.random.default_rng(seed)
    guarded = Guarded()
    layout = guarded.layout
    tensors = {name: recomputed_guard.Tensor(LIMIT, PATIENCE) for name, _ in PARAMETERS}
    run = recomputed_guard.Losses(PATIENCE)
    seen = set()
    for step in range(250):
        wanted = trouble(generator, layout, chance if step % 60 < 30 else 0.0)
        gradients = (generator.normal(size=layout.coordinates) * 10.0 ** generator.uniform(-12, 18)).astype(np.float32)
        loss = losses(generator, step)
        skip = [name for name, _ in PARAMETERS if generator.uniform() < 0.1]
        updates, notes = guarded.step(wanted, gradients, loss, skip)
        if len(skip) < len(PARAMETERS):
            run.step(loss)
        expected_events = {}
        for parameter in layout.parameters:
            place = slice(parameter.offset, parameter.stop)
            if parameter.name in skip:
                continue
            expected, event = tensors[parameter.name].step(
                wanted[place].astype(np.float64), gradients[place].astype(np.float64), run.halvings
            )
            np.testing.assert_allclose(updates[place], expected, rtol=1e-4, atol=1e-7, err_msg=f"{step} {event}")
            assert np.sqrt(np.mean(np.float64(updates[place]) ** 2)) <= LIMIT * 1.00001
            if event:
                expected_events[parameter.name] = event
        assert guarded.events(notes) == expected_events, step
        seen |= {(event, reason, run.halvings) for event, reason in expected_events.values()}
    assert {(event, reason) for event, reason, _ in seen} >= {
        (event, reason) for event in ("fallback", "held", "back") for reason in ("update-rms", "loss-rise")
    }
    assert ("held", "non-finite") in {(event, reason) for event, reason, _ in seen}
    assert max(halvings for *_, halvings in seen) >= 4


def test_a_calm_step_leaves_the_updates_alone_and_tells_nothing() -> None:
    guarded = Guarded()
    wanted = np.random.default_rng(0).uniform(-0.5, 0.5, guarded.layout.coordinates).astype(np.float32)
    for _ in range(5):
        updates, notes = guarded.step(wanted, loss=1.0)
        assert notes == ()
        np.testing.assert_array_equal(updates, wanted)


def test_the_moments_of_hierarchical_are_its_own_and_give_the_direction() -> None:
    guarded = Guarded("hierarchical")
    assert "guard_moments" not in guarded.guard.sizes
    generator = np.random.default_rng(1)
    state = generator.uniform(0.1, 2, (4, guarded.layout.coordinates)).astype(np.float32)
    guarded.arena.write(guarded.pages, state)
    updates, _ = guarded.step(np.full(guarded.layout.coordinates, np.nan))
    fast, slow_square = state[0], state[3]
    np.testing.assert_allclose(updates, -LIMIT_OF_FIRST * fast / np.sqrt(slow_square), rtol=1e-5)


def test_a_large_direction_is_cut_at_the_limit() -> None:
    guarded = Guarded("hierarchical")
    state = np.ones((4, guarded.layout.coordinates), np.float32)
    state[0] = 10.0  # so the direction is ten times what it mostly is
    guarded.arena.write(guarded.pages, state)
    guarded.step(np.full(guarded.layout.coordinates, 0.4))
    updates, _ = guarded.step(np.full(guarded.layout.coordinates, np.inf))
    np.testing.assert_allclose(updates, -LIMIT, rtol=1e-6)


def test_the_moments_of_small_fc_are_its_own_but_for_their_bias() -> None:
    guarded = Guarded("small_fc")
    assert "guard_moments" not in guarded.guard.sizes
    generator = np.random.default_rng(1)
    state = generator.uniform(0.1, 2, (4, guarded.layout.coordinates)).astype(np.float32)
    guarded.arena.write(guarded.pages, state)
    guarded.arrays["clock"][:] = 3
    updates, _ = guarded.step(np.full(guarded.layout.coordinates, np.nan))
    direction = state[0] / (1 - 0.9**3) / np.sqrt(state[3] / (1 - 0.999**3))
    np.testing.assert_allclose(updates, -LIMIT_OF_FIRST * direction, rtol=1e-5)


LIMIT_OF_FIRST = 1e-3  # the magnitude where no update was let through yet


def test_what_is_not_finite_of_a_tensors_hidden_state_begins_again_at_zero() -> None:
    guarded = Guarded("hierarchical")
    coordinates = guarded.layout.coordinates
    state = np.ones((4, coordinates), np.float32)
    offset = guarded.layout.parameters[3].offset
    state[2, offset + 5] = np.inf  # of v
    guarded.arena.write(guarded.pages, state)
    guarded.arrays["scheduler"][:] = 1
    guarded.arrays["scheduler"][2, 1] = np.nan  # of b
    guarded.arrays["steps"][:] = 5
    guarded.arrays["descent"][0] = np.nan
    wanted = np.zeros(coordinates)
    wanted[330:337], wanted[offset:] = np.nan, np.nan  # b and v; w and s are calm
    _, notes = guarded.step(wanted)
    after = np.empty_like(state)
    guarded.arena.read_into(guarded.pages, after)
    assert (after[:, :offset] == 1).all()
    assert (after[:, offset:] == 0).all()
    assert guarded.arrays["scheduler"].sum(dim=0).tolist() == [8, 0, 8, 8]
    assert guarded.arrays["steps"].item() == 5
    assert (guarded.arrays["descent"] == 0).all()
    assert guarded.clocks.tolist() == [9, 9, 9, 0]
    assert [(note.tensors, note.afresh) for note in notes] == [(["b", "v"], True)]
    for _ in range(PATIENCE):
        guarded.step(np.zeros(coordinates))
    _, notes = guarded.step(np.zeros(coordinates))
    assert [(note.event, note.tensors, note.afresh) for note in notes] == [("back", ["b", "v"], True)]


def test_many_tensors_are_counted_and_the_first_are_named() -> None:
    guarded = Guarded()
    names = [f"p{number}" for number in range(3000)]
    layout = lay_out([(name, (2,)) for name in names], 10**6)
    guarded.layout, guarded.pages = layout, guarded.arena.allocate(layout.pages)
    guarded.guard = Guard(GuardOptions(), ArrayLayout(guarded.optimizer, layout))
    guarded.clocks = np.zeros(3000, np.int64)
    wanted = np.full(layout.coordinates, 3.0)
    wanted[: 2 * 1000] = np.nan
    _, notes = guarded.step(wanted)
    found = [(note.reason, note.count, note.tensors) for note in notes]
    assert found == [("non-finite", 1000, names[:8]), ("update-rms", 2000, names[1000:1008])]


def test_what_it_remembers_is_all_there_is() -> None:
    """A guard that takes up another's arrays goes on as that one."""
    first, second = Guarded(), Guarded()
    generator = np.random.default_rng(3)
    for step in range(100):
        if step == 41:
            second.guard.take_up({name: array.clone() for name, array in first.guard.arrays.items()})
        wanted = trouble(generator, first.layout, 0.1)
        gradients = generator.normal(size=first.layout.coordinates)
        loss = losses(generator, step + 50)
        updates, notes = first.step(wanted, gradients, loss)
        if step >= 41:
            again, same_notes = second.step(wanted, gradients, loss)
            assert again.tobytes() == updates.tobytes()
            assert same_notes == notes
    assert set(first.guard.arrays) == set(GUARD_ARRAYS)


@pytest.mark.parametrize("growth", [1.03, 1.2, 1.5, 10.0])
def test_a_loss_that_grows_is_noticed_however_fast(growth: float) -> None:
    guarded = Guarded(patience=10)
    calm = np.zeros(guarded.layout.coordinates)
    generator = np.random.default_rng(0)
    for _ in range(50):
        assert guarded.step(calm, loss=float(1 + 0.1 * generator.normal()))[1] == ()
    for step in range(60):
        if guarded.step(calm, loss=min(1e300, growth**step))[1]:
            break
    assert step < 59


def test_a_loss_that_only_scatters_or_stands_still_is_no_cause() -> None:
    generator = np.random.default_rng(0)
    calm = np.zeros(lay_out(PARAMETERS, 10**6).coordinates)
    for noise in (lambda: 0.0, generator.normal, lambda: generator.standard_t(2), generator.exponential):
        guarded = Guarded(patience=50)
        for step in range(1500):
            loss = 3.0 + 2.0 * 0.98**step + 0.3 * float(noise())
            assert guarded.step(calm, loss=loss)[1] == (), step


def test_a_loss_that_stands_still_but_for_its_last_bits_is_no_cause() -> None:
    guarded = Guarded(patience=3)
    calm = np.zeros(guarded.layout.coordinates)
    for loss in [1.0, *[1 - 12 * 2**-24] * 30, *[1.0] * 200]:
        assert guarded.step(calm, loss=loss)[1] == ()


def test_halving_ends_at_a_thousandth_and_a_loss_that_stays_ends_the_fallback() -> None:
    guarded = Guarded(patience=2)
    accepted = np.full(guarded.layout.coordinates, 0.25)
    guarded.step(accepted, loss=1.0)
    sizes = []
    for step in range(60):  # it grows, and goes on growing
        updates, _ = guarded.step(accepted, np.ones_like(accepted), loss=1.5**step)
        sizes.append(abs(float(updates[0])))
    assert sizes[0] == 0.25
    assert min(sizes) == pytest.approx(0.25 / 1024)
    notes: Any = "first"
    for _ in range(60):  # it stays
        updates, notes = guarded.step(accepted, np.ones_like(accepted), loss=1.5**59)
    assert notes == ()
    assert abs(float(updates[0])) == 0.25
