"""Optimizers that also keep state of tensors and of the session, served by the same sessions."""

import json

import numpy as np
import pytest
import torch
from safetensors.numpy import load

from optserve.wire import tensors
from optserve_server.optimizers import Observations, initial_state
from optserve_server.optimizers.guard import ACCEPTED, LEVEL, MAGNITUDE, REASON, RUN_ROWS, TENSOR_ROWS
from optserve_server.optimizers.serving import step_session

SHAPES = {"encoder.weight": (7, 5), "encoder.bias": (5,), "scale": (), "kernel": (4, 3, 2)}
LARGE = {"w": (60, 100), "b": (100,), "v": (70, 50)}  # several pages, and a thread
SAFETENSORS = {"Content-Type": "application/x-safetensors"}
KINDS = pytest.mark.parametrize("kind", ["hierarchical", "small_fc"])


class Reference:
    """What steps the optimizer, parameter by parameter: `clocks` and arrays of those that are skipped stand still."""

    def __init__(self, optimizer, phi, shapes, horizon=None):
        self.optimizer, self.phi, self.shapes, self.horizon = optimizer, phi, shapes, horizon
        self.coordinates = {name: initial_state(optimizer, (shape,)).coordinates for name, shape in shapes.items()}
        self.arrays = {name: initial_state(optimizer, (shape,)).arrays for name, shape in shapes.items()}
        self.session = {name: torch.zeros(rows, 1) for name, rows in optimizer.session_arrays.items()}

    def step(self, gradients, loss=None, skip=()):
        names = [name for name in self.shapes if name not in skip]
        own = [name for name in self.arrays[names[0]] if name not in self.session]
        arrays = {array: torch.cat([self.arrays[name][array] for name in names], -1) for array in own}
        before = initial_state(self.optimizer, ())._replace(
            coordinates=torch.cat([self.coordinates[name] for name in names], -1), arrays=arrays | self.session
        )
        observations = Observations(
            torch.from_numpy(gradients),
            torch.zeros(1),
            loss=None if loss is None else torch.tensor(loss),
            horizon=None if self.horizon is None else torch.tensor(float(self.horizon)),
            shapes=tuple(self.shapes[name] for name in names),
        )
        by_module, _ = self.optimizer.step(self.phi, observations, before)
        updates, after = step_session(self.optimizer, self.phi, observations, before)
        torch.testing.assert_close(updates, by_module, rtol=1e-4, atol=1e-5 * by_module.abs().max().item())
        for array in own:
            sizes = [self.arrays[name][array].shape[1] for name in names]
            for name, part in zip(names, after.arrays[array].split(sizes, -1), strict=True):
                self.arrays[name][array] = part
        sizes = [self.coordinates[name].shape[1] for name in names]
        self.coordinates.update(zip(names, after.coordinates.split(sizes, -1), strict=True))
        self.session = {array: after.arrays[array] for array in self.session}
        return updates.numpy()


def size(shapes, skip=()):
    return sum(int(np.prod(shape)) for name, shape in shapes.items() if name not in skip)


@KINDS
@pytest.mark.parametrize("horizon", [None, 12])
@pytest.mark.parametrize("shapes", [SHAPES, LARGE], ids=["small", "large"])
def test_a_session_is_the_optimizer_itself(new_loop, gradients, with_arrays, kind, horizon, shapes):
    """With a loss at some steps, and each parameter skipped at some; to the last bit."""
    name = f"random-{kind}"
    reference = Reference(*with_arrays[name], shapes, horizon)
    loop = new_loop(name, shapes, horizon=horizon)
    for step in range(15):
        skip = {3: ["encoder.bias", "w"], 4: ["b"], 8: ["encoder.weight", "scale"], 9: list(shapes)[1:]}.get(step, [])
        skip = [one for one in skip if one in shapes]
        loss = None if step in (0, 6) else 2.0 / (1 + step)
        sent = gradients(size(shapes, skip))
        query = {} if loss is None else {"loss": loss}
        got = loop.updates(step, sent, skip=skip, **query)
        assert np.array_equal(got, reference.step(sent, loss, skip)), step
        assert np.abs(got).max() > 0


@KINDS
def test_a_step_without_any_gradient_changes_nothing_but_its_number(new_loop, gradients, with_arrays, kind):
    loop, other = new_loop(f"random-{kind}"), new_loop(f"random-{kind}")
    sent = [gradients(41) for _ in range(2)]
    assert loop.step(0, sent[0]) == other.step(0, sent[0])
    before = load(loop.state())
    assert loop.step(1, np.empty(0, np.float32), skip=["encoder.weight", "encoder.bias", "scale"], loss=3.0) == b""
    after = load(loop.state())
    assert all(np.array_equal(after[name], before[name]) for name in before)
    assert loop.step(2, sent[1]) == other.step(1, sent[1])


