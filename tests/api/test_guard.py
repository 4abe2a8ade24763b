"""The update guard over HTTP: optimizers that were made bad on purpose, and loops that train all the same."""

import threading
from collections.abc import Callable
from typing import Any

import httpx
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from prometheus_client.parser import text_string_to_metric_families
from tests.api.conftest import Loop, open_loop

from optserve.wire import tensors
from optserve.wire.guard import GuardNote, parse_notes
from optserve_server.optimizers import build, weights

TENSORS = "application/x-safetensors"
SHAPES = {"w": (20,), "b": (4,)}
COORDINATES = 24


def spoilt(kind: str) -> bytes:
    """The weights file of an optimizer that no meta-training would give."""
    if kind == "hierarchical":
        optimizer = build({"kind": kind})
    else:
        optimizer = build({"kind": "lstm", "hidden_size": 3, "preprocessing": "identity"})
    phi = optimizer.initial_phi(torch.Generator().manual_seed(0))
    if kind == "hierarchical":
        phi["rate.level.bias"] = torch.full_like(phi["rate.level.bias"], 20.0)  # e^40 times the rate
    elif kind == "broken":  # of gradients above 1.2 it makes ∞ − ∞, and its hidden state is that too
        phi["cells.0.weight_ih"] = torch.full_like(phi["cells.0.weight_ih"], 3e38)
        for name in ("bias_ih", "bias_hh"):
            phi[f"cells.0.{name}"] = torch.full_like(phi[f"cells.0.{name}"], -3e38)
    elif kind == "stubborn":  # it moves every coordinate by 0.05, whatever the gradient
        phi["output.weight"] *= 0
        phi["output.bias"] = torch.full((1,), 0.5)
    else:
        phi["output.weight"] *= 1e6
    return weights.encode(optimizer, phi)


@pytest.fixture(scope="module")
def bad(http: httpx.Client) -> Callable[[str], str]:
    """The reference of a spoilt optimizer, which the shared server has from then on."""

    def imported(kind: str) -> str:
        headers = {"Content-Type": TENSORS}
        reply = http.post(f"/optimizers/bad-{kind}/versions", content=spoilt(kind), headers=headers)
        assert reply.status_code in (200, 201), reply.text
        return f"bad-{kind}"

    return imported


class Regression:
    """Least squares in plain NumPy, as a training loop that does what its session says."""

    def __init__(self, loop: Loop, seed: int = 0) -> None:
        generator = np.random.default_rng(seed)
        self.loop = loop
        self.x = generator.normal(size=(40, COORDINATES)).astype(np.float32)
        self.y = self.x @ generator.normal(size=COORDINATES).astype(np.float32)
        self.theta = np.zeros(COORDINATES, np.float32)
        self.replies: list[httpx.Response] = []

    def loss(self) -> float:
        with np.errstate(over="ignore", invalid="ignore"):
            return float(np.mean((self.x @ self.theta - self.y) ** 2))

    def gradient(self) -> NDArray[np.float32]:
        return (2 / 40 * self.x.T @ (self.x @ self.theta - self.y)).astype(np.float32)

    def train(self, steps: int, *, loss: bool = True) -> list[list[GuardNote]]:
        """What the guard told at each step."""
        for _ in range(steps):
            query = {"loss": self.loss()} if loss else {}
            reply = self.loop.post(len(self.replies), self.gradient().tobytes(), **query)
            assert reply.status_code == 200, reply.text
            self.replies.append(reply)
            with np.errstate(over="ignore", invalid="ignore"):
                self.theta += np.frombuffer(reply.content, np.float32)
        return [notes(reply) for reply in self.replies[-steps:]]


def notes(reply: httpx.Response) -> list[GuardNote]:
    return parse_notes(reply.headers.get("optserve-guard", ""))


def counted(http: httpx.Client, name: str, **labels: str) -> float:
    text = http.get(str(http.base_url).removesuffix("/v1/") + "/metrics").text
    families = text_string_to_metric_families(text)
    found = [s for family in families for s in family.samples if s.name == name and s.labels == labels]
    return found[0].value if found else 0.0


