"""The kernel of `hierarchical`: that it computes what the module does, loop by loop, and when it is chosen."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from optserve_server import optimizers
from optserve_server.optimizers import HiddenState, Observations, Optimizer, Shapes, initial_state, serving
from optserve_server.optimizers.fused import FixedPhi
from optserve_server.optimizers.fused_hierarchy import CHUNK, HierarchicalStepper
from optserve_server.optimizers.steppers import ModuleStepper, stepper

SHAPES: Shapes = ((3, 4), (2,), (5, 16), (1,), (64,))  # less than a vector, exactly a block, and more
LOOPS = 3


@pytest.fixture(autouse=True)
def _without_graph() -> Any:
    with torch.no_grad():
        yield


def build(sizes: dict[str, int], loops: int | None = LOOPS) -> tuple[Optimizer, dict[str, Tensor]]:
    """With noise on every weight; φ of each loop, or one."""
    optimizer = optimizers.build({"kind": "hierarchical", **sizes})
    generator = torch.Generator().manual_seed(3)
    lead = () if loops is None else (loops,)
    phi = optimizer.initial_phi(generator)
    return optimizer, {
        name: weight + 0.3 * torch.randn(*lead, *weight.shape, generator=generator) for name, weight in phi.items()
    }


def start(optimizer: Optimizer, shapes: Shapes = SHAPES, loops: int = LOOPS) -> HiddenState:
    """h_0, but for tensors that were left out of some steps before."""
    state = initial_state(optimizer, shapes, (loops,))
    return HiddenState(state.coordinates, state.arrays | {"steps": torch.full((loops, 1, 1), 3.0)})


def observe(
    steps: int, shapes: Shapes = SHAPES, loops: int = LOOPS, *, loss: bool = True, horizon: float | None = 150.0
) -> list[Observations]:
    """Gradients of all sizes, with a spike; a loss that falls, rises for a while, and falls on."""
    generator, n = torch.Generator().manual_seed(4), sum(map(math.prod, shapes))
    found = []
    for step in range(steps):
        gradients = torch.randn(loops, n, generator=generator) * torch.logspace(-6, 2, n) + 0.1
        losses = 3 * 0.98**step + 5 * (60 < step < 100) + torch.rand(loops, generator=generator)
        found.append(
            Observations(
                gradients * (1e4 if step == 17 else 1),
                torch.zeros(1),
                None,
                losses if loss else None,
                None if horizon is None else torch.full((loops,), horizon),
                shapes,
            )
        )
    return found


def follow(phi: dict[str, Tensor], state: HiddenState, observations: list[Observations]) -> tuple[Tensor, HiddenState]:
    taken = HierarchicalStepper(phi, state)
    with taken.at_work():
        updates = torch.stack([taken.step(observed) for observed in observations])
    return updates, taken.state


def exactly(
    optimizer: Optimizer, phi: dict[str, Tensor], state: HiddenState, observations: list[Observations], loop: int
) -> tuple[Tensor, HiddenState]:
    """One loop by the module, in float64."""

    def own(tensor: Tensor) -> Tensor:
        return tensor[loop].double()

    phi = {name: own(weight) for name, weight in phi.items()}
    state = HiddenState(own(state.coordinates), {name: own(array) for name, array in state.arrays.items()})
    found = []
    for seen in observations:
        loss, horizon = (None if value is None else own(value) for value in (seen.loss, seen.horizon))
        observed = Observations(own(seen.gradients), seen.clock, None, loss, horizon, seen.shapes)
        updates, state = optimizer.step(phi, observed, state)
        found.append(updates)
    return torch.stack(found), state


def same(one: tuple[Tensor, HiddenState], other: tuple[Tensor, HiddenState]) -> bool:
    """Bit for bit."""
    pairs = [(one[0], other[0]), (one[1].coordinates, other[1].coordinates)]
    pairs += [(array, other[1].arrays[name]) for name, array in one[1].arrays.items()]
    return all(torch.equal(a, b) for a, b in pairs)


def relative_errors(found: Tensor, expected: Tensor) -> Tensor:
    """Of each step, the largest error as a share of its largest update."""
    return ((found - expected).abs().amax(dim=1) / expected.abs().amax(dim=1)).double()


@pytest.mark.parametrize(
    ("sizes", "loss", "horizon"),
    [
        ({}, True, 150.0),
        ({}, True, None),
        ({}, False, None),
        ({"hidden_size": 5, "scheduler_size": 3}, False, 150.0),
        ({"hidden_size": 20}, True, 12.0),
    ],
)
def test_the_kernel_agrees_with_the_module_in_float64(sizes: dict[str, int], loss: bool, horizon: float | None) -> None:
    """To 1e-5 after one step and to 1e-4 after 200, each loop by its own φ; the horizon is passed on the way."""
    optimizer, phi = build(sizes)
    state, observations = start(optimizer), observe(200, loss=loss, horizon=horizon)
    updates, end = follow(phi, state, observations)
    loop = 1
    expected, expected_end = exactly(optimizer, phi, state, observations, loop)
    errors = relative_errors(updates[:, loop].double(), expected)
    assert errors[0] < 1e-5
    assert errors.max() < 1e-4
    torch.testing.assert_close(end.coordinates[loop].double(), expected_end.coordinates, rtol=1e-4, atol=1e-6)
    for name, array in expected_end.arrays.items():
        torch.testing.assert_close(end.arrays[name][loop].double(), array, rtol=1e-4, atol=1e-5, msg=name)


def test_tensors_of_many_chunks() -> None:
    shapes: Shapes = ((2, CHUNK), (7,), (CHUNK + 1,))
    optimizer, phi = build({}, 2)
    state, observations = start(optimizer, shapes, 2), observe(20, shapes, 2)
    updates, _ = follow(phi, state, observations)
    expected, _ = exactly(optimizer, phi, state, observations, 1)
    assert relative_errors(updates[:, 1].double(), expected).max() < 1e-4


def test_tensors_that_were_left_out_of_some_steps() -> None:
    """Each has its own clock."""
    optimizer, phi = build({})
    state = start(optimizer)
    state.arrays["clock"][:] = torch.tensor([0.0, 3.0, 1.0, 0.0, 2.0])
    observations = observe(30)
    updates, end = follow(phi, state, observations)
    expected, _ = exactly(optimizer, phi, state, observations, 2)
    assert relative_errors(updates[:, 2].double(), expected).max() < 1e-4
    assert end.arrays["clock"][2, 0].tolist() == [30, 33, 31, 30, 32]


def test_one_phi_for_all_loops() -> None:
    """Bit for bit as if each had it for its own."""
    optimizer, phi = build({}, None)
    each = {name: weight.expand(LOOPS, *weight.shape) for name, weight in phi.items()}
    state, observations = start(optimizer), observe(20)
    assert same(follow(phi, state, observations), follow(each, state, observations))


def test_a_loop_stands_for_itself() -> None:
    """Bit for bit, whatever runs beside it; and a window in parts is the window."""
    optimizer, phi = build({})
    state, observations = start(optimizer), observe(20)
    updates, end = follow(phi, state, observations)
    last = slice(2, 3)

    def seen_alone(o: Observations) -> Observations:
        assert o.loss is not None
        assert o.horizon is not None
        return Observations(o.gradients[last], o.clock, None, o.loss[last], o.horizon[last], SHAPES)

    def own(state: HiddenState) -> HiddenState:
        return HiddenState(state.coordinates[last], {name: array[last] for name, array in state.arrays.items()})

    alone = [seen_alone(observed) for observed in observations]
    own_phi = {name: weight[last] for name, weight in phi.items()}
    first, middle = follow(own_phi, own(state), alone[:7])
    second, own_end = follow(own_phi, middle, alone[7:])
    assert same((torch.cat((first, second)), own_end), (updates[:, last], own(end)))
    assert (state.coordinates == 0).all()  # what a window starts from is left as it was


def test_the_number_of_threads_changes_no_bit() -> None:
    shapes: Shapes = ((3000,), (5,))
    optimizer, phi = build({}, 7)
    state, observations, before = start(optimizer, shapes, 7), observe(5, shapes, 7), torch.get_num_threads()
    results = []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            results.append(follow(phi, state, observations))
    finally:
        torch.set_num_threads(before)
    assert same(results[0], results[1])
    assert same(results[0], results[2])


@pytest.mark.parametrize("loss", [0.0, 1e-45, -3e38, math.inf])
def test_no_loss_breaks_it(loss: float) -> None:
    optimizer, phi = build({})
    observations = [
        Observations(o.gradients, o.clock, None, torch.full((LOOPS,), loss if step % 2 else 1.0), o.horizon, SHAPES)
        for step, o in enumerate(observe(30))
    ]
    updates, _ = follow(phi, start(optimizer), observations)
    assert updates.isfinite().all()
    expected, _ = exactly(optimizer, phi, start(optimizer), observations, 0)
    assert relative_errors(updates[:2, 0].double(), expected[:2]).max() < 1e-4


def test_a_loop_that_is_not_finite_says_so_and_disturbs_no_other() -> None:
    optimizer, phi = build({})
    observations = observe(5)
    updates, _ = follow(phi, start(optimizer), observations)
    for broken in (math.nan, math.inf):
        observations[2].gradients[1, 20] = broken
        seen, _ = follow(phi, start(optimizer), observations)
        assert torch.equal(seen[:, [0, 2]], updates[:, [0, 2]])
        assert seen[2, 1].isfinite().all().item() is (broken == math.inf)  # an infinite one is cut, as by the module


@pytest.mark.parametrize(
    ("kind", "dtype", "graph", "expected"),
    [
        ("hierarchical", torch.float32, False, HierarchicalStepper),
        ("hierarchical", torch.float32, True, ModuleStepper),
        ("hierarchical", torch.float64, False, ModuleStepper),
        ("small_fc", torch.float32, False, ModuleStepper),
    ],
)
def test_the_kernel_is_chosen_where_it_can_be(kind: str, dtype: torch.dtype, graph: bool, expected: type) -> None:
    optimizer = optimizers.build({"kind": kind})
    phi = {name: weight.to(dtype) for name, weight in optimizer.initial_phi(torch.Generator()).items()}
    state = initial_state(optimizer, SHAPES, (LOOPS,), like=torch.empty(0, dtype=dtype))
    with torch.set_grad_enabled(graph):
        assert type(stepper(optimizer, phi, state, 1, second_order=False)) is expected


@pytest.mark.parametrize(("loss", "horizon"), [(True, 150.0), (False, None)])
def test_sessions_are_stepped_by_the_kernel(loss: bool, horizon: float | None) -> None:
    """With the bits of a loop among others, whether φ is packed anew for each step or once."""
    assert serving.kernel_name("hierarchical") == "numba"
    optimizer, phi = build({}, None)
    observations = observe(5, loops=1, loss=loss, horizon=horizon)
    updates, end = follow(phi, start(optimizer, loops=1), observations)
    for served in (phi, FixedPhi(phi)):
        state = only(start(optimizer, loops=1))
        for step, observed in enumerate(observations):
            before = {name: array.clone() for name, array in state.arrays.items()}
            seen = Observations(
                observed.gradients[0],
                observed.clock,
                None,
                *(None if each is None else each[0] for each in (observed.loss, observed.horizon)),
                observed.shapes,
            )
            taken, after = serving.step_session(optimizer, served, seen, state)
            assert torch.equal(taken, updates[step, 0])
            assert all(torch.equal(array, before[name]) for name, array in state.arrays.items())
            state = after
        assert same((taken, state), (updates[-1, 0], only(end)))


def only(state: HiddenState) -> HiddenState:
    """Of one loop, without that dimension."""
    return HiddenState(state.coordinates[0], {name: array[0] for name, array in state.arrays.items()})
