"""One battery for every optimizer: a new one is one row of OPTIMIZERS.

Those that treat every coordinate by itself are also served on pages (`COORDINATEWISE`); the others also keep arrays for
each parameter tensor and for the session (`WITH_ARRAYS`).
"""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from optserve_server import optimizers
from optserve_server.optimizers import HiddenState, Observations, Optimizer, Shapes, initial_state, serving, weights
from optserve_server.optimizers.base import PAGE, array_sizes
from optserve_server.optimizers.serving import step_pages

OPTIMIZERS = {
    "lstm": {"kind": "lstm"},
    "lstm-identity": {"kind": "lstm", "preprocessing": "identity", "layers": 1, "hidden_size": 8},
    "rnnprop": {"kind": "rnnprop"},
    "rnnprop-small": {"kind": "rnnprop", "hidden_size": 3, "layers": 1},
    "sgd": {"kind": "sgd", "lr": 0.1},
    "sgd-decayed": {"kind": "sgd", "weight_decay": 0.1, "maximize": True},
    "momentum": {"kind": "momentum", "dampening": 0.1},
    "nesterov": {"kind": "nesterov"},
    "rmsprop": {"kind": "rmsprop"},
    "rmsprop-centered": {"kind": "rmsprop", "centered": True, "momentum": 0.5},
    "adam": {"kind": "adam"},
    "adam-amsgrad": {"kind": "adam", "amsgrad": True, "weight_decay": 0.1},
    "adamw": {"kind": "adamw"},
    "hierarchical": {"kind": "hierarchical"},
    "hierarchical-small": {"kind": "hierarchical", "hidden_size": 3, "scheduler_size": 2},
    "small-fc": {"kind": "small_fc"},
    "small-fc-large": {"kind": "small_fc", "hidden_size": 16, "step_multiplier": 0.1, "magnitude_multiplier": 0.1},
}
PAGED = [name for name, description in OPTIMIZERS.items() if optimizers.build(description).coordinatewise]
EVERY = pytest.mark.parametrize("name", OPTIMIZERS)
LEARNED = pytest.mark.parametrize("name", [n for n, one in OPTIMIZERS.items() if one["kind"] in optimizers.LEARNED])
COORDINATEWISE = pytest.mark.parametrize("name", PAGED)
WITH_ARRAYS = pytest.mark.parametrize("name", [name for name in OPTIMIZERS if name not in PAGED])

SHAPES: Shapes = ((3, 4), (2, 5, 2), (7,), ())
N = 40


def build(name: str) -> tuple[Optimizer, dict[str, torch.Tensor]]:
    """The optimizer and a φ of which no weight is zero."""
    optimizer = optimizers.build(OPTIMIZERS[name])
    generator = torch.Generator().manual_seed(1)
    phi = optimizer.initial_phi(generator)
    return optimizer, {key: value + 0.1 * torch.randn(value.shape, generator=generator) for key, value in phi.items()}


def observe(gradients: torch.Tensor, step: int = 0, shapes: Shapes = SHAPES) -> Observations:
    clock = torch.tensor([float(step)], dtype=torch.float64)
    lead = gradients.shape[:-1]
    loss = (2 + gradients[..., 0].cos() / (1 + step)).reshape(lead)
    return Observations(gradients, clock, gradients.cos(), loss, gradients.new_full(lead, 10.0), shapes)


