"""One battery for every optimizer: a new one is one row of OPTIMIZERS."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from optserve_server import optimizers
from optserve_server.optimizers import HiddenState, Observations, Optimizer, initial_state, serving, weights
from optserve_server.optimizers.base import PAGE
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
}
EVERY = pytest.mark.parametrize("name", OPTIMIZERS)


def build(name: str) -> tuple[Optimizer, dict[str, torch.Tensor]]:
    optimizer = optimizers.build(OPTIMIZERS[name])
    return optimizer, optimizer.initial_phi(torch.Generator().manual_seed(1))


def observe(gradients: torch.Tensor, step: int = 0) -> Observations:
    return Observations(gradients, torch.tensor([float(step)], dtype=torch.float64), gradients.cos())


def gradients_of(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    exponents = torch.empty(shape).uniform_(-14, 4, generator=generator)
    return (torch.randn(shape, generator=generator) * exponents.exp()).to(dtype)


def run(
    name: str, steps: int, n: int = 40, dtype: torch.dtype = torch.float32
) -> tuple[list[torch.Tensor], HiddenState]:
    optimizer, phi = build(name)
    phi = {key: value.to(dtype) for key, value in phi.items()}
    state = initial_state(optimizer, ((n,),), like=torch.empty(0, dtype=dtype))
    updates = []
    for step in range(steps):
        g, state = optimizer.step(phi, observe(gradients_of(n, seed=step, dtype=dtype), step), state)
        updates.append(g)
    return updates, state


@EVERY
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_shapes_and_dtypes_are_the_contracts(name: str, dtype: torch.dtype) -> None:
    optimizer, _ = build(name)
    updates, state = run(name, 3, dtype=dtype)
    assert all(g.shape == (40,) and g.dtype == dtype and g.isfinite().all() for g in updates)
    assert state.coordinates.shape == (len(optimizer.features), 40)
    assert state.coordinates.dtype == dtype
    assert len(set(optimizer.features)) == len(optimizer.features)
    assert optimizer.needs <= optimizer.uses


@EVERY
def test_the_same_run_twice_gives_the_same_bits(name: str) -> None:
    first, second = run(name, 5), run(name, 5)
    assert all(torch.equal(a, b) for a, b in zip(first[0], second[0], strict=True))
    assert torch.equal(first[1].coordinates, second[1].coordinates)


@EVERY
def test_float32_follows_float64(name: str) -> None:
    single, double = run(name, 20), run(name, 20, dtype=torch.float64)
    for a, b in zip(single[0], double[0], strict=True):
        torch.testing.assert_close(a.double(), b, rtol=2e-3, atol=1e-5)


@EVERY
def test_a_batch_of_tasks_is_each_task_alone(name: str) -> None:
    optimizer, phi = build(name)
    gradients = gradients_of(3, 17)
    together, state = optimizer.step(phi, observe(gradients), initial_state(optimizer, ((17,),), (3,)))
    for task in range(3):
        alone, alone_state = optimizer.step(phi, observe(gradients[task]), initial_state(optimizer, ((17,),)))
        torch.testing.assert_close(together[task], alone)
        torch.testing.assert_close(state.coordinates[task], alone_state.coordinates)


@EVERY
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


@EVERY
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


@EVERY
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


@EVERY
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


@EVERY
def test_the_kernel_that_serves_is_chosen(name: str) -> None:
    optimizer, _ = build(name)
    assert serving.kernel_name(optimizer.kind) == ("numba" if optimizer.learned else "torch")


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


@EVERY
@pytest.mark.parametrize("size", [0.0, 1e-38, 1e18, 3e38])
def test_no_finite_gradient_breaks_it(name: str, size: float) -> None:
    """Not in the reference and not where it is served; and afterwards it goes on."""
    optimizer, phi = build(name)
    arena = torch.zeros(1, len(optimizer.features), PAGE)
    state = initial_state(optimizer, ((PAGE,),))
    for step in range(4):
        gradients = torch.full((PAGE,), size if step < 2 else 1.0)
        served = step_pages(optimizer, phi, arena, [0], observe(gradients[None], step))
        updates, state = optimizer.step(phi, observe(gradients, step), state)
        if optimizer.learned:  # the hand-designed do as PyTorch's
            assert served.isfinite().all()
            assert updates.isfinite().all()