@pytest.mark.parametrize("kind", ["lstm", "hierarchical", "broken"])
def test_a_bad_optimizer_trains_under_the_guard_and_diverges_without(new_loop, bad, http, kind) -> None:
    reason = "non-finite" if kind == "broken" else "update-rms"
    labels = {"event": "fallback", "reason": reason}
    counts = [counted(http, "optserve_guard_events_total", **labels), counted(http, "optserve_guarded_steps_total")]
    unguarded = Regression(new_loop(bad(kind), SHAPES, guard=False))
    first = unguarded.loss()
    assert unguarded.train(1) == [[]]
    assert not unguarded.loss() < 100 * first

    guarded = Regression(new_loop(bad(kind), SHAPES))
    told = guarded.train(60)
    assert guarded.loss() < first
    assert np.isfinite(guarded.theta).all()
    afresh = kind == "broken"
    assert told[0] == [GuardNote("fallback", reason, 2, ["w", "b"], afresh)]
    assert told[59] == [GuardNote("held", reason, 2, ["w", "b"], afresh)]
    arrays, _ = tensors.decode(guarded.loop.state())
    assert arrays["clocks"].tolist() == ([0, 0] if afresh else [60, 60])
    assert np.isfinite(arrays["hidden_state"]).all()
    assert guarded.loop.get("/history")["guard_events"] == [
        {"step": 0, "event": "fallback", "reason": reason, "count": 2, "tensors": ["w", "b"], "afresh": afresh}
    ]
    assert counted(http, "optserve_guard_events_total", **labels) == counts[0] + 2
    assert counted(http, "optserve_guarded_steps_total") == counts[1] + 60


def test_a_loss_that_rises_for_long_is_a_cause_and_its_fall_an_end(new_loop, bad) -> None:
    options = {"patience": 8}
    unguarded = Regression(new_loop(bad("stubborn"), SHAPES, guard=False))
    unguarded.train(150)
    guarded = Regression(new_loop(bad("stubborn"), SHAPES, guard=options))
    told = guarded.train(150)
    assert guarded.loss() < 0.2 * unguarded.loss()
    kinds = [(note.event, note.reason, note.count) for step in told for note in step]
    assert ("fallback", "loss-rise", 2) in kinds
    assert ("back", "loss-rise", 2) in kinds
    events = guarded.loop.get("/history")["guard_events"]
    assert [event["event"] for event in events][:3] == ["fallback", "back", "fallback"]
    # Without a loss there is nothing that could rise.
    silent = Regression(new_loop(bad("stubborn"), SHAPES, guard=options))
    assert not any(silent.train(60, loss=False))


def test_a_tensor_falls_back_alone_and_comes_back_after_its_patience(new_loop) -> None:
    """A hand-designed optimizer that was given a guard; what it did meanwhile shows in no update of it."""
    loop = new_loop("sgd", SHAPES, hyperparameters={"lr": 0.1}, guard={"max_update_rms": 2, "patience": 3})
    assert loop.info["guard"] == {"max_update_rms": 2.0, "patience": 3, "fallback": "adam"}
    gradients = np.linspace(-1, 1, COORDINATES, dtype=np.float32)
    expected = [(), "fallback", "held", "held", "held", "back", ()]
    for step, event in enumerate(expected):
        sent = gradients.copy()
        if step == 1:
            sent[20:] *= 1e4  # of b
        reply = loop.post(step, sent.tobytes())
        updates = np.frombuffer(reply.content, np.float32)
        assert notes(reply) == ([GuardNote(event, "update-rms", 1, ["b"])] if event else [])
        assert ("optserve-guard" in reply.headers) == bool(event)
        np.testing.assert_allclose(updates[:20], -0.1 * sent[:20], rtol=1e-6)
        if event in ("fallback", "held"):
            assert np.sqrt(np.mean(updates[20:] ** 2)) <= np.sqrt(np.mean((0.1 * gradients[20:]) ** 2)) * 1.001
            assert (np.sign(updates[20:]) == -np.sign(sent[20:])).all()
        else:
            np.testing.assert_allclose(updates[20:], -0.1 * sent[20:], rtol=1e-6)
        # Sent again it is told again, and not counted again.
        assert loop.post(step, sent.tobytes()).headers.get("optserve-guard") == reply.headers.get("optserve-guard")
    assert [event["event"] for event in loop.get("/history")["guard_events"]] == ["fallback", "back"]