@pytest.mark.parametrize(("loss", "horizon"), [(True, None), (False, 10), (False, None)])
def test_loss_and_horizon_reach_the_optimizer(new_loop, gradients, with_arrays, loss, horizon):
    name = "random-hierarchical"
    whole, less = new_loop(name, horizon=10), new_loop(name, horizon=horizon)
    for step in range(5):
        sent = gradients(41)
        with_all = whole.updates(step, sent, loss=5.0 - step)
        assert not np.array_equal(less.updates(step, sent, **({"loss": 5.0 - step} if loss else {})), with_all)


def test_a_step_is_repeated_only_with_the_same_loss(new_loop, gradients, with_arrays, assert_problem):
    loop = new_loop("random-hierarchical")
    sent = gradients(41)
    first = loop.step(0, sent, loss=1.5)
    digest = loop.get("/digest")
    assert loop.step(0, sent, loss=1.5) == first
    for query in ({"loss": 1.25}, {}):
        assert_problem(loop.post(0, sent.tobytes(), **query), "send step 1", 409, "step-conflict", {"next_step": 1})
    assert loop.get("/digest") == digest


def test_what_it_can_use_is_told(http, with_arrays):
    told = {name: http.get(f"/optimizers/{name}").json() for name in with_arrays}
    assert [told["random-hierarchical"][key] for key in ("uses", "needs")] == [["horizon", "loss"], []]
    assert [told["random-small_fc"][key] for key in ("uses", "needs")] == [[], []]


def test_the_arrays_can_be_read_by_anyone(new_loop, gradients, with_arrays):
    loop = new_loop("random-small_fc", SHAPES)
    sent = [gradients(65) for _ in range(3)]
    for step in (0, 1):
        loop.step(step, sent[step])
    loop.step(2, sent[2][35:], skip="encoder.weight")
    arrays, metadata = tensors.decode(loop.state())
    columns = json.loads(metadata["columns"])
    assert columns == {"clock": [1] * 4, "rows": [7, 5, 1, 8], "columns": [5, 0, 0, 6], "guard": [1] * 4}
    assert arrays["tensors.clock"].tolist() == [[2, 3, 3, 3]]
    squares = [(flat[:35].reshape(7, 5) ** 2).mean(axis=1) for flat in sent]
    np.testing.assert_allclose(arrays["tensors.rows"][0, :7], 0.1 * (0.9 * squares[0] + squares[1]), rtol=1e-5)

    loop = new_loop("random-hierarchical", SHAPES)
    loop.step(0, gradients(65), loss=2.5)
    arrays, metadata = tensors.decode(loop.state())
    assert set(json.loads(metadata["columns"])) == {"clock", "scheduler", "drift", "alignment", "guard"}
    assert arrays["session.steps"].tolist() == [[1.0]]
    assert arrays["session.losses"][:3, 0].tolist() == [1.0, 2.5, 2.5]


def rewritten(state, drop="", **arrays):
    old, metadata = tensors.decode(state)
    return tensors.encode({name: array for name, array in (old | arrays).items() if name != drop}, metadata)


def of_guard(row, value):
    """What a guard remembers of three tensors, with one number that it cannot have written."""
    remembered = np.zeros((TENSOR_ROWS, 3), np.float32)
    remembered[row, 2] = value
    return {"tensors.guard": remembered}


BAD_STATES = {
    "an array is missing": lambda state: rewritten(state, drop="tensors.rows"),
    "an array of another size": lambda state: rewritten(state, **{"tensors.rows": np.zeros((3, 12), np.float32)}),
    "an array of another dtype": lambda state: rewritten(state, **{"tensors.rows": np.zeros((3, 13))}),
    "an array too many": lambda state: rewritten(state, **{"session.more": np.zeros((1, 1), np.float32)}),
}
BAD_GUARDS = {
    "no number": lambda state: rewritten(state, **of_guard(MAGNITUDE, np.nan)),
    "a reason that is none": lambda state: rewritten(state, **of_guard(REASON, 4)),
    "less than no updates": lambda state: rewritten(state, **of_guard(ACCEPTED, -1)),
    "halved too often": lambda state: rewritten(
        state, **{"session.guard_run": np.eye(RUN_ROWS, 1, -LEVEL, dtype=np.float32) * 11}
    ),
}


@pytest.mark.parametrize("case", [*BAD_STATES, *BAD_GUARDS])
def test_a_state_with_other_arrays_changes_nothing(new_loop, gradients, with_arrays, assert_problem, case):
    loop = new_loop("random-small_fc")
    loop.step(0, gradients(41))
    state = loop.state()
    body = (BAD_STATES | BAD_GUARDS)[case](state)
    reply = loop.http.put(f"{loop.path}/state", content=body, headers=SAFETENSORS)
    assert_problem(reply, "guard" if case in BAD_GUARDS else "tensors.rows", 400, "malformed-body")
    assert loop.state() == state