def gradients_of(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    exponents = torch.empty(shape).uniform_(-14, 4, generator=generator)
    return (torch.randn(shape, generator=generator) * exponents.exp()).to(dtype)


def run(name: str, steps: int, dtype: torch.dtype = torch.float32) -> tuple[list[torch.Tensor], HiddenState]:
    optimizer, phi = build(name)
    phi = {key: value.to(dtype) for key, value in phi.items()}
    state = initial_state(optimizer, SHAPES, like=torch.empty(0, dtype=dtype))
    updates = []
    for step in range(steps):
        g, state = optimizer.step(phi, observe(gradients_of(N, seed=step, dtype=dtype), step), state)
        updates.append(g)
    return updates, state


def assert_equal(one: HiddenState, other: HiddenState) -> None:
    assert torch.equal(one.coordinates, other.coordinates)
    assert one.arrays.keys() == other.arrays.keys()
    for array in one.arrays:
        assert torch.equal(one.arrays[array], other.arrays[array]), array


@EVERY
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_shapes_and_dtypes_are_the_contracts(name: str, dtype: torch.dtype) -> None:
    optimizer, _ = build(name)
    updates, state = run(name, 3, dtype=dtype)
    assert all(g.shape == (N,) and g.dtype == dtype and g.isfinite().all() for g in updates)
    assert state.coordinates.shape == (len(optimizer.features), N)
    assert {name: tuple(array.shape) for name, array in state.arrays.items()} == array_sizes(optimizer, SHAPES)
    assert all(array.dtype == dtype for array in (state.coordinates, *state.arrays.values()))
    assert len(set(optimizer.features)) == len(optimizer.features)
    assert optimizer.needs <= optimizer.uses
    assert bool(state.arrays) != optimizer.coordinatewise


@EVERY
def test_the_same_run_twice_gives_the_same_bits(name: str) -> None:
    first, second = run(name, 5), run(name, 5)
    assert all(torch.equal(a, b) for a, b in zip(first[0], second[0], strict=True))
    assert_equal(first[1], second[1])


@EVERY
def test_float32_follows_float64(name: str) -> None:
    single, double = run(name, 20), run(name, 20, dtype=torch.float64)
    for a, b in zip(single[0], double[0], strict=True):
        torch.testing.assert_close(a.double(), b, rtol=2e-3, atol=1e-5)


@EVERY
def test_a_batch_of_tasks_is_each_task_alone(name: str) -> None:
    optimizer, phi = build(name)
    together = initial_state(optimizer, SHAPES, (3,))
    alone = [initial_state(optimizer, SHAPES) for _ in range(3)]
    for step in range(3):
        observations = observe(gradients_of(3, N, seed=step), step)
        updates, together = optimizer.step(phi, observations, together)
        for task in range(3):
            observed = observe(observations.gradients[task], step)
            expected, alone[task] = optimizer.step(phi, observed, alone[task])
            torch.testing.assert_close(updates[task], expected)
            torch.testing.assert_close(together.coordinates[task], alone[task].coordinates)
            for array in together.arrays:
                torch.testing.assert_close(together.arrays[array][task], alone[task].arrays[array])


@LEARNED
def test_many_phis_at_once_are_each_alone(name: str) -> None:
    """As evolution strategies step their particles, each with its own state."""
    optimizer, phi = build(name)
    phis = {key: torch.stack([value, 0.5 * value, -value]) for key, value in phi.items()}

    def two_steps(phi: dict[str, torch.Tensor], gradients: torch.Tensor) -> torch.Tensor:
        state = initial_state(optimizer, SHAPES, (2,))
        for step in range(2):
            updates, state = optimizer.step(phi, observe(gradients, step), state)
        return updates

    gradients = gradients_of(3, 2, N)
    together = torch.func.vmap(two_steps)(phis, gradients)
    for one in range(3):
        alone = two_steps({key: value[one] for key, value in phis.items()}, gradients[one])
        torch.testing.assert_close(together[one], alone, rtol=1e-4, atol=1e-6)


@COORDINATEWISE
def test_every_coordinate_is_treated_alike(name: str) -> None:
    optimizer, phi = build(name)
    gradients, order = gradients_of(64), torch.randperm(64, generator=torch.Generator().manual_seed(0))
    straight, _ = optimizer.step(phi, observe(gradients), initial_state(optimizer, ((64,),)))
    shuffled, _ = optimizer.step(phi, observe(gradients[order]), initial_state(optimizer, ((64,),)))
    torch.testing.assert_close(straight[order], shuffled)


@EVERY
def test_a_weight_file_gives_the_optimizer_back(name: str) -> None:
    optimizer, phi = build(name)
    data = weights.encode(optimizer, phi, {"seed": "1", "a": "b"})
    decoded, decoded_phi, metadata = weights.decode(data)
    assert decoded == (optimizer if optimizer.learned else optimizers.build({"kind": optimizer.kind}))
    assert metadata["seed"] == "1"
    assert all(torch.equal(phi[key], decoded_phi[key]) for key in phi)
    assert phi.keys() == decoded_phi.keys()
    assert all(weights.encode(optimizer, phi, {"a": "b", "seed": "1"}) == data for _ in range(10))


@LEARNED
@pytest.mark.parametrize("size", [0.0, 1e-38, 1e18, 3e38])
def test_no_finite_gradient_breaks_it(name: str, size: float) -> None:
    """Afterwards it goes on; and ∇_φ is finite too, as is what goes back through the gradients."""
    optimizer, phi = build(name)
    phi = {key: value.requires_grad_() for key, value in phi.items()}
    state = initial_state(optimizer, SHAPES)
    total = torch.zeros(())
    for step in range(4):
        gradients = torch.full((N,), size if step < 2 else 1.0, requires_grad=True)
        updates, state = optimizer.step(phi, observe(gradients, step), state)
        assert updates.isfinite().all()
        total = total + updates.sum()
    found = torch.autograd.grad(total, [*phi.values(), gradients])
    assert all(gradient.isfinite().all() for gradient in found)


# --- on pages ---------------------------------------------------------------------------------------------------------


@COORDINATEWISE
def test_served_pages_follow_the_reference(name: str) -> None:
    optimizer, phi = build(name)
    arena = torch.full((20, len(optimizer.features), PAGE), 7.0)
    pages = [13, 2, 5]
    arena[pages] = 0
    state = initial_state(optimizer, ((3 * PAGE,),))
    for step in range(10):
        gradients = gradients_of(3 * PAGE, seed=step)
        served = step_pages(optimizer, phi, arena, pages, observe(gradients.view(3, PAGE), step))
        updates, state = optimizer.step(phi, observe(gradients, step), state)
        torch.testing.assert_close(served.flatten(), updates, rtol=1e-5, atol=1e-6)
    untouched = [page for page in range(20) if page not in pages]
    assert (arena[untouched] == 7.0).all()


@COORDINATEWISE
def test_an_inactive_coordinate_stands_still(name: str) -> None:
    """Of four pages one is active in part, one not at all, two wholly; the active ones do as if all were."""
    optimizer, phi = build(name)
    pages = [3, 1, 4, 0]
    before = gradients_of(5, len(optimizer.features), PAGE).abs()
    arena, whole = before.clone(), before.clone()
    active = torch.ones(4, PAGE, dtype=torch.bool)
    active[0, ::3], active[1] = False, False
    observations = observe(gradients_of(4, PAGE))
    updates = step_pages(optimizer, phi, arena, pages, observations, active)
    expected = step_pages(optimizer, phi, whole, pages, observations)
    assert torch.equal(updates, torch.where(active, expected, 0.0))
    assert torch.equal(arena[pages], torch.where(active.unsqueeze(1), whole[pages], before[pages]))
    assert torch.equal(arena[2], before[2])


@COORDINATEWISE
@settings(max_examples=12, deadline=None)
@given(data=st.data())
def test_a_page_depends_on_nothing_but_itself(name: str, data: st.DataObject) -> None:
    """Bit for bit: whatever else is in the batch, in whatever page, on however many threads."""
    optimizer, phi = build(name)
    capacity = 24
    pages = data.draw(st.lists(st.integers(0, capacity - 1), min_size=1, max_size=20, unique=True))
    chosen = data.draw(st.sampled_from(range(len(pages))))
    threads = data.draw(st.sampled_from([1, 2]))
    clock = torch.full((len(pages), PAGE), 3.0, dtype=torch.float64)
    state, gradients = gradients_of(len(optimizer.features), PAGE).abs(), gradients_of(PAGE, seed=5)

    alone = torch.zeros(1, len(optimizer.features), PAGE)
    alone[0] = state
    reference = step_pages(optimizer, phi, alone, [0], Observations(gradients[None], clock[:1, :1][0], gradients[None]))

    arena = gradients_of(capacity, len(optimizer.features), PAGE, seed=9).abs()
    batch = gradients_of(len(pages), PAGE, seed=3)
    arena[pages[chosen]], batch[chosen] = state, gradients
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        updates = step_pages(optimizer, phi, arena, pages, Observations(batch, clock, batch))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(updates[chosen], reference[0])
    assert torch.equal(arena[pages[chosen]], alone[0])


@COORDINATEWISE
def test_the_kernel_that_serves_is_chosen(name: str) -> None:
    optimizer, _ = build(name)
    assert serving.kernel_name(optimizer.kind) == ("numba" if optimizer.learned else "torch")


@COORDINATEWISE
@pytest.mark.parametrize("size", [0.0, 1e-38, 1e18, 3e38])
def test_no_finite_gradient_breaks_what_is_served(name: str, size: float) -> None:
    """The hand-designed do as PyTorch's."""
    optimizer, phi = build(name)
    arena = torch.zeros(1, len(optimizer.features), PAGE)
    for step in range(4):
        gradients = torch.full((1, PAGE), size if step < 2 else 1.0)
        served = step_pages(optimizer, phi, arena, [0], observe(gradients, step))
        assert not optimizer.learned or served.isfinite().all()


@pytest.mark.parametrize("name", ["lstm", "lstm-identity", "rnnprop", "rnnprop-small"])
def test_200_served_steps_stay_with_the_reference(name: str) -> None:
    optimizer, phi = build(name)
    arena = torch.zeros(2, len(optimizer.features), PAGE)
    state = initial_state(optimizer, ((2 * PAGE,),))
    for step in range(200):
        gradients = gradients_of(2 * PAGE, seed=step)
        served = step_pages(optimizer, phi, arena, [0, 1], observe(gradients.view(2, PAGE), step))
        updates, state = optimizer.step(phi, observe(gradients, step), state)
        torch.testing.assert_close(served.flatten(), updates, rtol=0, atol=1e-5 if step < 20 else 1e-4)


# --- with arrays of tensors and of the session ------------------------------------------------------------------------


@WITH_ARRAYS
def test_the_order_of_the_tensors_does_not_matter(name: str) -> None:
    optimizer, phi = build(name)
    shapes, backwards = ((4, 3), (5,), (2, 6)), ((2, 6), (5,), (4, 3))
    one, other = initial_state(optimizer, shapes), initial_state(optimizer, backwards)
    for step in range(4):
        parts = gradients_of(29, seed=step).split((12, 5, 12))
        loss, horizon = torch.tensor(1 / (1 + step)), torch.tensor(20.0)
        clock = torch.tensor([float(step)])
        updates, one = optimizer.step(phi, Observations(torch.cat(parts), clock, None, loss, horizon, shapes), one)
        turned = Observations(torch.cat(parts[::-1]), clock, None, loss, horizon, backwards)
        turned_updates, other = optimizer.step(phi, turned, other)
        torch.testing.assert_close(torch.cat(turned_updates.split((12, 5, 12))[::-1]), updates, rtol=1e-4, atol=1e-7)


@WITH_ARRAYS
def test_the_number_of_threads_changes_no_bit(name: str) -> None:
    optimizer, phi = build(name)
    shapes = ((300, 400), (90_000,))

    def two_steps(threads: int) -> tuple[torch.Tensor, HiddenState]:
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        try:
            state = initial_state(optimizer, shapes)
            for step in range(2):
                updates, state = optimizer.step(phi, observe(gradients_of(210_000, seed=step), step, shapes), state)
        finally:
            torch.set_num_threads(before)
        return updates, state

    (updates, state), (others, other_state) = two_steps(1), two_steps(3)
    assert torch.equal(updates, others)
    assert_equal(state, other_state)


@WITH_ARRAYS
def test_it_works_without_what_it_can_use(name: str) -> None:
    """No parameters, no horizon, and a loss at some steps only."""
    optimizer, phi = build(name)
    state = initial_state(optimizer, SHAPES)
    for step in range(6):
        loss = torch.tensor(3.0 - step) if step in (2, 4) else None
        gradients = gradients_of(N, seed=step)
        updates, state = optimizer.step(phi, Observations(gradients, torch.zeros(1), None, loss, None, SHAPES), state)
        assert updates.isfinite().all()
        assert updates.abs().max() > 0