def test_who_has_a_guard(new_loop, bad) -> None:
    defaults = {"max_update_rms": 1.0, "patience": 50, "fallback": "adam"}
    assert new_loop(bad("lstm"), SHAPES).get()["guard"] == defaults
    assert new_loop(bad("lstm"), SHAPES, guard={}).info["guard"] == defaults
    assert new_loop(bad("lstm"), SHAPES, guard={"patience": 7}).get()["guard"] == {**defaults, "patience": 7}
    assert new_loop("adam", SHAPES, guard=True).info["guard"] == defaults
    assert new_loop(bad("lstm"), SHAPES, guard=False).get()["guard"] is None
    adam = new_loop("adam", SHAPES, hyperparameters={"lr": 100.0})
    assert adam.get()["guard"] is None
    reply = adam.post(0, np.ones(COORDINATES, np.float32).tobytes())
    assert np.abs(np.frombuffer(reply.content, np.float32)).min() > 99
    assert "optserve-guard" not in reply.headers


@pytest.mark.parametrize(
    ("guard", "pointer", "word"),
    [
        ({"max_update_rsm": 1}, "/guard", "did you mean 'max_update_rms'"),
        ({"max_update_rms": 0}, "/guard/max_update_rms", "above 0"),
        ({"max_update_rms": "1"}, "/guard/max_update_rms", "above 0"),
        ({"max_update_rms": True}, "/guard/max_update_rms", "above 0"),
        ({"patience": 0}, "/guard/patience", "from 1"),
        ({"patience": 2.5}, "/guard/patience", "from 1"),
        ({"fallback": "adan"}, "/guard/fallback", "did you mean 'adam'"),
        ({"fallback": None}, "/guard/fallback", "'adam'"),
        ("adam", "/guard", "`guard` is 'adam'; it is a table of options, true or false"),
        (1, "/guard", "true or false"),
        ([], "/guard", "true or false"),
    ],
)
def test_what_is_no_guard_is_refused(http, assert_problem, guard, pointer, word) -> None:
    body = {"optimizer": "lstm", "parameters": [{"name": "w", "shape": [2]}], "guard": guard}
    reply = http.post("/sessions", json=body)
    assert_problem(reply, word, 422, "request-invalid")
    assert pointer in str(reply.json())


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_other_dtypes_and_forms_and_skipped_parameters(new_loop, bad, dtype) -> None:
    loop = new_loop(bad("lstm"), SHAPES, dtype=dtype)
    ones = {"w": [1.0] * 20, "b": [1.0] * 4}
    reply = loop.http.post(f"{loop.path}/steps/0", json={"gradients": ones})
    assert notes(reply) == [GuardNote("fallback", "update-rms", 2, ["w", "b"])]
    assert reply.json()["updates"]["b"] == pytest.approx([-1e-3] * 4, rel=0.01)
    reply = loop.http.post(f"{loop.path}/steps/1", json={"gradients": {"b": ones["b"]}}, params={"skip": "w"})
    assert notes(reply) == [GuardNote("held", "update-rms", 1, ["b"])]
    reply = loop.http.post(f"{loop.path}/steps/2", json={"gradients": {}}, params={"skip": ["w", "b"]})
    assert notes(reply) == []


def test_the_header_is_short_whatever_the_tensors_are_called(new_loop, bad) -> None:
    shapes = {f'{number} größe \\ "{"x" * 150}': (1,) for number in range(2000)}
    loop = new_loop(bad("lstm"), shapes)
    reply = loop.post(0, np.ones(2000, np.float32).tobytes())
    assert len(reply.headers["optserve-guard"]) < 1000
    (note,) = notes(reply)
    assert note.count == 2000
    assert note.tensors == list(shapes)[: len(note.tensors)]
    assert note.tensors
    (event,) = loop.get("/history")["guard_events"]
    assert event["tensors"] == list(shapes)[:8]


def test_going_back_forking_and_states_have_the_guard_with_them(new_loop, bad) -> None:
    loop, straight = (new_loop(bad("stubborn"), SHAPES, guard={"patience": 4}) for _ in range(2))
    seen = Regression(straight)
    digests = []
    for _ in range(40):
        digests.append(straight.get("/digest")["sha256"])
        seen.train(1)
    events = straight.get("/history")["guard_events"]
    assert {event["event"] for event in events} == {"fallback", "back"}
    held = next(step for step, reply in enumerate(seen.replies) if notes(reply)) + 2

    again = Regression(loop)
    again.train(held)
    assert loop.http.put(f"{loop.path}/checkpoints/here").status_code == 200
    theta = again.theta.copy()
    again.train(40 - held)
    assert [reply.headers.get("optserve-guard") for reply in again.replies] == [
        reply.headers.get("optserve-guard") for reply in seen.replies
    ]
    fork = Loop(loop.http, loop.http.post(f"{loop.path}/fork", json={"step": held}).json())
    other = new_loop(bad("stubborn"), SHAPES, guard={"patience": 4})
    assert loop.http.post(f"{loop.path}/restore", json={"step": held}).status_code == 200
    headers = {"Content-Type": TENSORS}
    assert loop.http.put(f"{other.path}/state", content=loop.state(), headers=headers).status_code == 200
    assert fork.info["guard"] == loop.info["guard"]
    for copy in (loop, fork, other):
        assert copy.get("/digest")["sha256"] == digests[held]
        follows = Regression(copy)
        follows.theta, follows.replies = theta.copy(), [*seen.replies[:held]]
        follows.train(40 - held)
        assert [reply.content for reply in follows.replies] == [reply.content for reply in seen.replies]
        assert copy.get("/digest") == straight.get("/digest")
        assert (copy.get("/history")["guard_events"] == events) == (copy is not other)
    assert loop.http.post(f"{loop.path}/restore", json={"checkpoint": "here"}).status_code == 200
    assert loop.get("/digest")["sha256"] == digests[held]
    assert loop.get("/history")["guard_events"] == [event for event in events if event["step"] < held]


def test_a_state_goes_where_the_guard_is_another_or_none(new_loop, bad) -> None:
    guarded, unguarded = new_loop(bad("lstm"), SHAPES), new_loop(bad("lstm"), SHAPES, guard=False)
    ones = np.ones(COORDINATES, np.float32)
    for step in range(3):
        guarded.step(step, ones)
        unguarded.step(step, ones)
    states = guarded.state(), unguarded.state()
    headers = {"Content-Type": TENSORS}
    for loop, state in ((guarded, states[1]), (unguarded, states[0])):
        assert loop.http.put(f"{loop.path}/state", content=state, headers=headers).status_code == 200
    assert notes(guarded.post(3, ones.tobytes())) == [GuardNote("fallback", "update-rms", 2, ["w", "b"])]
    assert notes(unguarded.post(3, ones.tobytes())) == []


def test_calm_and_guarded_loops_side_by_side_have_the_bits_they_have_alone(http, bad) -> None:
    kinds: list[tuple[str, Any]] = [
        ("lstm", True),
        ("lstm", False),
        ("hierarchical", True),
        ("stubborn", {"patience": 4}),
    ]

    def train(kind: str, guard: Any, replies: list[bytes]) -> None:
        with httpx.Client(base_url=http.base_url, timeout=60) as own:
            loop = open_loop(own, bad(kind), {"w": (3000,)}, guard=guard)
            generator = np.random.default_rng(len(kind))
            for step in range(25):
                sent = generator.normal(size=3000).astype(np.float32)
                replies.append(loop.step(step, sent, loss=1.5**step))
            replies.append(loop.state())
            loop.close()

    alone: list[list[bytes]] = [[] for _ in kinds]
    for (kind, guard), replies in zip(kinds, alone, strict=True):
        train(kind, guard, replies)
    together: list[list[bytes]] = [[] for _ in kinds]
    threads = [
        threading.Thread(target=train, args=(*asked, replies)) for asked, replies in zip(kinds, together, strict=True)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert together == alone
